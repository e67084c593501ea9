"""Figures of BRAVO's subsets in 1,024 levels, against those that `evaluate` has of all 65,536."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hmsa_pipeline.pipeline.scoring import metrics
from hmsa_pipeline.pipeline.scoring.bravo_protocol import (
    MEANS,
    SUBSETS,
    WITH_INVALID,
    WITHOUT_CLASSES,
    figures_of,
    summary,
)
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts
from hmsa_pipeline.pipeline.search.bravo.bounds import mean_errors
from hmsa_pipeline.pipeline.search.counts import Totals
from hmsa_pipeline.pipeline.search.levels import EVEN, FINE_AT_TOP, LEVELS, LevelTable
from hmsa_pipeline.pipeline.search.objective import View, bravo_figures, figures


def coarse(counts: np.ndarray, table: LevelTable) -> np.ndarray:
    return np.stack([np.bincount(table.level_of, row, LEVELS) for row in counts]).astype(np.int64)


def drawn(seed: int, lowest: int = 0, pixels: int = 3000) -> dict[str, tuple[PixelCounts, PixelCounts]]:
    """Counts of each subset: of valid pixels, and of which pixels are invalid, by confidences from ``lowest``."""
    draw = np.random.default_rng(seed)
    found = {}
    for subset in SUBSETS:
        sure = 1.0 - draw.beta(0.4, 3, pixels) * draw.random()
        levels = np.maximum((sure * 65535).round().astype(np.uint16), lowest)
        right, valid = draw.random(pixels) < sure - 0.05, draw.random(pixels) < 0.6 + 0.35 * sure
        matrix = draw.integers(0, 50, (19, 19))
        found[subset] = (
            PixelCounts(False, matrix, metrics.level_counts(right[valid], levels[valid]), 1),
            PixelCounts(True, levels=metrics.level_counts(~valid, 65535 - levels), images=1),
        )
    return found


def views_of(counts: dict[str, tuple[PixelCounts, PixelCounts]], table: LevelTable = FINE_AT_TOP) -> list[View]:
    views = []
    for subset, (valid, invalid) in counts.items():
        for ood, one in ((False, valid), (True, invalid)):
            if subset not in (WITH_INVALID if ood else {*SUBSETS} - WITHOUT_CLASSES):
                continue
            matrix = one.confusion
            levels = coarse(one.levels[::-1, ::-1] if ood else one.levels, table)
            totals = Totals(levels, matrix.diagonal(), matrix.sum(0), matrix.sum(1), np.float64(0.0))
            views.append(View(totals, ood=ood, table=table, subset=subset))
    return views


@pytest.mark.parametrize("seed", range(8))
def test_the_means_are_those_of_evaluate_within_their_bound(seed: int) -> None:
    counts = drawn(seed)
    wanted = summary({subset: figures_of(subset, *both) for subset, both in counts.items()})
    views = views_of(counts)
    found, errors = figures(views, MEANS), mean_errors(views, MEANS)
    for name in MEANS:
        assert abs(found[name] - wanted[name]) <= errors[name] < 0.01
        assert found[name] == pytest.approx(wanted[name], abs=6e-4)
    every = summary(bravo_figures(views))
    assert every.keys() == {name for name in wanted if not name.endswith("_iou_valid")}
    for name, value in every.items():
        # 5 % of an image's few invalid pixels are a handful.
        assert value == pytest.approx(wanted[name], abs=1e-12 if "miou" in name else 6e-3), name


def moved(row: np.ndarray, *, up: bool) -> np.ndarray:
    """The same counts (65536,) with all pixels of a level at its highest confidence, or at its lowest."""
    ends = np.append(FINE_AT_TOP.cuts[1:], 65536) - 1 if up else FINE_AT_TOP.cuts
    found = np.zeros_like(row)
    found[ends] = np.bincount(FINE_AT_TOP.level_of, row, LEVELS)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_no_order_within_the_levels_leaves_the_bound(seed: int) -> None:
    counts = drawn(seed, pixels=400)
    for _, invalid in counts.values():
        invalid.levels[:, 65535 - 61500] += 300  # one level decides about the FPR
        invalid.levels[0, 0] += 300
    views = views_of(counts)
    found, errors = figures(views, MEANS), mean_errors(views, MEANS)
    moves = []
    for first, second in ((False, True), (True, False)):
        for valid, invalid in counts.values():
            valid.levels[:] = [moved(valid.levels[0], up=first), moved(valid.levels[1], up=second)]
            odd = invalid.levels[::-1, ::-1]
            invalid.levels[:] = np.stack([moved(odd[0], up=second), moved(odd[1], up=first)])[::-1, ::-1]
        figures_then = summary({subset: figures_of(subset, *both) for subset, both in counts.items()})
        for name in MEANS:
            difference = figures_then[name] - float(found[name])
            assert abs(difference) <= errors[name] + 1e-12
        moves.append(figures_then["ood_hmean"] - float(found["ood_hmean"]))
    assert moves[1] > 0.02


def test_average_precision_within_wide_levels_has_hardly_any_bias() -> None:
    draw, differences = np.random.default_rng(5), []
    for _ in range(300):
        levels = draw.integers(0, 20_000, 300).astype(np.uint16)
        counts = metrics.level_counts(draw.random(300) < 0.3, levels)
        view = View(Totals(coarse(counts, FINE_AT_TOP), *(np.zeros(19),) * 3, np.zeros(())), table=FINE_AT_TOP)
        differences.append(float(figures([view], ("auprc_success",))["auprc_success"]) - metrics.aupr(counts))
    assert abs(np.mean(differences)) < 1e-3
    assert np.std(differences) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_where_every_level_has_one_confidence_nothing_is_lost(seed: int) -> None:
    counts = drawn(seed, lowest=65536 - 128)
    wanted = summary({subset: figures_of(subset, *both) for subset, both in counts.items()})
    every = summary(bravo_figures(views_of(counts)))
    for name, value in every.items():
        assert value == pytest.approx(wanted[name], abs=1e-12), name
    errors = mean_errors(views_of(counts), ["ood_hmean"])
    assert errors["ood_hmean"] == pytest.approx(0.0, abs=1e-12)


def test_the_highest_confidence_has_a_level_of_its_own() -> None:
    """More than 5 % of what is invalid has it: the FPR is 1, and so the index is 0. Just below it is not."""
    indices = {}
    for below in (0, 3):
        counts = drawn(0)
        for _, invalid in counts.values():
            invalid.levels[1, below] += invalid.levels[1].sum() // 10
            invalid.levels[0, 0] += 200
        wanted = summary({subset: figures_of(subset, *both) for subset, both in counts.items()})["bravo_index"]
        views = views_of(counts)
        indices[below] = figures(views, MEANS)["bravo_index"]
        assert abs(indices[below] - wanted) <= mean_errors(views, MEANS)["bravo_index"] + 1e-15
        assert mean_errors(views, MEANS)["bravo_index"] < 2e-3
        assert figures(views_of(counts, EVEN), MEANS)["bravo_index"] == 0.0
    assert indices[0] == 0.0 < 0.05 < indices[3]


def test_figures_have_the_axes_of_the_counts_and_one_that_is_not_defined_undoes_its_means() -> None:
    first, second = views_of(drawn(1)), views_of(drawn(2))
    both = [
        one._replace(totals=Totals(*(np.stack(pair) for pair in zip(one.totals, other.totals, strict=True))))
        for one, other in zip(first, second, strict=True)
    ]
    together = figures(both, MEANS)
    for number, alone in enumerate((first, second)):
        for name, value in figures(alone, MEANS).items():
            assert together[name][number] == pytest.approx(float(value), abs=1e-13)
    lacking = [
        one._replace(totals=one.totals._replace(levels=one.totals.levels * [[0], [1]])) if one.ood else one
        for one in first
    ]
    found = figures(lacking, MEANS)
    assert math.isnan(found["bravo_index"])
    assert math.isnan(found["ood_hmean"])
    assert found["semantic_hmean"] == figures(first, MEANS)["semantic_hmean"]
    assert math.isnan(mean_errors(lacking, MEANS)["bravo_index"])


@pytest.mark.parametrize("table", [EVEN, FINE_AT_TOP])
def test_tables_of_levels_lie_within_the_bins(table: LevelTable) -> None:
    assert table.level_of[[0, -1]].tolist() == [0, LEVELS - 1]
    assert set(np.diff(table.level_of).tolist()) == {0, 1}
    edges = np.round(np.linspace(0, 65536, 16)).astype(int)[1:-1]
    assert (table.level_of[edges] > table.level_of[edges - 1]).all()
    assert table.level_of[edges].tolist() == table.scale.bins[1:].tolist()
    assert table.ece_error < 0.0009
    counted = np.bincount(table.level_of)
    assert (table.alone == (counted == 1)).all()
    assert table.alone[-128:].all() == (table is FINE_AT_TOP)
