"""Where ``--json`` and ``--csv`` put figures: a file, standard output, or whatever else the shell names."""

from __future__ import annotations

import csv
import errno
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import HmsaError
from ...files import as_json, write_text

STANDARD_OUTPUT = "-"


def require_target(target: str, flag: str = "--json") -> None:
    """Refuse before the work what could not be written after it.

    Args:
        target: what the option was given.
        flag: the option, for messages.

    Raises:
        HmsaError: ``target`` is no file that can be written.
    """
    if not target.strip():
        raise HmsaError(f"{flag}: an empty name names no file; give one, or leave the option out")
    path = Path(target)
    if target == STANDARD_OUTPUT or _is_special(path):
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(flag, target, error) from error


def require_folder(folder: Path, flag: str) -> None:
    """Refuse before the work a folder that could not be filled after it; nothing is made.

    Raises:
        HmsaError: ``folder`` cannot be made, or nothing can be written into it.
    """
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise HmsaError(
            f"{flag} {folder}: cannot be written ({error.strerror or error}); name another folder"
        ) from error


def write_figures(target: str, figures: Any, flag: str = "--json") -> None:
    """Write ``figures`` as JSON.

    Raises:
        HmsaError: ``target`` cannot be written.
    """
    _write(target, as_json(figures), flag)


def write_rows(target: str, rows: Sequence[Mapping[str, Any]], flag: str) -> None:
    """Write ``rows`` as CSV, under all their names; a row is empty where it has none.

    Raises:
        HmsaError: ``target`` cannot be written.
    """
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(target, text.getvalue(), flag)


def _write(target: str, text: str, flag: str) -> None:
    if target == STANDARD_OUTPUT:
        print(text, end="")
        return
    try:
        if _is_special(Path(target)):
            Path(target).write_text(text, encoding="utf-8")
        else:
            write_text(Path(target), text)
    except BrokenPipeError:  # whoever read /dev/stdout has left, as in `| head`
        return
    except OSError as error:
        raise _unwritable(flag, target, error) from error


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a device or a link to something, as /dev/stdout; renaming a file over it removes it."""
    return path.exists() and not path.is_dir() and (path.is_symlink() or not path.is_file())


def _unwritable(flag: str, target: str, error: OSError) -> HmsaError:
    return HmsaError(f"{flag} {target}: cannot be written ({error.strerror}); name another file")
