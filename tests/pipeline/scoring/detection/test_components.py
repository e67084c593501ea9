"""Components: figures that the toolkit of SegmentMeIfYouCan gave, and a slow version that goes pixel by pixel."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hmsa_pipeline.pipeline.scoring.detection.components import (
    ANOMALIES,
    OBSTACLES,
    ComponentCounts,
    LeastSizes,
    best_f1,
    count_components,
    label_components,
)
from hmsa_pipeline.pipeline.scoring.metrics import level_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from .... import golden
from ....slow_components import flooded, slow_figures

TOOLKIT = json.loads((golden.DATA / "smiyc_components.json").read_text())
"""Figures of `frame` 0 to 11, by road-anomaly-benchmark (1c7804e) with scipy 1.14 and NumPy 1.26: ``MetricSegment``
of both tracks with a threshold of (level - 0.5) / 65536, and the best F1 of ``MetricPixelClassification``."""


def smooth(draw: np.random.Generator, height: int, width: int, size: int) -> np.ndarray:
    coarse = draw.random((height // size + 2, width // size + 2))
    y, x = np.arange(height) / size, np.arange(width) / size
    i, j = y.astype(int), x.astype(int)
    a, b = (y - i)[:, None], (x - j)[None]
    top = coarse[i][:, j] * (1 - b) + coarse[i][:, j + 1] * b
    low = coarse[i + 1][:, j] * (1 - b) + coarse[i + 1][:, j + 1] * b
    return top * (1 - a) + low * a


def frame(seed: int, height: int = 96, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Levels of a score (H, W) uint16 and a mask (H, W) uint8 of 0, 1 and 255."""
    draw = np.random.default_rng(seed)
    blobs = smooth(draw, height, width, (6, 12, 24)[seed % 3])
    mask = (blobs > np.quantile(blobs, 0.85)).astype(np.uint8)
    score = 0.6 * blobs + 0.3 * smooth(draw, height, width, 5) + 0.1 * draw.random((height, width))
    mask[smooth(draw, height, width, 10) > 0.75] = 255
    return np.floor(score * 65536).astype(np.uint16), mask


@pytest.mark.parametrize("name", [name for name in TOOLKIT if not name.startswith("pixels")])
def test_the_figures_are_those_of_the_toolkit(name: str) -> None:
    track, level = name.split()
    total = ComponentCounts()
    for seed in range(12):
        score, mask = frame(seed)
        total += count_components(score >= int(level), mask, {"anomaly": ANOMALIES, "obstacle": OBSTACLES}[track])
    wanted = TOOLKIT[name]
    for figure, value in total.figures().items():
        assert value == pytest.approx(math.nan if wanted[figure] is None else wanted[figure], abs=1e-12, nan_ok=True)
    counted = {"tp_25": total.hits[0], "fp_25": total.false[0], "tp_50": total.hits[5], "fp_50": total.false[5]}
    assert counted == {what: wanted[what] for what in counted}


def test_the_best_f1_is_that_of_the_toolkit_where_it_looks_at_every_score() -> None:
    pairs = [frame(seed, 16, 24) for seed in range(12)]
    counts = sum(level_counts(mask[mask < 255] == 1, score[mask < 255]) for score, mask in pairs)
    found, level = best_f1(np.asarray(counts))
    assert found == pytest.approx(TOOLKIT["pixels 16x24"]["best_f1"], abs=1e-12)
    score, truth = (np.concatenate([pair[i][pair[1] < 255] for pair in pairs]) for i in (0, 1))
    predicted = score >= level
    hit = (predicted & (truth == 1)).sum()
    assert found == pytest.approx(2 * hit / (predicted.sum() + (truth == 1).sum()), abs=1e-12)


# ------------------------------------------------------------------ the slow version


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    share=st.sampled_from([0.02, 0.3, 0.6, 1.0]),
    sizes=st.tuples(st.sampled_from([1, 3, 8]), st.sampled_from([1, 4])),
)
def test_random_maps_have_the_figures_of_the_slow_version(
    seed: int, shape: tuple[int, int], share: float, sizes: tuple[int, int]
) -> None:
    draw, least = np.random.default_rng(seed), LeastSizes(*sizes)
    pairs = []
    total = ComponentCounts()
    for _ in range(3):
        mask = draw.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.55, 0.35, 0.1])
        pairs.append(((draw.random(shape) < share) | ((mask == 1) & (draw.random(shape) < 0.7)), mask))
        total += count_components(*pairs[-1], least)
    assert total.figures() == pytest.approx(slow_figures(pairs, least), abs=1e-9, nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.tuples(st.integers(1, 40), st.integers(1, 40)), share=st.floats(0.0, 1.0))
def test_areas_are_those_that_flood(seed: int, shape: tuple[int, int], share: float) -> None:
    marked = np.random.default_rng(seed).random(shape) < share
    labels, count = label_components(marked)
    areas = sorted(flooded(marked), key=min)
    assert (labels.shape, labels.dtype, count) == (shape, np.int32, len(areas))
    wanted = np.zeros(shape, int)
    for number, area in enumerate(areas, 1):
        wanted[tuple(np.array(sorted(area)).T)] = number
    np.testing.assert_array_equal(labels, wanted)


def test_a_spiral_is_one_area() -> None:
    """Its arms meet in the last rows only, after many of them had numbers of their own."""
    marked = np.zeros((101, 101), bool)
    for ring in range(0, 50, 2):
        marked[ring, ring : 101 - ring] = marked[100 - ring, ring : 101 - ring] = True
        marked[ring : 101 - ring, 100 - ring] = marked[ring + 2 : 101 - ring, ring] = True
        marked[ring + 2, ring : ring + 3] = True
    labels, count = label_components(marked)
    assert count == len(flooded(marked))
    assert ((labels > 0) == marked).all()


def test_one_component_that_covers_two_of_the_truth_is_not_blamed_for_the_other() -> None:
    mask = np.zeros((10, 30), np.uint8)
    mask[2:6, 2:8] = mask[2:6, 12:18] = 1
    found = count_components(np.pad(np.ones((4, 16), bool), ((2, 4), (2, 12))), mask, LeastSizes(1, 1)).figures()
    # Each has 24 pixels, of which all are found, and 16 between them belong to neither.
    assert found["siou"] == pytest.approx(24 / 40)
    assert found["ppv"] == pytest.approx(48 / 64)


def test_without_positives_there_is_no_best_f1() -> None:
    counts = np.zeros((2, 65536), np.int64)
    counts[0, 5] = 3
    value, level = best_f1(counts)
    assert math.isnan(value)
    assert level == 65535
