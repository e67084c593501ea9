"""The record of the last search, beside the stores that it read, for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..storage.filesystem import read_bytes, write_json

_FILE = "search.json"
_NEEDED = {"held_out", "chosen_by", "chosen", "better"}
_WORDS = {"search": "chosen among all", "weights": "chosen among all, weights fitted"}


def record_search(output: Path, found: Mapping[str, Any]) -> None:
    """Write what `SearchResult.as_json` has into the folder of all results; OSError if that fails."""
    write_json(output / _FILE, dict(found))


def read_search(output: Path) -> tuple[dict[str, Any] | None, str]:
    """Read the record of the last search; None without one, and, for people, why one that is there is not used."""
    file = output / _FILE
    why = "it cannot be read"
    try:
        value = json.loads(read_bytes(file))
        if isinstance(value, dict):
            if value.keys() >= _NEEDED:
                return value, ""
            why = "an older release wrote it"
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError):
        pass
    return None, f"no search in the report, of {file}: {why}; run 'hmsa-pipeline search' again"


def figure_of(found: Mapping[str, Any]) -> str:
    """Name of the figure that was searched for, among those of a row."""
    return "score" if len(found["metrics"]) > 1 else next(iter(found["metrics"]))


def verdict_words(difference: Mapping[str, float | None], better: str) -> str:
    """``better than``, ``worse than``, or ``not told apart from`` where the interval holds 0 or is not known.

    Args:
        difference: ``low`` and ``high``, the ends of its interval; None or NaN where they are not known.
        better: ``higher`` or ``lower``, which figure is the better one.
    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None or not (low > 0 or high < 0):
        return "not told apart from"
    return "better than" if (low > 0) == (better == "higher") else "worse than"


def words(name: str) -> str:
    """Long name of a row, such as ``chosen among all``."""
    return _WORDS.get(name, name)
