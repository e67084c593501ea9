"""The section of a report's page about the last search, if its record lies beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.progress import say
from ..search.record import figure_of, read_search, verdict_words, words


def search_section(output: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The record of the last search, and what the page shows of it as texts; None without a record.

    A record that is there and cannot be used is said.

    Args:
        output: folder of the results.
    """
    found, why = read_search(output)
    if found is None:
        if why:
            say(f"note: {why}")
        return None
    name = figure_of(found)
    metrics = [one for one in found["held_out"][0]["figures"] if one != name]
    several = len({_functions(row) for row in found["chosen_by"]}) > 1
    rows = [
        {
            "name": words(row["name"]),
            "value": _shown(row["figures"][name]),
            "others": [_shown(row["figures"][one]) for one in metrics],
            "difference": "" if row is found["held_out"][-1] else _shown(row["difference"], "+.4f"),
            "cost": f"{row['chosen']['cost']:.3g}",
            "members": _members(row["chosen"], functions=several or row is found["held_out"][-1]),
            "efficient": row["efficient"],
        }
        for row in found["held_out"]
    ]
    chosen, judged = found["chosen"], found["held_out"]
    better = found["better"]
    way = next(row for row in judged if row["name"] == ("weights" if found["weights_kept"] else "search"))
    return found, {
        "by": found["by"],
        "figure": found["by"] if name == "score" else name,
        "metrics": metrics,
        "rows": rows,
        "unit": found["cost"],
        "images": sum(found["sets"].values()),
        "sets": ", ".join(found["sets"]),
        "folds": found["folds"],
        "members": len(found["members"]),
        "chosen": ", ".join(chosen["members"]),
        "functions": _functions(chosen),
        "better": better,
        "verdict": f"{verdict_words(way['difference'], better)} all {len(found['members'])}",
        "compared": _functions(judged[-1]["chosen"]),
    }


def _functions(row: Mapping[str, Any]) -> str:
    return f"label {row['label']}, confidence {row['confidence']}"


def _members(chosen: Mapping[str, Any], *, functions: bool) -> str:
    """Names of the members, and their functions where these are asked for."""
    return ", ".join(chosen["members"]) + (f"; {_functions(chosen)}" if functions else "")


def _shown(one: Mapping[str, float | None], form: str = ".4f") -> dict[str, str]:
    """A figure and its interval, as texts."""
    value, low, high = (one[name] for name in ("value", "low", "high"))
    if value is None:
        return {"value": "-", "interval": ""}
    known = low is not None and high is not None
    return {"value": f"{value:{form}}", "interval": f"{low:{form}} to {high:{form}}" if known else ""}
