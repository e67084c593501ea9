"""The bootstrap over images, against one that adds up whole histograms of the drawn images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hmsa_pipeline.pipeline.scoring.detection.components import best_f1
from hmsa_pipeline.pipeline.scoring.metrics import FINE, ece
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts, count_classes, count_ood
from hmsa_pipeline.pipeline.scoring.resampling.bootstrap import Bootstrap, Resampling, interval, intervals
from hmsa_pipeline.pipeline.scoring.resampling.coarse import STARTS, Row, coarse_scale
from hmsa_pipeline.pipeline.scoring.resampling.comparison import Difference, differences, two_sided_p

IMAGES = 20
NEAR = {"auroc": 1e-4, "auprc_success": 3e-4, "auprc_error": 2e-3, "ece": 1e-4, "fpr95": 4e-3, "auprc": 2e-3}
NEAR |= {
    "adaptive_ece": 1e-3,
    "smooth_ece": 1e-4,
    "mce": 1e-3,
    "risk_at_80_coverage": 5e-4,
    "coverage_at_5_risk": 3e-3,
}
NEAR |= dict.fromkeys(("aurc", "eaurc", "augrc"), 1e-4)
"""How far joined levels may move a figure of a resampling."""


def images(seed: int, sure: float = 20) -> list[PixelCounts]:
    """Counts of images that differ in how good and how sure they are."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(IMAGES):
        truth = draw.integers(0, 19, (48, 64)).astype(np.uint8)
        right = draw.random(truth.shape) < 0.6 + 0.35 * draw.random()
        label = np.where(right, truth, draw.integers(0, 19, truth.shape)).astype(np.uint8)
        chance = np.where(label == truth, draw.beta(sure, 1, truth.shape), draw.beta(4, 2, truth.shape))
        found.append(count_classes(label, (chance * 65535).astype(np.uint16), truth))
    return found


def outliers(seed: int) -> list[PixelCounts]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(IMAGES):
        mask = (draw.random((48, 64)) < 0.1).astype(np.uint8)
        chance = np.where(mask == 1, draw.beta(3, 2, mask.shape), draw.beta(8, 1, mask.shape))
        found.append(count_ood((chance * 65535).astype(np.uint16), mask))
    return found


def total(found: list[PixelCounts], times: np.ndarray | None = None) -> PixelCounts:
    """The sum of the counts, each as often as said."""
    times = np.ones(len(found), int) if times is None else times
    held = PixelCounts.none(found[0].ood, 19)
    for one, count in zip(found, times, strict=True):
        for _ in range(count):
            held += one
    return held


def drawn(found: dict[str, list[PixelCounts]], resampling: Resampling) -> Bootstrap:
    (first, *_) = found.values()
    bootstrap = Bootstrap(list(found), len(first), resampling)
    for each in zip(*found.values(), strict=True):
        bootstrap.add(dict(zip(found, each, strict=True)))
    return bootstrap


def times_drawn(images: int, replicates: int, seed: int) -> np.ndarray:
    """How often each resampling holds each image, (B, n): counts of one-hot images say so exactly."""
    found = []
    for number in range(images):
        one = PixelCounts.none(False, images)
        one.confusion[number, number], one.images = 1, 1
        found.append(one)
    bootstrap = Bootstrap(["a"], images, Resampling(replicates, seed))
    for one in found:
        bootstrap.add({"a": one})
    everything = PixelCounts.none(False, images)
    for one in found:
        everything += one
    bootstrap.replicates("a", everything)
    row = Row(everything)
    return np.array([row.unpack(sums, FINE).labelled for sums in bootstrap._sums["a"]]).astype(int)


def test_images_are_drawn_with_replacement() -> None:
    times = times_drawn(7, 4000, 3)
    assert (times.sum(1) == 7).all()
    assert times.mean(0) == pytest.approx(np.ones(7), abs=0.06)
    # Of a multinomial variable: variance 1 - 1/n, covariance -1/n.
    covariance = np.cov(times.T)
    assert np.diag(covariance) == pytest.approx(np.full(7, 6 / 7), abs=0.08)
    assert covariance[~np.eye(7, dtype=bool)] == pytest.approx(np.full(42, -1 / 7), abs=0.08)
    assert (times == times_drawn(7, 4000, 3)).all()
    assert (times != times_drawn(7, 4000, 4)).any()


@pytest.mark.parametrize("ood", [False, True])
def test_figures_of_resamplings_are_those_of_the_drawn_images(ood: bool) -> None:
    found = outliers(1) if ood else images(1)
    replicates = drawn({"a": found}, Resampling(40, 5)).replicates("a", total(found))
    assert replicates is not None
    times = times_drawn(IMAGES, 40, 5)
    for number in range(40):
        wanted = total(found, times[number]).figures()
        for name, values in replicates.items():
            near = NEAR.get(name, 1e-12)
            assert values[number] == pytest.approx(wanted[name], abs=near, nan_ok=True), name
    assert set(replicates) == set(wanted) - {"images", "pixels", "miou_classes"}


def test_the_best_f1_of_resamplings_is_near_that_of_the_drawn_images() -> None:
    found = outliers(4)
    bootstrap = drawn({"a": found}, Resampling(40, 5))
    replicates = bootstrap.replicates("a", total(found), figures=lambda sums: {"best_f1": best_f1(sums.levels)[0]})
    assert replicates is not None
    wanted = [best_f1(total(found, times).levels)[0] for times in times_drawn(IMAGES, 40, 5)]
    assert replicates["best_f1"] == pytest.approx(wanted, abs=2e-3)
    assert np.std(wanted) > 4e-3


def test_the_interval_of_a_mean_is_that_of_scipys_bootstrap() -> None:
    found = images(2)
    accuracy = np.array([one.figures()["accuracy"] for one in found])  # all images have as many labels
    replicates = drawn({"a": found}, Resampling(4000, 1)).replicates("a", total(found))
    assert replicates is not None
    low, high = interval(replicates["accuracy"])
    other = scipy.stats.bootstrap((accuracy,), np.mean, n_resamples=4000, method="percentile", rng=2)
    ends = other.confidence_interval
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=0.05 * (ends.high - ends.low))
    assert intervals(replicates)["accuracy"] == [low, high]


def test_joined_levels_are_as_narrow_as_they_say() -> None:
    widths = np.diff(np.append(STARTS, 65536))
    distance = np.minimum(STARTS, 65536 - STARTS - widths)
    assert (widths <= np.maximum(1, distance / 32)).all()
    assert set(np.round(np.linspace(0, 65536, 16)).astype(int)[:-1]) <= set(STARTS.tolist())
    every = total(images(3))
    scale = coarse_scale(every.levels)
    assert (np.diff(scale.sure) > 0).all()
    assert len(scale.bins) == 15


def test_the_bins_of_the_calibration_error_lose_nothing_of_all_images() -> None:
    every = total(images(4))
    row = Row(every)
    joined = row.unpack(row.pack(every), coarse_scale(every.levels))
    assert ece(joined.levels, joined.scale) == pytest.approx(ece(every.levels), abs=1e-12)


def test_pairs_are_compared_by_the_same_draws() -> None:
    """Where B is A with a constant gain, the difference does not vary, however much A does."""
    found = images(6)
    better = images(6)
    for one in better:  # one pixel of a hundred becomes right
        matrix = one.confusion
        wrong = matrix - np.diag(matrix.diagonal())
        moved = wrong // 2
        matrix -= moved
        matrix[np.diag_indices(19)] += moved.sum(1)
    both = drawn({"a": found, "b": better}, Resampling(500, 0))
    replicates = both.replicates("a", total(found)), both.replicates("b", total(better))
    figures = total(found).figures(), total(better).figures()
    compared = differences(figures, replicates)
    accuracy = compared["accuracy"]
    assert isinstance(accuracy, Difference)
    assert accuracy.value == pytest.approx(figures[0]["accuracy"] - figures[1]["accuracy"])
    assert accuracy.low < accuracy.value < accuracy.high < 0
    assert accuracy.p == pytest.approx(2 / 501)
    assert replicates[0] is not None
    alone = np.subtract(*interval(replicates[0]["accuracy"])[::-1])
    assert accuracy.high - accuracy.low < alone
    same = differences(figures, (replicates[0], replicates[0]))["auroc"]
    assert isinstance(same, Difference)
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)
    assert isinstance(compared["iou"], list)
    assert len(compared["iou"]) == 19


def test_p_is_where_the_interval_reaches_zero() -> None:
    values = np.arange(-5, 95) / 100 + 0.005  # five of a hundred are negative
    assert two_sided_p(values) == pytest.approx(2 * 6 / 101)
    assert two_sided_p(-values) == two_sided_p(values)
    assert two_sided_p(np.array([0.0, np.nan])) == 1.0
    assert math.isnan(two_sided_p(np.array([np.nan])))


def test_chance_differences_are_rarely_significant() -> None:
    """Two subjects of the same quality: p below 0.1 in about a tenth of the trials."""
    small = 0
    for trial in range(40):
        draw = np.random.default_rng(trial)
        subjects = {}
        for name in "ab":
            rows = []
            for hits in draw.binomial(100, 0.5 + 0.4 * draw.random(30)):
                one = PixelCounts.none(False, 19)
                one.confusion[0, 0], one.confusion[0, 1], one.images = hits, 100 - hits, 1
                rows.append(one)
            subjects[name] = rows
        bootstrap = drawn(subjects, Resampling(200, trial))
        replicates = [bootstrap.replicates(name, total(rows)) for name, rows in subjects.items()]
        figures = [total(rows).figures() for rows in subjects.values()]
        found = differences((figures[0], figures[1]), (replicates[0], replicates[1]))["accuracy"]
        assert isinstance(found, Difference)
        small += found.p < 0.1
    assert small <= 12


def test_an_image_that_failed_is_drawn_and_adds_nothing() -> None:
    found = images(7)
    bootstrap = Bootstrap(["a"], IMAGES, Resampling(100, 0))
    for number, one in enumerate(found):
        bootstrap.add(None if number == 3 else {"a": one})
    held = total([one for number, one in enumerate(found) if number != 3])
    replicates = bootstrap.replicates("a", held)
    assert replicates is not None
    low, high = interval(replicates["accuracy"])
    assert low < held.figures()["accuracy"] < high


def test_one_image_has_no_interval() -> None:
    one = images(8)[:1]
    assert drawn({"a": one}, Resampling(50, 0)).replicates("a", one[0]) is None
    assert intervals(None) == {}
    nothing = {"auroc": float("nan")}
    found = differences((nothing, nothing), (None, None))["auroc"]
    assert isinstance(found, Difference)
    assert math.isnan(found.p)


def test_a_figure_that_is_never_defined_has_no_ends() -> None:
    assert np.isnan(interval(np.full((10, 2), np.nan))).all()
    half = np.array([[np.nan, 1.0], [2.0, 1.0]])
    assert interval(half).tolist() == [[2.0, 1.0], [2.0, 1.0]]
