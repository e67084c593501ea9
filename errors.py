"""The errors of the package, and the words of their messages.

Every message is one line that names the thing, the place and the fix.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class HmsaError(Exception):
    """Something the user can fix; the command line prints it as ``error: <message>``."""


class ManifestError(HmsaError, ValueError):
    """A manifest, a recipe, a flag or an environment variable asks for something that cannot be done."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))  # it quotes what people wrote


class CheckpointError(HmsaError):
    """A checkpoint is missing, damaged, refused, or belongs to another network."""


class DatasetError(HmsaError):
    """A dataset's folder or one of its images does not have the layout that its type has."""


class TrainingError(HmsaError):
    """A training run cannot continue; what was saved before is kept."""


class StoreError(HmsaError):
    """A logit store is damaged, locked, or was made with other settings."""


class TryAgainError(StoreError):
    """Something that a run needs is not there now, such as every worker; the exit code is 75, as of sendmail."""


class DiskError(StoreError):
    """A file could not be written to the disk, so that going on is of no use."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest what an unknown name may have meant: the closest known name, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean '{next(k for k in known if k.lower() == close[0])}'?"
    return f"known: {', '.join(known)}" if known else "none is known"


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """List the first ``limit`` items, separated by commas, and say how many more there are."""
    items = [str(i) for i in items]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def disk_error(path: Path, error: OSError) -> DiskError:
    """Make the error to raise when ``path`` could not be written in the middle of long work."""
    fix = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix that"
    return DiskError(
        f"{path}: cannot be written ({reason(error)}); {fix} and run the same command again, what is complete is kept"
    )


def reason(error: object) -> str:
    """Say why something failed, in one line: the system's words for an OSError, else the error's own text."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or " ".join(str(error).split()) or type(error).__name__


def cannot_read(path: object, error: BaseException) -> str:
    """Word the message for a file or folder that ``error`` kept from being read."""
    return f"{path}: cannot be read ({reason(error)})"


def one_line(text: str) -> str:
    """Write line breaks and other characters that a terminal cannot show as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def describe_value(value: object) -> str:
    """Describe a value of a settings file for a message, such as ``the number 3`` or ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {shortened(value)}"
    if isinstance(value, str):
        return f"the text {shortened(value)}"
    return {dict: "a mapping", list: "a list", tuple: "a list"}.get(type(value), type(value).__name__)


def shortened(value: object) -> str:
    """Show a value in at most 60 characters."""
    if isinstance(value, int) and abs(value) > 10**60:
        return "of more than 60 digits"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
