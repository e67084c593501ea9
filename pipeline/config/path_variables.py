"""Paths as people write them in a manifest: with ``${VARIABLES}``, with ``~``, relative to something."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import ManifestError, describe_value
from .yaml_document import Document

FLAGS = {"HMSA_DATA_ROOT": "--data-root", "HMSA_ASSETS": "--assets"}

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BARE_VARIABLE = re.compile(rf"\$({'|'.join(FLAGS)})\b")


@dataclass(frozen=True)
class PathContext:
    """The folder and variables by which the paths of a manifest are expanded.

    Attributes:
        folder: absolute; relative paths start from it.
        variables: values of the environment variables; an empty one counts as not set.
    """

    folder: Path
    variables: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, data_root: Path | None = None, assets: Path | None = None) -> PathContext:
        """Make the context of the paths in a file of ``folder``.

        Args:
            folder: absolute.
            data_root: wins over the environment variable HMSA_DATA_ROOT.
            assets: wins over HMSA_ASSETS.
        """
        variables = {name: value for name, value in os.environ.items() if value}
        for name, flag in zip(FLAGS, (data_root, assets), strict=True):
            value = variables.get(name) if flag is None else str(flag)
            if value is not None:
                # Unlike the paths in a manifest these are typed in a shell, so relative to the current folder.
                variables[name] = str(Path.cwd() / expand_home(value))
        return cls(folder, variables)


def refuse_unused(document: Document, data_root: Path | None, assets: Path | None) -> None:
    """Raise ManifestError if a folder was given whose ``${NAME}`` stands nowhere in the document.

    Args:
        document: the file's settings.
        data_root, assets: values of ``--data-root`` and ``--assets``, None if not given.
    """
    for (name, flag), value in zip(FLAGS.items(), (data_root, assets), strict=True):
        if value is not None and not any(f"${{{name}}}" in text for text in _texts(document.tree)):
            raise ManifestError(
                f"{flag}: changes nothing: no path of {document.name} holds ${{{name}}}; leave it out"
            )


def _texts(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def expand_home(text: str) -> Path:
    """Expand a leading ``~`` or ``~user``; `ManifestError` if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ManifestError(f"{text}: '~' means no folder here; write it out") from None


def expand(value: object, folder: Path, variables: Mapping[str, str]) -> str:
    """Make an absolute path: expand variables and ``~``, and put a relative path under ``folder``.

    A variable that is not set stays as ``${NAME}``; a path that begins with one is not put under a folder. Expanding
    the result again, from any folder, changes nothing. ValueError if it cannot be written into a manifest.

    Args:
        value: a text or path.
        folder: absolute.
        variables: name -> value.
    """
    if not isinstance(value, (str, Path)):
        raise ValueError(f"a path is needed, not {describe_value(value)}")
    text = str(value)
    if not text.strip():
        raise ValueError("a path is needed, not an empty text")
    if bare := _BARE_VARIABLE.search(text):
        raise ValueError(f"write ${{{bare[1]}}} with braces, not ${bare[1]}")
    if "${" in _VARIABLE.sub("-", text):
        raise ValueError(f"'${{' begins no variable in {describe_value(text)}; write ${{NAME}}")
    unset = {name for name in _VARIABLE.findall(text) if name not in variables}
    path = _VARIABLE.sub(lambda found: variables.get(found[1], found[0]), text)
    if not _VARIABLE.match(path) and not is_url(path):
        path = str(folder / expand_home(path))
    if "${" in _VARIABLE.sub(lambda found: "-" if found[1] in unset else found[0], path):
        raise ValueError(f"a folder in {describe_value(path)} has '${{' in its name; use another")
    if "\0" in path or not is_unicode(path):
        raise ValueError(f"{describe_value(path)} is no path in UTF-8")
    return path


def is_url(text: str) -> bool:
    """Say whether ``text`` is a URL, such as ``s3://bucket/run``."""
    return bool(_URL.match(text))


def require_expanded(path: str, where: str = "") -> str:
    """Return the path that `expand` made; `ManifestError`, begun with ``where``, if a variable in it is not set."""
    if unset := _VARIABLE.search(path):
        name = unset[1]
        flag = f" or give {FLAGS[name]} FOLDER" if name in FLAGS else ""
        raise ManifestError(f"{where}the environment variable {name} is not set; set it{flag}")
    return path


def resolved_path(path: str, where: str = "") -> Path:
    """Return what `expand` made of a path on a disk; `ManifestError` as `require_expanded`, and for a URL."""
    if is_url(path):
        raise ManifestError(f"{where}only the output may be a URL; put this on a disk, or mount it")
    return Path(require_expanded(path, where))


def is_unicode(text: str) -> bool:
    """Say whether UTF-8 can hold the text, unlike file names of another encoding and YAML's ``\\ud800``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
