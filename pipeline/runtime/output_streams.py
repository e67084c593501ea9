"""Standard output and standard error of a command: no line is lost, and no lost reader changes the exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any


class _Descriptor(io.FileIO):
    """Writes to a file descriptor, which stays open, until that fails, and drops everything afterwards.

    A reader that has closed the pipe (``| head``) is no error. Any other failure, such as a full disk, is raised
    once: otherwise Python tries the same bytes again at exit, fails again and replaces the exit code by 120. Failures
    of standard error, which has no ``label``, are not raised, since there is no place left to report them.
    """

    def __init__(self, number: int, label: str | None) -> None:
        super().__init__(number, "w", closefd=False)
        self._label, self._dead = label, False

    def write(self, data: Any, /) -> int | None:
        if not self._dead:
            try:
                return super().write(data)
            except OSError as error:
                self._dead = True
                if self._label is not None and not isinstance(error, BrokenPipeError):
                    raise type(error)(error.errno, error.strerror, self._label) from error
        return memoryview(data).nbytes


def prepare() -> None:
    """Make standard output and standard error ready for a command.

    Both write each line when it is printed, also to a pipe or a file: a log can be followed, lines of this process
    and of those that it starts stay in order, and no line is lost when the process is killed. Characters that the
    locale cannot encode are escaped. A stream that was closed before the start (``>&-``) drops what is written.
    Streams that other code has replaced are left alone.
    """
    for name, label in (("stdout", "standard output"), ("stderr", None)):
        stream, first = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        elif stream is first:
            ours = io.TextIOWrapper(
                io.BufferedWriter(_Descriptor(stream.fileno(), label)),
                encoding=stream.encoding,
                errors="backslashreplace" if stream.errors == "strict" else stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, ours)


def flush() -> None:
    """Flush both streams, before a call of `os._exit`, which does not."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
