"""Over which classes a mean IoU runs."""

from __future__ import annotations

import math

import pytest
import torch
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.pipeline.scoring.averages import AVERAGES, PLAIN, average_of
from hmsa_pipeline.pipeline.scoring.metrics import mean_iou
from torch import Tensor

RIDER, CAR, TRUCK = 12, 13, 14
OUTSIDE_SHIFT = (RIDER, TRUCK, 15, 16, 17, 18)


def matrix(*cells: tuple[int, int, int]) -> Tensor:
    """(19, 19) counts from (label, prediction, pixels)."""
    found = torch.zeros(19, 19, dtype=torch.int64)
    for label, predicted, pixels in cells:
        found[label, predicted] = pixels
    return found


def test_a_class_that_the_label_table_cannot_hold_is_no_class_of_the_mean_but_an_error_of_the_labelled_one() -> None:
    shift = average_of("dataset", [dataset_spec("shift")])
    stray = matrix((0, 0, 100), (CAR, CAR, 94), *((CAR, other, 1) for other in OUTSIDE_SHIFT))
    assert mean_iou(stray, shift) == pytest.approx((1 + 0.94) / 2)
    assert shift.counted(stray).nonzero().flatten().tolist() == [0, CAR]
    assert mean_iou(stray, PLAIN) == pytest.approx((1 + 0.94) / 8)
    assert mean_iou(stray, average_of("labelled", [])) == pytest.approx((1 + 0.94) / 2)


def test_the_rules_differ_where_a_class_is_only_predicted() -> None:
    found = matrix((0, 0, 3), (0, CAR, 1))
    values = {name: mean_iou(found, average_of(name, [dataset_spec("cityscapes")])) for name in AVERAGES}
    assert values == {"dataset": 0.375, "labelled-or-predicted": 0.375, "labelled": 0.75}
    assert mean_iou(found, average_of("dataset", [dataset_spec("bdd100k")])) == 0.75


def test_how_many_classes_each_dataset_can_label() -> None:
    found = {name: len(average_of("dataset", [dataset_spec(name)]).as_json()["classes"]) for name in NAMES}  # type: ignore[arg-type]
    assert found.pop("shift") == 13
    assert set(found.values()) == {19}


def test_one_mean_of_several_datasets_has_the_classes_of_all() -> None:
    both = average_of("dataset", [dataset_spec("shift"), dataset_spec("bdd100k")])
    assert (both.rule, len(both.classes or ())) == ("labelled-or-predicted", 19)
    alike = average_of("dataset", [dataset_spec("bdd100k"), dataset_spec("bdd100k")])
    assert alike.rule == "labelled"


def test_without_a_label_table_of_ours_all_classes_count() -> None:
    assert average_of("dataset", []) == PLAIN
    assert PLAIN.words() == "labelled-or-predicted: over those of the 19 classes that are labelled or predicted"


def test_nothing_labelled_is_no_mean() -> None:
    for name in AVERAGES:
        assert math.isnan(mean_iou(matrix(), average_of(name, [dataset_spec("shift")])))


def test_the_words_say_which_classes() -> None:
    assert average_of("dataset", [dataset_spec("shift")]).words() == (
        "dataset: over those of the 13 classes of its label table that are labelled or predicted"
    )
    assert (
        average_of("labelled", [dataset_spec("shift")]).words()
        == "labelled: over those of the 19 classes that are labelled"
    )


def test_an_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown average 'macro'"):
        average_of("macro", [])
