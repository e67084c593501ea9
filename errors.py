"""The error family: every message is one line that names the thing, the place and the fix."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class HmsaError(Exception):
    """Something the user can fix; the command line prints it as ``error: <message>``."""


class ManifestError(HmsaError, ValueError):
    """A manifest, a flag or an environment variable says something that cannot be done."""


class CheckpointError(HmsaError):
    """A checkpoint is missing, damaged, refused, or belongs to another network."""


class DatasetError(HmsaError):
    """A dataset folder or one of its images is not as its layout says."""


class TrainingError(HmsaError):
    """A training run cannot go on; what was saved before is kept."""


class StoreError(HmsaError):
    """A logit store is damaged, locked, or was made with other settings."""


class DiskError(StoreError):
    """The disk would not take what was to be written: there is no use in going on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the closest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    if close:
        return f"did you mean '{next(k for k in known if k.lower() == close[0])}'?"
    return f"known: {', '.join(known)}" if known else "none is known"


def first_few(items: Iterable[object], limit: int = 5) -> str:
    """The first ``limit`` items, comma separated, and how many more there are."""
    items = [str(i) for i in items]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def disk_error(path: Path, error: OSError) -> DiskError:
    """What to raise when ``path`` could not be written in the middle of long work."""
    mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix that"
    return DiskError(
        f"{path}: cannot be written ({error.strerror or error}); {mend} and run the same command again, "
        "what is complete is kept"
    )
