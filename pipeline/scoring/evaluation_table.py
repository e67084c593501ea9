"""Results of `evaluate` as lines for people and as rows of CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..text import figure, plural, without_nan
from .evaluate import EvaluationResult
from .resampling.comparison import Difference, comparison_table

_FEW = 20
"""Images below which a bootstrap interval is known to be too narrow."""


def evaluation_table(result: EvaluationResult) -> list[str]:
    """A line for each subject and, where there are classes, one for each with its IoU in every subject.

    The ends of intervals stand below the figures; a comparison has a line for each figure.
    """
    truth = result.truth
    figures = result.figures()
    wide = max(map(len, [*figures, *truth.classes.names]))
    pixels = max(row["pixels"] for row in figures.values())
    images = max(row["images"] for row in figures.values())
    whose = "it should have by others' count" if truth.unsure else "its authors label"
    of = f" of the {truth.official} that {whose}" if images < (truth.official or 0) else ""
    lines = [f"{result.dataset}: {plural(images, 'image')}{of}, {pixels} labelled pixels"]
    if not truth.ood:
        lines.append(f"mIoU {truth.average.words()}; miou_classes says how many")
    lines += _resampled(result, images)
    columns = [name for name in next(iter(figures.values())) if name not in ("images", "pixels", "iou")]
    lines.append(f"{'':{wide}}  " + "  ".join(f"{name:>13}" for name in columns))
    ends = result.intervals()
    for name, row in figures.items():
        lines.append(f"{name:{wide}}  " + "  ".join(f"{figure(row[column]):>13}" for column in columns))
        for end, title in enumerate(("  2.5 %", "  97.5 %") if ends.get(name) else ()):
            cells = [figure(ends[name][column][end]) if column in ends[name] else "" for column in columns]
            lines.append(f"{title:{wide}}  " + "  ".join(f"{cell:>13}" for cell in cells))
    if any("iou" in row for row in figures.values()):
        across = [max(7, len(name)) for name in figures]
        lines.append(f"{'IoU':{wide}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(figures, across, strict=True)))
        for number, name in enumerate(truth.classes.names):
            values = [row["iou"][number] for row in figures.values()]
            cells = (f"{figure(v):>{w}}" for v, w in zip(values, across, strict=True))
            lines.append(f"{name:{wide}}  " + "  ".join(cells))
    if result.compare is not None:
        one, other = result.compare
        lines.append(f"{one} (A) against {other} (B), the same images")
        lines += comparison_table(result.compare, (figures[one], figures[other]), result.differences())
    return lines


def _resampled(result: EvaluationResult, images: int) -> list[str]:
    if result.resampling is None:
        return []
    if images < 2:
        return ["no intervals: there are fewer than two images to resample"]
    few = f"; too narrow for fewer than {_FEW} images" if images < _FEW else ""
    drawn = result.resampling
    return [f"95 % intervals: {drawn.replicates} resamplings of the images, seed {drawn.seed}{few}"]


def evaluation_rows(results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    """One flat row for each dataset and subject, and one for each comparison; empty where a figure is not defined."""
    found = []
    for result in results:
        names = result.truth.classes.names
        rule = {} if result.truth.ood else {"average": result.truth.average.name}
        ends = result.intervals()
        for subject, figures in result.figures().items():
            flat = dict(_flat(figures, names))
            for name, (low, high) in _flat(ends.get(subject, {}), names):
                flat |= {f"{name} low": low, f"{name} high": high}
            found.append({"dataset": result.dataset, "subject": subject, **rule, **without_nan(flat)})
        if result.compare is not None:
            one, other = result.compare
            flat = {}
            for name, each in _flat(result.differences(), names):
                flat |= _difference_cells(name, each)
            found.append({"dataset": result.dataset, "subject": f"{one} - {other}", **rule, **without_nan(flat)})
    return found


def _flat(figures: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each figure, and each class of one that is a list of classes by the class's name."""
    for name, value in figures.items():
        if name == "iou":
            yield from ((f"{name} {each}", one) for each, one in zip(names, value, strict=True))
        else:
            yield name, value


def _difference_cells(name: str, found: Difference) -> dict[str, float]:
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high, f"{name} p": found.p}
