"""``run.json`` in the output folder: what was run, when, how fast, and which images failed and why.

Times and failures stand here and not in the stores, so that equal work gives equal stores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import disk_error
from .filesystem import make_folder, read_bytes, short_lock, write_json

RUN_FILE = "run.json"


def now() -> str:
    """Return the time in UTC, in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_runs(output: Path) -> dict[str, dict[str, Any]]:
    """Read the record: command -> subject -> its last run. Empty if there is no record yet."""
    try:
        value = json.loads(read_bytes(output / RUN_FILE))
    except (FileNotFoundError, ValueError):
        return {}
    return {k: v for k, v in value.items() if isinstance(v, dict)} if isinstance(value, dict) else {}


def record_run(
    output: Path,
    command: str,
    subject: str,
    manifest: dict[str, Any],
    *,
    failed: Mapping[str, str],
    looked_at: Set[str] | None = None,
    idle: bool = False,
    **facts: Any,
) -> None:
    """Replace the entry of ``command`` on ``subject``.

    Several machines may work on one output at once: the file is read, changed and written under a short lock.

    Args:
        output: the output folder.
        command: the command that ran.
        subject: what it worked on, such as ``bravo_ACDC/cityscapes``.
        manifest: the resolved manifest.
        failed: path of each image that failed -> reason.
        looked_at: paths of the images that the run was about, None for all; failures of other images stay.
        idle: True if there was nothing to do: then the entry stays that of the run that did the work.
        facts: further values to keep in the entry.

    Raises:
        StoreError: the output cannot be written.
    """
    try:
        make_folder(output)
        with short_lock(output / f".{RUN_FILE}.lock"):
            runs = read_runs(output)
            before = runs.get(command, {}).get(subject)
            kept = [] if looked_at is None else [f for f in _failed(before) if f["image"] not in looked_at]
            now_failed = [{"image": image, "reason": reason} for image, reason in failed.items()] + kept
            entry = {"version": __version__, "finished": now(), **facts, "failed": now_failed, "manifest": manifest}
            if idle and isinstance(before, dict):
                entry = {**before, "failed": now_failed}
            if entry != before:
                runs.setdefault(command, {})[subject] = entry
                write_json(output / RUN_FILE, runs)
    except OSError as error:
        raise disk_error(output / RUN_FILE, error) from error


def failures(output: Path, dataset: str) -> dict[str, str]:
    """Return path -> reason for the images of ``dataset`` that failed when a store was filled."""
    found: dict[str, str] = {}
    for command in ("dump", "import-logits"):
        for subject, run in read_runs(output).get(command, {}).items():
            if subject.split("/")[0] == dataset:
                found |= {f["image"]: f["reason"] for f in _failed(run)}
    return found


def _failed(run: Any) -> list[dict[str, str]]:
    found = run.get("failed") if isinstance(run, dict) else None
    return (
        [f for f in found if isinstance(f, dict) and f.keys() >= {"image", "reason"}]
        if isinstance(found, list)
        else []
    )


def record_gone(output: Path, dataset: str, listed: Set[str], present: Set[str]) -> None:
    """Record which images the stores of ``dataset`` list although the dataset's folder no longer holds them.

    Args:
        output: the output folder.
        dataset: name of the dataset.
        listed: paths of images that a store lists and the dataset's folder does not hold.
        present: paths of the images that the dataset's folder holds now.

    Raises:
        StoreError: the output cannot be written.
    """
    before = gone(output, dataset)
    now_gone = (before | listed) - present
    if now_gone != before:
        try:
            with short_lock(output / f".{RUN_FILE}.lock"):
                runs = read_runs(output)
                runs.setdefault("gone", {})[dataset] = sorted(now_gone)
                write_json(output / RUN_FILE, runs)
        except OSError as error:
            raise disk_error(output / RUN_FILE, error) from error


def gone(output: Path, dataset: str) -> set[str]:
    """Return the images that stores of ``dataset`` list and its folder did not hold when it was last listed."""
    found = read_runs(output).get("gone", {}).get(dataset)
    return {path for path in found if isinstance(path, str)} if isinstance(found, list) else set()
