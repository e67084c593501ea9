"""The dataset guide: where to get each dataset and how its folders must look."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ...datasets.dataset_specs import EVALUATED, KNOWN_DATASETS, DatasetSpec, dataset_spec
from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ...errors import DatasetError
from .findings import COUNTED

WIDTH = 100
"""Columns of a terminal that the guide is to be read on."""
_KINDS = {"download": "where to get it", "archives": "the archives' names", "counts": "the numbers of images"}
_CROP, _LONG_EDGE = (96, 192), 240
_LABEL = 10


def known_source(name: str) -> DatasetSpec:
    """The facts about a dataset.

    Raises:
        DatasetError: none is called ``name``; the error lists all that there are.
    """
    if name not in KNOWN_DATASETS:
        raise DatasetError(f"{name}: is no dataset that is known; known: {', '.join(KNOWN_DATASETS)}")
    return dataset_spec(name)


def known_sources(names: Sequence[str]) -> list[DatasetSpec]:
    """Look up datasets by name, each once, in this order; all if there are no names. Raises as `known_source`."""
    return [known_source(name) for name in dict.fromkeys(names or KNOWN_DATASETS)]


def split_uses(facts: DatasetSpec) -> dict[str, str]:
    """Each split that a recipe or a manifest can name -> what it is for, in a few words."""
    uses: dict[str, str] = {}
    for split in facts.layout.split_names:
        if split in facts.unlabelled:
            uses[split] = "has no masks: for dump only"
        elif split in facts.layout.joined:
            parts = " and ".join(facts.layout.joined[split])
            uses[split] = f"{parts}, with other cities for validation" if "_cv" in split else f"{parts} together"
            if split == facts.layout.default:
                uses[split] += "; what a manifest reads if it names no split"
        elif split == "train":
            uses[split] = "trained on"
        elif split == facts.layout.default:
            uses[split] = "scored; what a manifest reads if it names no split"
        else:
            uses[split] = "has masks too"
    return uses


def dataset_guide(facts: DatasetSpec) -> list[str]:
    """Text of ``datasets list`` for one dataset: lines of at most `WIDTH` columns, but for long addresses."""
    lines = [f"{facts.name}: {facts.title}"]
    lines += _entry("homepage", [facts.homepage])
    lines += _entry("paper", [facts.paper])
    lines += _entry("get it", _wrapped(" ".join(facts.download.split())))
    lines += _entry("folder", ["below HMSA_DATA_ROOT, or what --data-root names:"])
    lines += _entry("", [part for line in facts.tree.rstrip().splitlines() for part in _fitted(line)])
    by_use: dict[str, list[str]] = {}
    for split, use in split_uses(facts).items():
        if split not in facts.layout.variants:
            by_use.setdefault(use, []).append(split)
    said = [_wrapped(f"{', '.join(splits)}: {use}") for use, splits in by_use.items()]
    lines += _entry("splits", [line for lines in said for line in lines])
    if facts.counts:
        counts = [f"{split} {number}{_unsure(facts, split)}" for split, number in facts.counts.items()]
        for part, numbers in facts.parts.items():
            each = ", ".join(f"{split} {number}" for split, number in numbers.items())
            counts.append(f"{part} alone: {each}{_unsure(facts, part)}")
        lines += _entry("images", _wrapped("; ".join(counts)))
    for line in [*mapping_lines(facts), *facts.remarks]:
        lines += _entry("note", _wrapped(line))
    for kind, text in facts.sources.items():
        lines += _entry("source", _wrapped(f"of {_KINDS.get(kind, kind)}: {text}"))
    lines += _entry("check it", [f"hmsa-pipeline datasets check {facts.name} --data-root DIR"])
    if facts.name in EVALUATED:
        lines += _entry("score on", [f"a dataset of 'type: {facts.name}' in a manifest: hmsa-pipeline evaluate"])
    else:
        lines += _entry("train", [f"hmsa-pipeline train --dataset {facts.name} --data-root DIR --assets DIR"])
    return lines


def _unsure(facts: DatasetSpec, name: str) -> str:
    return f" ({COUNTED})" if name in facts.unsure else ""


def mapping_lines(facts: DatasetSpec) -> list[str]:
    """A sentence for each mapping but the first: in which ids it differs."""
    labels = facts.labels or {}
    return [
        f"mapping: {name} differs from {facts.mapping} in {len(others)} ids: "
        + ", ".join(
            f"{raw} {labels[raw][1].rpartition('--')[2]} ({_train_name(labels[raw][0])} -> {_train_name(train)})"
            for raw, train in others.items()
        )
        for name, others in facts.mappings.items()
        if name != facts.mapping
    ]


def _train_name(train: int) -> str:
    return "ignored" if train == IGNORE else CLASS_NAMES[train]


def guide_figures(facts: DatasetSpec) -> dict[str, Any]:
    """Describe a dataset for ``--json``."""
    return {
        "name": facts.name,
        "title": facts.title,
        "homepage": facts.homepage,
        "paper": facts.paper,
        "download": " ".join(facts.download.split()),
        "folder": facts.folder,
        "tree": facts.tree,
        "splits": split_uses(facts),
        "labelled": list(facts.labelled),
        "counts": dict(facts.counts),
        "unsure": sorted(facts.unsure),
        "sources": dict(facts.sources),
        "parts": {part: dict(numbers) for part, numbers in facts.parts.items()},
        "mappings": {name: dict(others) for name, others in facts.mappings.items()},
        "remarks": list(facts.remarks),
        "default": facts.layout.default,
    }


def _entry(label: str, lines: Sequence[str]) -> list[str]:
    return [f"  {label if not number else '':{_LABEL}}{line}".rstrip() for number, line in enumerate(lines)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - _LABEL - 2, break_long_words=False, break_on_hyphens=False)


def _fitted(line: str) -> list[str]:
    """A line of a tree; a remark beside it that has no room goes below it."""
    if len(line) <= WIDTH - _LABEL - 2 or "  " not in line.strip():
        return [line]
    shape, _, remark = line.rpartition("  ")
    shape = shape.rstrip()
    indent = " " * (len(shape) - len(shape.lstrip()) + 4)
    return [shape, *(indent + part for part in _wrapped(remark))]
