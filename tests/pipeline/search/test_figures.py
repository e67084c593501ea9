"""Levels, figures, folds and costs of a search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.errors import HmsaError
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.scoring import metrics
from hmsa_pipeline.pipeline.scoring.averages import PLAIN, Average
from hmsa_pipeline.pipeline.scoring.figures import calibration_errors, selective
from hmsa_pipeline.pipeline.scoring.figures.names import LISTS, LOWER_IS_BETTER, NUMBERS
from hmsa_pipeline.pipeline.search.cost import member_costs
from hmsa_pipeline.pipeline.search.counts import Counts, Totals, weighted
from hmsa_pipeline.pipeline.search.folds import divide
from hmsa_pipeline.pipeline.search.levels import EVEN, LEVELS, coarse_ece, tied_pairs
from hmsa_pipeline.pipeline.search.nested import best, interval
from hmsa_pipeline.pipeline.search.objective import METRICS, View, figures, read_objective
from hmsa_pipeline.pipeline.search.record import verdict_words
from hmsa_pipeline.pipeline.storage.run_record import record_run


def fine(seed: int, pixels: int = 4000) -> np.ndarray:
    """Counts (2, 65536) of confidences that are mostly high, and of right pixels mostly where they are."""
    draw = np.random.default_rng(seed)
    confidence = (draw.beta(5, 1 + seed % 3, pixels) * 65535).astype(np.uint16)
    return metrics.level_counts(draw.random(pixels) < confidence / 65535, confidence)


def coarse(counts: np.ndarray) -> np.ndarray:
    """The same counts in 1,024 levels."""
    return np.stack([np.bincount(EVEN.level_of, row, LEVELS) for row in counts]).astype(np.int64)


def totals(levels: np.ndarray, matrix: np.ndarray | None = None) -> Totals:
    matrix = np.zeros((19, 19), np.int64) if matrix is None else matrix
    sums = np.append(6.0, np.tile([3.0, -1.0, *[0.0] * 13], 19))
    return Totals(levels, matrix.diagonal(), matrix.sum(0), matrix.sum(1), np.float64(12.0), sums)


# ------------------------------------------------------------------ levels


def test_levels_ascend_and_lie_within_the_bins_of_the_calibration_error() -> None:
    assert EVEN.level_of[[0, -1]].tolist() == [0, LEVELS - 1]
    assert set(np.diff(EVEN.level_of).tolist()) == {0, 1}
    edges = np.round(np.linspace(0, 65536, 16)).astype(int)[1:-1]
    assert (EVEN.level_of[edges] > EVEN.level_of[edges - 1]).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_calibration_error_is_within_its_bound(seed: int) -> None:
    counts = fine(seed)
    assert coarse_ece(coarse(counts)) == pytest.approx(metrics.ece(counts), abs=EVEN.ece_error)
    assert EVEN.ece_error < 0.0009
    assert math.isnan(coarse_ece(np.zeros((2, LEVELS))))


@pytest.mark.parametrize("seed", range(6))
def test_the_area_under_the_curve_is_within_its_bound(seed: int) -> None:
    counts = fine(seed)
    bound = tied_pairs(coarse(counts))
    assert 0 < bound < 0.005
    assert abs(metrics.auroc(coarse(counts)) - metrics.auroc(counts)) <= bound
    assert math.isnan(tied_pairs(np.zeros((2, LEVELS))))


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_evaluate(seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix = draw.integers(0, 9, (19, 19)) * (draw.random((19, 19)) < 0.3)
    matrix[:, 4], matrix[4], matrix[7] = 0, 0, 0  # neither labelled nor predicted, and only predicted
    levels = coarse(fine(seed))
    average = (PLAIN, Average("labelled", "labelled"), Average(classes=(0, 1, 2, 7)), PLAIN)[seed]
    wanted = {
        "miou": metrics.mean_iou(torch.from_numpy(matrix), average),
        "accuracy": matrix.diagonal().sum() / matrix.sum(),
        "auroc": metrics.auroc(levels),
        "auprc_success": metrics.aupr(levels),
        "auprc_error": metrics.aupr(metrics.errors_first(levels)),
        "fpr95": metrics.fpr95(levels),
    }
    counted = np.isin(np.arange(19), [i for i in range(19) if average.counted(torch.from_numpy(matrix))[i]])
    for name, whole in (("mean_precision", matrix.sum(0)), ("mean_recall", matrix.sum(1))):
        ratios = [matrix[i, i] / whole[i] for i in np.flatnonzero(counted & (whole > 0))]
        wanted[name] = np.mean(ratios)
    found = figures([View(totals(levels, matrix), average)], tuple(METRICS))
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert found["nll"] == pytest.approx(12.0 / matrix.sum())
    assert found["brier"] == pytest.approx(6.0 / matrix.sum())
    assert found["classwise_ece"] == pytest.approx(4.0 / matrix.sum())
    assert not {"ood_auroc", "ood_auprc", "ood_fpr95"} & found.keys()


@pytest.mark.parametrize("seed", range(4))
def test_figures_of_1024_levels_are_near_those_of_65536(seed: int) -> None:
    both = [fine(seed, 100_000), fine(seed + 4, 100_000)]
    found = figures([View(totals(np.stack([coarse(one) for one in both])))], tuple(METRICS))
    for i, counts in enumerate(both):
        wanted = {
            "adaptive_ece": (calibration_errors.adaptive_ece(counts), EVEN.ece_error),
            "smooth_ece": (calibration_errors.smooth_ece(counts), 1e-4),
            "mce": (calibration_errors.mce(counts), EVEN.ece_error),
            "aurc": (selective.aurc(counts), 1e-4),
            "eaurc": (selective.eaurc(counts), 1e-4),
            "augrc": (selective.augrc(counts), 1e-4),
            "risk_at_80_coverage": (selective.risk_at_coverage(counts), 2e-4),
            "coverage_at_5_risk": (selective.coverage_at_risk(counts), 2e-3),
        }
        for name, (value, error) in wanted.items():
            assert found[name].shape == (2,)
            assert found[name][i] == pytest.approx(value, abs=error), name


def test_what_is_out_of_distribution_is_found_by_low_confidence() -> None:
    levels = coarse(fine(1))
    found = figures([View(totals(levels), ood=True)], tuple(METRICS))
    low = metrics.errors_first(levels)
    assert found == {
        "ood_auroc": pytest.approx(metrics.auroc(low), abs=1e-12),
        "ood_auprc": pytest.approx(metrics.aupr(low), abs=1e-12),
        "ood_fpr95": pytest.approx(metrics.fpr95(low), abs=1e-12),
    }


def test_figures_of_several_sets_are_their_mean_and_those_without_pixels_are_left_out() -> None:
    one, other, none = (totals(coarse(fine(seed))) for seed in (0, 1, 2))
    assert figures([View(one)], ("aurc",))["aurc"].shape == ()
    none = totals(np.zeros_like(none.levels))
    alone = [figures([View(total)], ("auroc",))["auroc"] for total in (one, other)]
    assert figures([View(one), View(other), View(none)], ("auroc",))["auroc"] == pytest.approx(np.mean(alone))
    assert np.isnan(figures([View(none)], ("auroc", "fpr95"))["fpr95"])


def test_resamples_count_groups_as_often_as_they_are_drawn() -> None:
    counts = Counts.none(1, 3, 19)
    for group in range(3):
        counts.levels[0, group] = coarse(fine(group))
        counts.labelled[group, 2] = group + 1
    drawn = weighted(counts.of(np.zeros(3, np.int64)), np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    assert np.array_equal(drawn.levels[0], 2 * counts.levels[0, 0] + counts.levels[0, 2])
    assert np.array_equal(drawn.levels[1], counts.levels[0].sum(0))
    assert drawn.labelled[:, 2].tolist() == [5.0, 6.0]
    assert np.array_equal(counts.total(np.array([True, False, True])).levels[0], counts.levels[0, [0, 2]].sum(0))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("miou", {"miou": 1.0}),
        ("ece", {"ece": -1.0}),
        ("miou, ece", {"miou": 1.0, "ece": -1.0}),
        ("miou:2,nll:-0.5", {"miou": 2.0, "nll": -0.5}),
    ],
)
def test_what_is_searched_for(text: str, weights: dict[str, float]) -> None:
    assert read_objective(text).weights == weights


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mio", "mio is no metric"),
        ("miou,", "--by miou,: metric 2 has no name; write it"),
        (",miou", "--by ,miou: metric 1 has no name; write it"),
        ("miou:1,,ece", "--by miou:1,,ece: metric 2 has no name; write it"),
        ("", "--by : metric 1 has no name; write it"),
        (":1", "--by :1: metric 1 has no name; write it"),
        ("arc", "arc is no metric; did you mean 'aurc'"),
        (
            "boundary_miou",
            "boundary_miou is counted at pixels and objects.*search by miou, and score the choice with",
        ),
        ("category_miou", "category_miou needs which class was taken for which"),
        ("auprc", "auprc is of what is out of distribution; search by ood_auprc, or"),
        ("iou", "iou is one figure for each class.*search by miou, mean_precision or mean_recall"),
        ("miou,miou", "names miou twice"),
        ("miou:x", "x is no weight of miou"),
        ("miou:", "nothing is no weight"),
        ("miou:0", "0 is no weight"),
        ("miou:nan", "nan is no weight"),
    ],
)
def test_what_cannot_be_searched_for(text: str, said: str) -> None:
    with pytest.raises(HmsaError, match=said):
        read_objective(text)


def test_each_figure_of_evaluate_can_be_searched_for_or_has_a_reason() -> None:
    for name in (*NUMBERS, *LISTS):
        try:
            weights = read_objective(name).weights
        except HmsaError as error:
            assert "is no metric" not in str(error) and "search by" in str(error)
        else:
            assert weights == {name: -1.0 if name in LOWER_IS_BETTER else 1.0}


def test_lower_is_better_of_some() -> None:
    found: Any = {"ece": np.array([0.1, 0.2]), "miou": np.array([0.5, 0.9])}
    assert read_objective("ece").score(found).argmax() == 0
    assert read_objective("miou,ece").score(found).tolist() == pytest.approx([0.4, 0.7])


# ------------------------------------------------------------------ folds and intervals


@pytest.mark.parametrize("groups", [1, 40, 1000])
def test_images_are_dealt_evenly_and_groups_never_span_folds(groups: int) -> None:
    images = [1, 23, 4]
    found = divide(images, 4, groups, seed=3)
    folds = [one.folds[list(one.of_image)] for one in found]
    assert [len(one) for one in folds] == images
    per_fold = np.bincount(np.concatenate(folds), minlength=4)
    assert per_fold.tolist() == [7, 7, 7, 7]
    for one, number in zip(found, images, strict=True):
        assert sorted({*one.of_image}) == list(range(len(one.folds)))
        sizes = np.bincount(one.of_image)
        if groups == 1000:
            assert sizes.max() == 1
        elif groups == 1:
            assert len(one.folds) == min(4, number)
        assert np.ptp(sizes[one.folds == 0]) <= 1 if (one.folds == 0).any() else True


def test_the_seed_changes_the_folds() -> None:
    first, again, other = (divide([30], 5, 1000, seed)[0].of_image for seed in (0, 0, 1))
    assert first == again != other


def test_an_interval_leaves_out_what_is_not_defined() -> None:
    drawn = np.append(np.linspace(0.0, 1.0, 1001), math.nan)
    found = interval(0.5, drawn)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert math.isnan(interval(math.nan, drawn).low)


def test_of_equal_scores_the_cheapest_and_then_the_first_is_best() -> None:
    scores, costs = np.array([1.0, 2.0, 2.0, 2.0]), (1.0, 3.0, 2.0, 2.0)
    assert best(scores, lambda i: (costs[i], i)) == 2


@pytest.mark.parametrize(
    ("low", "high", "better", "words"),
    [
        (0.1, 0.2, "higher", "better than"),
        (0.1, 0.2, "lower", "worse than"),
        (-0.2, -0.1, "higher", "worse than"),
        (-0.2, -0.1, "lower", "better than"),
        (-0.1, 0.1, "lower", "not told apart from"),
        (0.0, 0.0, "higher", "not told apart from"),
        (None, None, "lower", "not told apart from"),
        (math.nan, math.nan, "lower", "not told apart from"),
    ],
)
def test_an_interval_in_words(low: float | None, high: float | None, better: str, words: str) -> None:
    assert verdict_words({"low": low, "high": high}, better) == words


# ------------------------------------------------------------------ costs


def test_seconds_are_those_of_the_run_record(tmp_path: Path) -> None:
    members = [Member.model_validate({"name": name, "arch": "external"}) for name in ("ant", "bee")]
    with pytest.raises(HmsaError, match=r"run.json has no time of ant"):
        member_costs(tmp_path, members, "seconds")
    for subject, done, seconds in (("a/ant", 4, 2.0), ("b/ant", 6, 1.0), ("a/bee", 5, 5.0), ("b/bee", 0, 9.0)):
        record_run(tmp_path, "dump", subject, {}, failed={}, done=done, seconds=seconds)
    cost = member_costs(tmp_path, members, "seconds")
    assert cost.of_member == pytest.approx((0.3, 1.0))
    assert cost.of((1.0, 2.0)) == pytest.approx(1.3)
    assert member_costs(tmp_path, members, "members").of((0.0, 2.0)) == 1.0
    with pytest.raises(HmsaError, match="--cost hours: is no cost"):
        member_costs(tmp_path, members, "hours")
