"""The members of an ensemble as readers meet them: their stores, opened once in each process."""

from __future__ import annotations

from pathlib import Path

from .manifest import Manifest, Member
from .store import LogitStore

_opened: dict[str, LogitStore] = {}


def opened(path: Path) -> LogitStore:
    """The store, as it was when this process opened it first; StoreError as for `LogitStore.open`."""
    if str(path) not in _opened:
        _opened[str(path)] = LogitStore.open(path)
    return _opened[str(path)]


def weighed(manifest: Manifest) -> list[Member]:
    """The members that take part."""
    return [member for member in manifest.models if member.weight]
