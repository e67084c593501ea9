"""``labels.json``: what made the auto-labels of a dataset, and how much of each class was kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...datasets.auto_labels import FORMAT_VERSION, RECORD
from ...errors import StoreError, first_few
from ..config.manifest import DatasetEntry, FusionFunctions, Member
from ..fusion.ensemble_record import make_record
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..storage.filesystem import read_bytes
from ..store.logit_store import LogitStore
from ..text import percent
from .pixels import LabelCounts
from .settings import NOTHING, AutolabelSettings, level_threshold
from .thresholds import Precision

PROBABILITIES = ("mean-softmax", "mean-logit")
"""Confidences whose mean, if they are calibrated, is the share of right pixels."""
_WORK = ("settings", "label", "confidence", "members", "fit", "images")


def describe_work(
    entry: DatasetEntry,
    settings: AutolabelSettings,
    functions: FusionFunctions,
    members: Sequence[tuple[Member, LogitStore]],
    fit: tuple[str, Mapping[str, int], Sequence[tuple[Member, LogitStore]]] | None,
    images: Mapping[str, int],
) -> dict[str, Any]:
    """Describe what decides the labels of a dataset: labels of an equal description are the same.

    Args:
        entry: of the manifest.
        settings: those of the run.
        functions: functions of the label and of the confidence.
        members: with their stores.
        fit: name of the dataset that precision is measured on, its images with their sizes in bytes, and the members
            with their stores of it.
        images: those that shares are taken of, with their sizes in bytes; none if no share is taken.
    """
    made = make_record(functions, [(member, store.identity) for member, store in members], {})
    measured = None
    if fit is not None:
        name, sizes, stores = fit
        teacher = make_record(functions, [(member, store.identity) for member, store in stores], {})["fingerprint"]
        measured = {"dataset": name, "images": len(sizes), "digest": _digest(sizes), "teacher": teacher}
    described = {
        "dataset": entry.name,
        "type": entry.type,
        "split": entry.split,
        "settings": settings.as_json(),
        "label": functions.label,
        "confidence": functions.confidence,
        "members": [
            one
            | {
                name: store.identity.as_json()[name]
                for name in ("architecture", "checkpoint", "sha256", "scales", "flip", "precision", "source")
            }
            for one, (_, store) in zip(made["members"], members, strict=True)
        ],
        "fit": measured,
        "images": images and {"images": len(images), "digest": _digest(images)},
    }
    return json.loads(json.dumps(described))


def _digest(value: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_labels_record(folder: Path) -> dict[str, Any]:
    """Read the record of the labels in ``folder``; empty if there is none, StoreError if it cannot be read."""
    path = folder / RECORD
    try:
        value = json.loads(read_bytes(path))
        if value["format_version"] != FORMAT_VERSION or not {"complete", "classes", *_WORK} <= value.keys():
            raise ValueError("it is of another version")
        [(one["name"], one["level"], one["precision"]) for one in value["classes"]]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); make the labels again with --overwrite") from error
    return value


def require_same_labels(folder: Path, before: Mapping[str, Any], work: Mapping[str, Any]) -> None:
    """Raise StoreError if the labels in a folder were made in another way.

    Args:
        folder: ``DIR/<dataset>``.
        before: their record, empty if there are none.
        work: see `describe_work`.
    """
    if not before or all(_known(before[name]) == _known(work[name]) for name in _WORK):
        return
    changed: list[str] = []
    if before["settings"] != work["settings"]:
        old, new = before["settings"], work["settings"]
        changed += [f"{name} {old.get(name)} there, {new[name]} now" for name in new if old.get(name) != new[name]]
    changed += [f"{name} {before[name]} there, {work[name]} now" for name in _WORK[1:3] if before[name] != work[name]]
    changed += [f"other {name}" for name in _WORK[3:] if _known(before[name]) != _known(work[name])]
    raise StoreError(
        f"{folder}: holds labels made in another way ({first_few(changed, 3)}); "
        "choose another --write, or make them again with --overwrite"
    )


def _known(value: Any) -> Any:
    """Leave out a checkpoint's file name: its content counts, which the store's digest holds."""
    if isinstance(value, list):
        return [{name: one[name] for name in one if name != "checkpoint"} for one in value]
    return value


def begun_record(
    work: Mapping[str, Any], classes: Sequence[str], levels: Sequence[int], precision: Sequence[Precision | None]
) -> dict[str, Any]:
    """Make the record of labels that are being made.

    Args:
        work: see `describe_work`.
        classes: names of the classes.
        levels: of each class, the lowest that is kept.
        precision: of each class, where it was measured.
    """
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "complete": False,
        **work,
        "format": work["settings"]["format"],
        "classes": [
            {
                "name": name,
                "threshold": level_threshold(level),
                "level": None if level >= NOTHING else level,
                "precision": None if found is None else vars(found),
            }
            for name, level, found in zip(classes, levels, precision, strict=True)
        ],
    }


def levels_of(record: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the levels of a record's classes."""
    return tuple(NOTHING if one["level"] is None else int(one["level"]) for one in record["classes"])


def ended_record(record: Mapping[str, Any], counts: LabelCounts, labelled: int) -> dict[str, Any]:
    """Make the record of labels that are complete.

    Args:
        record: see `begun_record`.
        counts: over all images.
        labelled: number of images.
    """
    classes = []
    means = record["confidence"] in PROBABILITIES
    for place, one in enumerate(record["classes"]):
        predicted, kept = counts.predicted[place], counts.kept[place]
        expected = one["precision"] and one["precision"]["share"]
        if expected is None and means and kept:
            expected = (counts.levels[place] / kept + 0.5) / CONFIDENCE_LEVELS
        known = {name: one[name] for name in ("name", "threshold", "level")}
        classes.append(
            known
            | {
                "pixels": predicted,
                "kept": kept,
                "share": kept / predicted if predicted else None,
                "own_labels": counts.coarse[place],
                "expected_precision": expected,
                "precision": one["precision"],
            }
        )
    pixels, kept = sum(counts.predicted), sum(counts.kept) + sum(counts.coarse)
    facts = {"labelled": labelled, "pixels": pixels, "kept": kept, "share": kept / pixels if pixels else None}
    return {**record, "complete": True, "classes": classes, **facts}


def labels_table(record: Mapping[str, Any]) -> list[str]:
    """Lay out a complete record for people: a line for each class that was predicted."""
    wide = max(5, *(len(one["name"]) for one in record["classes"]))
    fit = record["fit"]
    by = f"on {fit['dataset']}, 95 % interval" if fit else "the mean confidence"
    if not fit and record["confidence"] not in PROBABILITIES:
        by = "not known without --fit"
    lines = [
        f"{record['dataset']}: {record['labelled']} images, {percent(record['share'] or 0)} of the pixels labelled; "
        f"expected precision: {by}",
        f"{'class':{wide}}  {'threshold':>9}  {'predicted':>9}  {'kept':>7}  expected precision",
    ]
    for one in record["classes"]:
        if not one["pixels"] and not one["own_labels"]:
            continue
        threshold = "-" if one["threshold"] is None else f"{one['threshold']:.4f}"
        share = "-" if one["share"] is None else percent(one["share"])
        expected, measured = one["expected_precision"], one["precision"]
        words = "-" if expected is None else f"{expected:.4f}"
        if measured:
            words += f" ({measured['low']:.4f} to {measured['high']:.4f})"
        predicted = percent(one["pixels"] / record["pixels"])
        lines.append(f"{one['name']:{wide}}  {threshold:>9}  {predicted:>9}  {share:>7}  {words}")
    return lines
