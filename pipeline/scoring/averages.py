"""Over which classes a mean IoU runs: peers differ, and the figure with them.

=====================  ==========================================================================
rule                   classes that the mean runs over
=====================  ==========================================================================
labelled-or-predicted  those with an IoU at all: labelled or predicted in the scored pixels (as
                       ``evalPixelLevelSemanticLabeling`` of cityscapesScripts)
labelled               those that are labelled in the scored pixels (as ``bdd100k.eval.run``)
dataset                those that the dataset's label table can hold at all, counted by the rule
                       of the dataset's own evaluator, one of the two above
=====================  ==========================================================================

Whatever the rule, a pixel that is labelled as one class and predicted as another is an error of the labelled class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...datasets.dataset_specs import LABELLED_OR_PREDICTED, RULES, DatasetSpec
from ...datasets.taxonomy import CLASS_NAMES

DATASET = "dataset"
AVERAGES: tuple[str, ...] = (DATASET, *RULES)
"""Values of ``--average``, the default first."""


@dataclass(frozen=True)
class Average:
    """How the IoU of classes becomes one figure.

    Attributes:
        name: one of `AVERAGES`, as it was asked for.
        rule: one of `dataset_specs.RULES`.
        classes: train ids that can be counted at all, ascending; None for all of them.
        names: of all classes, by id.
    """

    name: str = LABELLED_OR_PREDICTED
    rule: str = LABELLED_OR_PREDICTED
    classes: tuple[int, ...] | None = None
    names: tuple[str, ...] = CLASS_NAMES

    def counted(self, matrix: Tensor) -> Tensor:
        """Mark the classes that the mean runs over, (C,) bool, by the counts (C, C) of `metrics.confusion`."""
        marked = self.counted_of(matrix.sum(1).cpu().numpy(), matrix.sum(0).cpu().numpy())
        return torch.from_numpy(marked).to(matrix.device)

    def counted_of(self, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """Mark the classes that the mean runs over, (C,) bool.

        Args:
            labelled: (C,) pixels that are labelled as each class.
            predicted: (C,) labelled pixels that are predicted as each class.
        """
        counted = labelled > 0
        if self.rule == LABELLED_OR_PREDICTED:
            counted |= predicted > 0
        if self.classes is not None:
            possible = np.zeros_like(counted)
            possible[list(self.classes)] = True
            counted &= possible
        return counted

    def words(self) -> str:
        """For people, such as ``dataset: over those of the 13 classes of its label table that are labelled``."""
        rule = "labelled" if self.rule != LABELLED_OR_PREDICTED else "labelled or predicted"
        every = len(self.names if self.classes is None else self.classes)
        whose = "of its label table " if self.name == DATASET else ""
        return f"{self.name}: over those of the {every} classes {whose}that are {rule}"

    def as_json(self) -> dict[str, object]:
        """By name; the classes that can be counted by theirs."""
        ids = range(len(self.names)) if self.classes is None else self.classes
        return {"name": self.name, "rule": self.rule, "classes": [self.names[i] for i in ids]}


PLAIN = Average()
"""Over all classes that are labelled or predicted."""


def average_of(name: str, sources: Iterable[DatasetSpec], names: tuple[str, ...] = CLASS_NAMES) -> Average:
    """How the mean of a dataset is taken, or one mean of several.

    `DATASET` is over the classes that any of ``sources`` can hold, by their rule if they have the same one and as
    `LABELLED_OR_PREDICTED` else.

    Args:
        name: one of `AVERAGES`; ValueError else.
        sources: none if no dataset file gives their label table, as for BRAVO.
        names: of all classes, by id.
    """
    if name not in AVERAGES:
        raise ValueError(f"unknown average {name!r}; one of {', '.join(AVERAGES)}")
    if name != DATASET:
        return Average(name, name, names=names)
    known = tuple(sources)
    if not known:
        return Average(names=names)
    classes = sorted(set().union(*(source.classes for source in known)))
    rules = {source.average for source in known}
    rule = rules.pop() if len(rules) == 1 else LABELLED_OR_PREDICTED
    return Average(name, rule, tuple(classes), names)
