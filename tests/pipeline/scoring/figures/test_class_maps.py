"""Figures of class maps: scikit-learn's, cityscapesScripts' and, of boundaries, repeated erosion."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
from cityscapesscripts.helpers.labels import trainId2label
from hmsa_pipeline.datasets.class_set import CITYSCAPES19
from hmsa_pipeline.datasets.taxonomy import CATEGORIES, CLASS_NAMES, IGNORE
from hmsa_pipeline.pipeline.scoring.averages import Average
from hmsa_pipeline.pipeline.scoring.figures.boundaries import distance_of, near_contour
from hmsa_pipeline.pipeline.scoring.figures.instances import MEAN_SIZES
from hmsa_pipeline.pipeline.scoring.instance_masks import SIZES
from hmsa_pipeline.pipeline.scoring.pixel_counts import LabelledImage, PixelCounts, count_classes
from PIL import Image

SHAPE = (40, 64)


def maps(seed: int, blocks: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels in blocks with void ones, predictions that are partly shifted, and confidences."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 19, (SHAPE[0] // blocks, SHAPE[1] // blocks))
    truth = small.repeat(blocks, 0).repeat(blocks, 1).astype(np.uint8)
    label = np.where(draw.random(SHAPE) < 0.8, np.roll(truth, 1, 1), draw.integers(0, 19, SHAPE)).astype(np.uint8)
    truth[draw.random((SHAPE[0] // 8, SHAPE[1] // 8)).repeat(8, 0).repeat(8, 1) < 0.15] = IGNORE
    return label, draw.integers(0, 65536, SHAPE).astype(np.uint16), truth


def test_precision_and_recall_are_scikit_learns() -> None:
    label, confidence, truth = maps(0)
    truth[truth == 7] = 8  # predicted, never labelled
    label[label == 4] = 5  # labelled, never predicted
    figures = count_classes(label, confidence, truth).figures()
    known = truth != IGNORE
    given: Any = {"labels": range(19), "average": None, "zero_division": np.nan}
    for name, score in (
        ("precision", sklearn.metrics.precision_score),
        ("recall", sklearn.metrics.recall_score),
        ("iou", None),
    ):
        if score:
            wanted = score(truth[known], label[known], **given)
            assert figures[name] == pytest.approx(wanted, nan_ok=True)
            assert figures[f"mean_{name}"] == pytest.approx(np.nanmean(wanted))
    assert math.isnan(figures["precision"][4])
    assert math.isnan(figures["recall"][7])
    assert figures["mean_recall"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(truth[known], label[known])
    )


def test_a_mean_counts_the_classes_of_the_average() -> None:
    label, confidence, truth = maps(1)
    average = Average("dataset", "labelled", (0, 1, 2))
    figures = count_classes(label, confidence, truth).figures(average)
    for name, mean in (("precision", "mean_precision"), ("recall", "mean_recall"), ("boundary_iou", "boundary_miou")):
        assert figures[mean] == pytest.approx(np.mean(figures[name][:3]))


def test_other_classes_have_no_categories() -> None:
    label, confidence, truth = maps(2)
    counts = count_classes(label, confidence, truth)
    assert "category_iou" in counts.figures()
    others = Average(names=tuple(f"class {number}" for number in range(19)))
    assert "category_iou" not in counts.figures(others)
    assert "category_iou" not in count_classes(label, confidence, truth, 30).figures(
        Average(names=tuple(f"class {number}" for number in range(30)))
    )
    assert sorted(name for group in CATEGORIES.values() for name in group) == sorted(CLASS_NAMES)


def objects_of(truth: np.ndarray, seed: int) -> np.ndarray:
    """Ids of instances as Cityscapes writes them: of classes with instances three in stripes, or a group without."""
    draw = np.random.default_rng(seed)
    raw = np.array([trainId2label[train].id for train in range(19)])
    ids = np.where(truth == IGNORE, 0, raw[truth.clip(0, 18)]).astype(np.uint16)
    for train in SIZES:
        own = truth == train
        if draw.random() < 0.8:
            stripes = np.broadcast_to(np.arange(SHAPE[1]) // 22, SHAPE)
            ids[own] = raw[train] * 1000 + stripes[own]
    return ids


def test_categories_and_instances_are_cityscapes_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.zeros(256, np.uint8)
    for train in range(19):
        raw[train] = trainId2label[train].id
    total = PixelCounts()
    files: tuple[list[str], list[str]] = ([], [])
    for seed in range(3):
        label, confidence, truth = maps(seed)
        objects = objects_of(truth, seed)
        total += LabelledImage(truth, 19, (objects, SIZES)).count(label, confidence)
        for names, kind, ids in zip(files, ("pred", "gtFine_labelIds"), (raw[label], raw[truth]), strict=True):
            path = tmp_path / f"city_{seed:06}_000000_{kind}.png"
            Image.fromarray(ids).save(path)
            names.append(str(path))
        Image.fromarray(objects).save(tmp_path / f"city_{seed:06}_000000_gtFine_instanceIds.png")
    for name, value in {"quiet": True, "JSONOutput": False, "evalInstLevelScore": True}.items():
        monkeypatch.setattr(evalPixelLevelSemanticLabeling.args, name, value)
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which newer NumPy has under this name only
    found = evalPixelLevelSemanticLabeling.evaluateImgLists(*files, evalPixelLevelSemanticLabeling.args)
    figures = total.figures()
    by_class = [found["classScores"][name] for name in CLASS_NAMES]
    assert figures["iou"] == pytest.approx(by_class, nan_ok=True, abs=1e-9)
    categories = [found["categoryScores"][name] for name in CATEGORIES]
    assert figures["category_iou"] == pytest.approx(categories, abs=1e-9)
    assert figures["category_miou"] == pytest.approx(found["averageScoreCategories"], abs=1e-9)
    instances = [found["classInstScores"][name] for name in CLASS_NAMES]
    assert figures["iiou"] == pytest.approx(instances, nan_ok=True, abs=1e-9)
    assert figures["miiou"] == pytest.approx(found["averageScoreInstClasses"], abs=1e-9)
    assert {name: evalPixelLevelSemanticLabeling.args.avgClassSize[name] for name in MEAN_SIZES} == dict(MEAN_SIZES)
    assert sum(math.isfinite(value) for value in instances) >= 6


def test_one_image_without_instances_leaves_the_figure_out() -> None:
    label, confidence, truth = maps(3)
    total = PixelCounts()
    total += LabelledImage(truth, 19, (objects_of(truth, 3), SIZES)).count(label, confidence)
    assert "iiou" in total.figures()
    total += count_classes(label, confidence, truth)
    assert "iiou" not in total.figures()
    assert "boundary_iou" in total.figures()


def eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask after ``distance`` erosions by 3 x 3 pixels; outside of the image nothing belongs to it."""
    for _ in range(distance):
        wide = np.pad(mask, 1)
        mask = np.logical_and.reduce(
            [wide[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)]
        )
    return mask


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
def test_pixels_near_a_contour_are_those_that_erosion_removes(distance: int) -> None:
    label, _, _ = maps(4, blocks=8)
    wanted = np.zeros(SHAPE, bool)
    for number in range(19):
        wanted |= (label == number) & ~eroded(label == number, distance)
    np.testing.assert_array_equal(near_contour(label, distance), wanted)


def test_an_image_that_is_smaller_than_the_distance_is_all_contour() -> None:
    assert near_contour(np.zeros((6, 40), np.uint8), 3).all()
    assert not near_contour(np.zeros((7, 40), np.uint8), 3).all()
    assert (distance_of((1024, 2048)), distance_of((10, 10))) == (11, 1)


def test_boundary_iou_is_that_of_masks_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmsa_pipeline.pipeline.scoring.figures import boundaries

    monkeypatch.setattr(boundaries, "SHARE_OF_DIAGONAL", 0.03)
    assert boundaries.distance_of(SHAPE) == 2
    both, either = np.zeros(19), np.zeros(19)
    total = PixelCounts()
    for seed in range(3):
        label, confidence, truth = maps(seed, blocks=8)
        total += count_classes(label, confidence, truth)
        for number in range(19):
            own, said = truth == number, (label == number) & (truth != IGNORE)
            near, other = own & ~eroded(own, 2), said & ~eroded(said, 2)
            both[number] += (near & other).sum()
            either[number] += (near | other).sum()
    with np.errstate(invalid="ignore"):
        assert total.figures()["boundary_iou"] == pytest.approx(both / either, nan_ok=True)
    assert len(CITYSCAPES19) == 19
