"""Results of `evaluate` as lines for people and as rows of CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...datasets.taxonomy import CATEGORIES
from ..text import figure, plural, without_nan
from .evaluate import EvaluationResult
from .figures.names import BASIC, LISTS, TITLES, row_names
from .resampling.bootstrap import resampling_lines
from .resampling.comparison import Difference, comparison_table

_COLUMNS = 8


def evaluation_table(result: EvaluationResult, chosen: Collection[str] | None = BASIC) -> list[str]:
    """A line for each subject and, of figures that are lists, one for each class with its value in every subject.

    The ends of intervals stand below the figures; a comparison has a line for each figure.

    Args:
        result: of `evaluate`.
        chosen: names of figures; None for all.
    """
    truth = result.truth
    figures = result.figures()
    wide = max(map(len, [*figures, *truth.classes.names, *CATEGORIES]))
    pixels = max(row["pixels"] for row in figures.values())
    images = max(row["images"] for row in figures.values())
    whose = "it should have by others' count" if truth.unsure else "its authors label"
    of = f" of the {truth.official} that {whose}" if images < (truth.official or 0) else ""
    lines = [f"{result.dataset}: {plural(images, 'image')}{of}, {pixels} labelled pixels"]
    if not truth.ood:
        lines.append(f"mIoU {truth.average.words()}; miou_classes says how many")
    lines += resampling_lines(result.resampling, images)
    shown = [name for name in next(iter(figures.values())) if chosen is None or name in chosen]
    for reason in dict.fromkeys(result.left_out.values()):
        names = [
            name for name, why in result.left_out.items() if why == reason and (chosen is None or name in chosen)
        ]
        lines += [f"no {', '.join(names)}: {reason}"] if names else []
    numbers = [name for name in shown if name not in (*LISTS, "images", "pixels")]
    for start in range(0, len(numbers), _COLUMNS):
        lines += _numbers(result, figures, numbers[start : start + _COLUMNS], wide)
    for name in LISTS:
        if name in shown:
            lines += _values(TITLES[name], row_names(name, truth.classes.names), name, figures, wide)
    if result.compare is not None:
        one, other = result.compare
        lines.append(f"{one} (A) against {other} (B), the same images")
        found = {name: each for name, each in result.differences().items() if name in numbers}
        lines += comparison_table(result.compare, (figures[one], figures[other]), found)
    return lines


def _numbers(
    result: EvaluationResult, figures: Mapping[str, Mapping[str, Any]], columns: Sequence[str], wide: int
) -> list[str]:
    """A line for each subject, and below it the ends of intervals."""
    widths = [max(13, len(name)) for name in columns]

    def line(title: str, cells: Iterable[str]) -> str:
        return f"{title:{wide}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))

    lines = [line("", columns)]
    ends = result.intervals()
    for name, row in figures.items():
        lines.append(line(name, (figure(row[column]) for column in columns)))
        for end, title in enumerate(("  2.5 %", "  97.5 %") if ends.get(name) else ()):
            known = ends[name]
            lines.append(line(title, (figure(known[one][end]) if one in known else "" for one in columns)))
    return lines


def _values(
    title: str, rows: Sequence[str], name: str, figures: Mapping[str, Mapping[str, Any]], wide: int
) -> list[str]:
    """A line for each class with its value in every subject."""
    across = [max(7, len(subject)) for subject in figures]
    lines = [f"{title:{wide}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(figures, across, strict=True))]
    for number, each in enumerate(rows):
        cells = (f"{figure(row[name][number]):>{w}}" for row, w in zip(figures.values(), across, strict=True))
        lines.append(f"{each:{wide}}  " + "  ".join(cells))
    return lines


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
        if name in LISTS:
            yield from ((f"{name} {each}", one) for each, one in zip(row_names(name, names), value, strict=True))
        else:
            yield name, value


def _difference_cells(name: str, found: Difference) -> dict[str, float]:
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high, f"{name} p": found.p}
