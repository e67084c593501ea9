"""``run.json`` beside the output: what was run, when, how fast, and what failed and why.

Times and failures stand here and not in the stores, so that equal work gives equal stores.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import StoreError
from ..files import guarded, write_json

RUN_FILE = "run.json"


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_runs(output: Path) -> dict[str, dict[str, Any]]:
    """The record: command -> what it worked on -> its last run; empty where there is none yet."""
    try:
        value = json.loads((output / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, dict)} if isinstance(value, dict) else {}


def record_run(output: Path, command: str, subject: str, manifest: dict[str, Any], **facts: Any) -> None:
    """Replace the entry of ``command`` on ``subject`` (such as ``bravo_ACDC/cityscapes``).

    Several machines may work on one output at once: the file is read, changed and put back under a
    guard of its own.

    Raises:
        StoreError: the output cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with guarded(output / f".{RUN_FILE}.lock"):
            runs = read_runs(output)
            entry = {"version": __version__, "finished": now(), **facts, "manifest": manifest}
            runs.setdefault(command, {})[subject] = entry
            write_json(output / RUN_FILE, runs)
    except OSError as error:
        raise StoreError(
            f"{output / RUN_FILE}: cannot be written ({error.strerror or error}); free some space or mend it and "
            "run the same command again, what is complete is kept"
        ) from error


def failures(output: Path, dataset: str) -> dict[str, str]:
    """Image path -> reason, for the images of ``dataset`` that a filled store could not take."""
    found: dict[str, str] = {}
    for command in ("dump", "import-logits"):
        for subject, run in read_runs(output).get(command, {}).items():
            if subject.split("/")[0] == dataset:
                found |= {f["image"]: f["reason"] for f in run.get("failed", [])}
    return found
