"""Prints and writes for commands: lines for people, figures as JSON or CSV, failures, exit codes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ....errors import HmsaError, one_line, reason
from ....files import as_json, write_text

INTERRUPTED = 130
"""The exit code of a command that was interrupted."""
STANDARD_OUTPUT = "-"


class Output:
    """Lines for people and figures for programs.

    Args:
        target: of ``--json``; None for no figures.
    """

    def __init__(self, target: str | None = None) -> None:
        self.target = target

    def line(self, text: str) -> None:
        """Print for people; beside figures on standard output that is standard error."""
        print(text, file=sys.stderr if self.target == STANDARD_OUTPUT else sys.stdout)

    def lines(self, texts: Iterable[str]) -> None:
        """Print some lines for people."""
        for text in texts:
            self.line(text)

    def figures(self, value: Any) -> None:
        """Write the figures where ``--json`` says."""
        if self.target:
            _write(self.target, as_json(value), "--json")

    def figures_line(self, value: Any, *, first: bool) -> None:
        """Write figures as one line of JSON behind the lines before it.

        Args:
            value: the figures.
            first: begin the file.
        """
        text = f"{json.dumps(value)}\n"
        if self.target == STANDARD_OUTPUT:
            print(text, end="", flush=True)
        elif self.target:
            try:
                with Path(self.target).open("w" if first else "a", encoding="utf-8") as file:
                    file.write(text)
            except BrokenPipeError:
                return
            except OSError as error:
                raise _unwritable("--json", self.target, error) from error

    def try_again(self) -> None:
        """Print the command that tries again what failed, and skips what is complete."""
        words = [word for word in sys.argv[1:] if word != "--overwrite"]
        self.line(f"to try again what failed: {shlex.join(['hmsa-pipeline', *words])}")


def print_error(text: str) -> None:
    """Print one line on standard error."""
    print(one_line(text), file=sys.stderr)


def print_failed(name: str, failed: Mapping[str, str]) -> None:
    """Print the images of a job that failed, each with the reason, on standard error."""
    for image, why in failed.items():
        print_error(f"failed: {name}: {image}: {why}")


def print_note(line: str) -> None:
    """Print a note about the machine on standard error, above the progress line."""
    from ...runtime.progress import say

    say(one_line(f"note: {line}"))


def end_command(failed: int, *, interrupted: bool = False) -> None:
    """End the command with the exit code that says what happened: 1 if something ``failed``, 130 if interrupted."""
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise typer.Exit(1)


def require_target(target: str, flag: str = "--json") -> None:
    """Raise HmsaError before the work if ``target``, which ``flag`` was given, cannot be written after it."""
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
    """Raise HmsaError before the work if ``folder`` could not be made or filled after it; nothing is made."""
    # A path has no two slashes: s3://bucket/x would be a folder named "s3:" in the current one.
    if url := re.match(r"([a-z][a-z0-9+]+):/", str(folder)):
        raise HmsaError(f"{flag} {url[1]}://{str(folder)[url.end() :]}: is a URL; name a folder of this machine")
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise HmsaError(f"{flag} {folder}: cannot be written ({reason(error)}); name another folder") from error


def write_rows(target: str, rows: Sequence[Mapping[str, Any]], flag: str) -> None:
    """Write ``rows`` as CSV, under all their names; HmsaError if that fails.

    Args:
        target: a file, or ``-`` for standard output.
        rows: name -> value; a row is empty where it has none.
        flag: the option that named the target, for messages.
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
    """Say if it is a pipe, a device or a link to something, as /dev/stdout; renaming a file over it removes it."""
    return path.exists() and not path.is_dir() and (path.is_symlink() or not path.is_file())


def _unwritable(flag: str, target: str, error: OSError) -> HmsaError:
    return HmsaError(f"{flag} {target}: cannot be written ({reason(error)}); name another file")
