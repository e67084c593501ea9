"""The dataset guide: where to get each dataset and how its folders must look."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ...datasets.dataset_specs import EVALUATED, KNOWN_DATASETS, DatasetSpec, dataset_spec
from ...datasets.layout.find_images import LAYOUTS
from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ...errors import DatasetError
from .findings import COUNTED

WIDTH = 100
"""Columns of a terminal that the guide is to be read on."""
_KINDS = {"download": "where to get it", "archives": "the archives' names", "counts": "the numbers of images"}
_LABEL = 10


def known_source(name: str) -> DatasetSpec:
    """The facts about a dataset; DatasetError if none is called ``name``, which lists all that there are."""
    if name in LAYOUTS and name not in KNOWN_DATASETS:
        raise DatasetError(
            f"{name}: is no dataset to train on; name it in a manifest, which 'hmsa-pipeline manifest check' looks at"
        )
    if name not in KNOWN_DATASETS:
        raise DatasetError(f"{name}: is no dataset that is known; known: {', '.join(KNOWN_DATASETS)}")
    return dataset_spec(name)


def known_sources(names: Sequence[str]) -> list[DatasetSpec]:
    """Look up datasets by name, each once, in this order; all if there are no names. Raises as `known_source`."""
    return [known_source(name) for name in dict.fromkeys(names or KNOWN_DATASETS)]


def split_uses(spec: DatasetSpec) -> dict[str, str]:
    """Each split that a recipe or a manifest can name -> what it is for, in a few words."""
    uses: dict[str, str] = {}
    for split in spec.layout.split_names:
        if split in spec.unlabelled:
            uses[split] = "has no masks: for dump only"
        elif split in spec.layout.joined:
            parts = " and ".join(spec.layout.joined[split])
            uses[split] = f"{parts}, with other cities for validation" if "_cv" in split else f"{parts} together"
            if split == spec.layout.default:
                uses[split] += "; what a manifest reads if it names no split"
        elif split == "train":
            uses[split] = "trained on"
        elif split == spec.layout.default:
            uses[split] = "scored; what a manifest reads if it names no split"
        elif split in spec.apart:
            uses[split] = f"has masks too; comes in {' and '.join(spec.apart[split])}"
        else:
            uses[split] = "has masks too"
    return uses


def dataset_guide(spec: DatasetSpec) -> list[str]:
    """Text of ``datasets list`` for one dataset: lines of at most `WIDTH` columns, but for long addresses."""
    lines = [f"{spec.name}: {spec.title}"]
    lines += _entry("homepage", [spec.homepage])
    lines += _entry("paper", [spec.paper])
    lines += _entry("get it", _wrapped(" ".join(spec.download.split())))
    lines += _entry("folder", ["below HMSA_DATA_ROOT, or what --data-root names:"])
    lines += _entry("", [part for line in spec.tree.rstrip().splitlines() for part in _fitted(line)])
    by_use: dict[str, list[str]] = {}
    for split, use in split_uses(spec).items():
        if split not in spec.layout.variants:
            by_use.setdefault(use, []).append(split)
    said = [_wrapped(f"{', '.join(splits)}: {use}") for use, splits in by_use.items()]
    lines += _entry("splits", [line for lines in said for line in lines])
    if spec.counts:
        counts = [f"{split} {number}{_unsure(spec, split)}" for split, number in spec.counts.items()]
        for part, numbers in spec.parts.items():
            each = ", ".join(f"{split} {number}" for split, number in numbers.items())
            counts.append(f"{part} alone: {each}{_unsure(spec, part)}")
        lines += _entry("images", _wrapped("; ".join(counts)))
    for line in [*mapping_lines(spec), *spec.remarks]:
        lines += _entry("note", _wrapped(line))
    for kind, text in spec.sources.items():
        lines += _entry("source", _wrapped(f"of {_KINDS.get(kind, kind)}: {text}"))
    lines += _entry("check it", [f"hmsa-pipeline datasets check {spec.name} --data-root DIR"])
    if spec.name in EVALUATED:
        lines += _entry("score on", [f"a dataset of 'type: {spec.name}' in a manifest: hmsa-pipeline evaluate"])
    else:
        lines += _entry("train", [f"hmsa-pipeline train --dataset {spec.name} --data-root DIR --assets DIR"])
    return lines


def _unsure(spec: DatasetSpec, name: str) -> str:
    return f" ({COUNTED})" if name in spec.unsure else ""


def mapping_lines(spec: DatasetSpec) -> list[str]:
    """A sentence for each mapping but the first: in which ids it differs."""
    labels = spec.labels or {}
    return [
        f"mapping: {name} differs from {spec.mapping} in {len(others)} ids: "
        + ", ".join(
            f"{raw} {labels[raw][1].rpartition('--')[2]} ({_train_name(labels[raw][0])} -> {_train_name(train)})"
            for raw, train in others.items()
        )
        for name, others in spec.mappings.items()
        if name != spec.mapping
    ]


def _train_name(train: int) -> str:
    return "ignored" if train == IGNORE else CLASS_NAMES[train]


def guide_figures(spec: DatasetSpec) -> dict[str, Any]:
    """Describe a dataset for ``--json``."""
    return {
        "name": spec.name,
        "title": spec.title,
        "homepage": spec.homepage,
        "paper": spec.paper,
        "download": " ".join(spec.download.split()),
        "folder": spec.folder,
        "tree": spec.tree,
        "splits": split_uses(spec),
        "labelled": list(spec.labelled),
        "counts": dict(spec.counts),
        "unsure": sorted(spec.unsure),
        "sources": dict(spec.sources),
        "parts": {part: dict(numbers) for part, numbers in spec.parts.items()},
        "mappings": {name: dict(others) for name, others in spec.mappings.items()},
        "remarks": list(spec.remarks),
        "default": spec.layout.default,
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
