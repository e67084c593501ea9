"""Counting all combinations at once, against fusing each one and counting with NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.config.manifest import FusionFunctions
from hmsa_pipeline.pipeline.fusion.fuse import fuse, quantise
from hmsa_pipeline.pipeline.fusion.member_sums import LogitMap
from hmsa_pipeline.pipeline.search import count_pixels
from hmsa_pipeline.pipeline.search.combinations import RunningSums, Weights, members_of, subsets
from hmsa_pipeline.pipeline.search.count_fused import FusedCounter, ProbabilityCounter
from hmsa_pipeline.pipeline.search.count_pixels import PixelCounter
from hmsa_pipeline.pipeline.search.counts import Counts
from hmsa_pipeline.pipeline.search.levels import EVEN, LEVELS
from hypothesis import strategies as st

CLASSES = 5
TINY = float(np.finfo(np.float32).tiny)


def drawn(seed: int, members: int, pixels: int, alike: float, scale: float = 6.0) -> list[torch.Tensor]:
    """Logits (C, P) float16 of members that share a part of what they say; some of them tie exactly."""
    draw = np.random.default_rng(seed)
    common = draw.normal(0, scale, (CLASSES, pixels))
    own = draw.normal(0, scale, (members, CLASSES, pixels))
    logits = (alike * common + (1 - alike) * own).astype(np.float16)
    tied = draw.random((members, pixels)) < 0.2
    logits[:, 3][tied] = logits[:, 1][tied]
    return list(torch.from_numpy(logits))


def plainly(
    logits: Sequence[torch.Tensor],
    labels: np.ndarray,
    weights: Weights,
    temperatures: Sequence[float],
    functions: FusionFunctions,
    ood: bool,
    maps: Sequence[LogitMap | None] = (),
) -> dict[str, np.ndarray]:
    """One combination, fused by `fuse` and counted pixel by pixel; its likelihood in double precision."""
    chosen = members_of(weights)
    fused = fuse(
        [logits[i] for i in chosen],
        [weights[i] for i in chosen],
        [temperatures[i] for i in chosen],
        [maps[i] for i in chosen] if maps else (),
        label=functions.label,
        confidence=functions.confidence,
    )
    said, levels = fused.label.numpy(), EVEN.level_of[quantise(fused.confidence).numpy()]
    found = {name: np.zeros(CLASSES, np.int64) for name in ("hits", "predicted", "labelled")}
    counted = np.zeros((2, LEVELS), np.int64)
    loss = 0.0
    shares = [weights[i] / sum(weights) for i in chosen]
    changed = [logits[i].double() for i in range(len(logits))]
    for z, change in zip(changed, maps, strict=False):
        if change is not None:
            change(z)
    scaled = [changed[i] / temperatures[i] for i in chosen]
    if functions.label == "mean-logit":
        mean = torch.stack([share * z for share, z in zip(shares, scaled, strict=True)]).sum(0).softmax(0)
    else:
        mean = torch.stack([share * z.softmax(0) for share, z in zip(shares, scaled, strict=True)]).sum(0)
    for pixel, truth in enumerate(labels.tolist()):
        right = truth == 0 if ood else truth == said[pixel]
        counted[int(right), levels[pixel]] += 1
        if not ood:
            found["predicted"][said[pixel]] += 1
            found["labelled"][truth] += 1
            found["hits"][truth] += right
            loss -= math.log(max(float(mean[truth, pixel]), TINY))
    return found | {"levels": counted, "nll": np.float64(loss)}


def same(counts: Counts, number: int, wanted: dict[str, np.ndarray], *, nll: bool) -> None:
    assert np.array_equal(counts.levels[number, 0], wanted["levels"])
    assert np.array_equal(counts.hits[number, 0], wanted["hits"])
    assert np.array_equal(counts.predicted[number, 0], wanted["predicted"])
    assert np.array_equal(counts.labelled[0], wanted["labelled"])
    assert counts.nll[number, 0] == pytest.approx(wanted["nll"] if nll else 0.0, rel=1e-4, abs=1e-4)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 10**6),
    members=st.integers(1, 4),
    pixels=st.integers(1, 120),
    alike=st.sampled_from([0.0, 0.7, 1.0]),
    scale=st.sampled_from([0.05, 1.0, 6.0, 80.0]),
    ood=st.booleans(),
    data=st.data(),
)
def test_every_combination_is_counted_to_the_bits_of_fuse(
    seed: int, members: int, pixels: int, alike: float, scale: float, ood: bool, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=members, max_size=members))
    temperatures = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=members, max_size=members))
    logits = drawn(seed, members, pixels, alike, scale)
    labels = np.random.default_rng(seed).integers(0, 2 if ood else CLASSES, pixels).astype(np.uint8)
    combinations = subsets(weights)
    counter = PixelCounter(combinations, temperatures, CLASSES, ood=ood, nll=not ood)
    half = pixels // 2
    for part in (slice(0, half), slice(half, pixels)):
        if len(labels[part]):
            counter.add([one[:, part] for one in logits], labels[part])
    counts = counter.finish()
    for number, one in enumerate(combinations):
        wanted = plainly(logits, labels, one, temperatures, FusionFunctions(), ood)
        same(counts, number, wanted, nll=not ood)


@pytest.mark.parametrize("label", ["mean-softmax", "mean-logit"])
def test_calibrated_members_are_counted_as_they_are_fused(label: Any) -> None:
    def change(z: torch.Tensor) -> None:
        z.mul_(torch.linspace(0.5, 1.5, CLASSES).to(z)[:, None]).add_(0.25)

    functions = FusionFunctions(label=label)
    logits, heat, maps = drawn(5, 3, 150, 0.5), (1.0, 1.5, 0.8), (None, change, change)
    labels = np.random.default_rng(5).integers(0, CLASSES, 150).astype(np.uint8)
    combinations = subsets((1.0, 1.0, 2.0))
    fast = PixelCounter(combinations, heat, CLASSES, maps, nll=True)
    slow = FusedCounter(combinations, heat, functions, CLASSES, maps, nll=True)
    for counter in (fast, slow) if label == "mean-softmax" else (slow,):
        counter.add(logits, labels)
        counts = counter.finish()
        for number, one in enumerate(combinations):
            same(counts, number, plainly(logits, labels, one, heat, functions, False, maps), nll=True)


@pytest.mark.parametrize("label", ["mean-softmax", "mean-logit"])
def test_probabilities_of_all_classes_are_summed_of_every_combination(label: str) -> None:
    def change(z: torch.Tensor) -> None:
        z.mul_(torch.linspace(0.5, 1.5, CLASSES).to(z)[:, None]).add_(0.25)

    pixels = 16384 + 77
    logits, heat, maps = drawn(6, 3, pixels, 0.5), (1.0, 1.5, 0.8), (None, change, None)
    labels = np.random.default_rng(6).integers(0, CLASSES, pixels).astype(np.uint8)
    combinations = subsets((1.0, 1.0, 2.0))
    counter = ProbabilityCounter(combinations, heat, label, CLASSES, maps)
    for part in (slice(0, 100), slice(100, pixels)):
        counter.add([one[:, part] for one in logits], labels[part])
    counts = counter.finish()
    assert not counts.levels.any() and not counts.labelled.any()
    scaled = [one.double() for one in logits]
    change(scaled[1])
    scaled = [z / t for z, t in zip(scaled, heat, strict=True)]
    for number, weights in enumerate(combinations):
        shares = [weight / sum(weights) for weight in weights]
        planes = scaled if label == "mean-logit" else [z.softmax(0) for z in scaled]
        p = sum(share * plane for share, plane in zip(shares, planes, strict=True) if share)
        p = (p.softmax(0) if label == "mean-logit" else p).numpy()  # type: ignore[union-attr]
        own = np.eye(CLASSES)[labels].T
        assert counts.probabilities[number, 0, 0] == pytest.approx(((p - own) ** 2).sum(), rel=1e-5)
        gaps = np.zeros((CLASSES, 15))
        for c in range(CLASSES):
            np.add.at(gaps[c], np.minimum((p[c] * 15).astype(int), 14), own[c] - p[c])
        found = counts.probabilities[number, 0, 1:].reshape(CLASSES, 15)
        # A probability that is rounded across the end of a bin moves a whole pixel.
        np.testing.assert_allclose(found.sum(1), gaps.sum(1), atol=0.02)
        assert np.median(np.abs(found - gaps)) < 0.01
        assert np.abs(found - gaps).max() < 3.0


def test_rounds_of_several_sizes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(0, 3, 5000, 0.6), np.random.default_rng(0).integers(0, CLASSES, 5000).astype(np.uint8)
    counted = []
    for pixels in (64, 2**20):
        monkeypatch.setattr(count_pixels, "_PLANE_PIXELS", pixels)
        counter = PixelCounter(subsets((1.0, 1.0, 1.0)), (1.0, 1.0, 1.0), CLASSES)
        counter.add(logits, labels)
        counted.append(counter.finish())
    for mine, other in zip(vars(counted[0]).values(), vars(counted[1]).values(), strict=True):
        assert np.array_equal(mine, other)


@pytest.mark.parametrize(
    ("label", "confidence"),
    [("mean-softmax", "entropy"), ("mean-logit", "mean-logit"), ("max-softmax", "energy"), ("min-softmax", "rba")],
)
def test_other_functions_are_counted_as_fuse_has_them(label: Any, confidence: Any) -> None:
    functions = FusionFunctions(label=label, confidence=confidence)
    logits, heat = drawn(3, 3, 150, 0.5), (1.0, 1.5, 0.8)
    labels = np.random.default_rng(3).integers(0, CLASSES, 150).astype(np.uint8)
    combinations = subsets((1.0, 1.0, 1.0))
    is_likelihood = label.startswith("mean")
    counter = FusedCounter(combinations, heat, functions, CLASSES, nll=is_likelihood)
    counter.add(logits, labels)
    counts = counter.finish()
    for number, one in enumerate(combinations):
        same(counts, number, plainly(logits, labels, one, heat, functions, False), nll=is_likelihood)


def test_labels_of_what_is_out_of_distribution_have_no_classes() -> None:
    logits = drawn(4, 2, 90, 0.5)
    labels = np.random.default_rng(4).integers(0, 2, 90).astype(np.uint8)
    functions = FusionFunctions(confidence="entropy")
    counter = FusedCounter(subsets((1.0, 1.0)), (1.0, 1.0), functions, CLASSES, ood=True)
    counter.add(logits, labels)
    same(counter.finish(), 2, plainly(logits, labels, (1.0, 1.0), (1.0, 1.0), functions, True), nll=False)


@pytest.mark.parametrize("functions", [FusionFunctions(), FusionFunctions(confidence="entropy")])
def test_logits_that_are_not_finite_are_an_error(functions: FusionFunctions) -> None:
    logits = drawn(0, 2, 70, 0.5)
    logits[1][2, 5] = math.nan
    make: Any = PixelCounter if functions == FusionFunctions() else FusedCounter
    more = () if make is PixelCounter else (functions,)
    with pytest.raises(StoreError, match="not finite"):
        make(subsets((1.0, 1.0)), (1.0, 1.0), *more, CLASSES).add(logits, np.zeros(70, np.uint8))


def test_many_classes_are_counted_too() -> None:
    draw = np.random.default_rng(1)
    logits = [torch.from_numpy(draw.normal(0, 3, (150, 40)).astype(np.float16)) for _ in range(2)]
    labels = draw.integers(0, 150, 40).astype(np.uint8)
    counter = PixelCounter([(1.0, 1.0)], (1.0, 1.0), 150)
    counter.add(logits, labels)
    said = fuse(logits, (1.0, 1.0)).label.numpy()
    assert np.array_equal(counter.finish().predicted[0, 0], np.bincount(said, minlength=150))


# ------------------------------------------------------------------ the order of the sums


def test_subsets_are_all_there_and_the_smallest_first() -> None:
    found = subsets((1.0, 2.0, 1.0))
    assert [members_of(one) for one in found] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert found[-1] == (1.0, 2.0, 1.0)
    assert len(subsets((1.0,) * 7)) == 127
    assert len(subsets((1.0,) * 7, 2)) == 28


def test_sums_that_begin_alike_are_added_once() -> None:
    assert RunningSums(subsets((1.0,) * 7)).additions == 247
    assert sum(len(members_of(one)) for one in subsets((1.0,) * 7)) == 448


def test_sums_are_those_of_the_members_one_by_one() -> None:
    planes = torch.from_numpy(np.random.default_rng(0).random((4, 3, 64), np.float32))
    combinations = [*subsets((1.0, 0.5, 3.0, 1.0)), (2.0, 0.0, 1.0, 0.0)]
    seen = {}
    for number, total in RunningSums(combinations).visit(planes):
        seen[number] = total.clone()
    assert sorted(seen) == list(range(len(combinations)))
    for number, weights in enumerate(combinations):
        whole = sum(weights)
        wanted = None
        for plane, weight in zip(planes, weights, strict=True):
            if weight:
                share = weight / whole
                wanted = plane * share if wanted is None else wanted.add_(plane, alpha=share)
        assert wanted is not None
        assert torch.equal(seen[number], wanted)


def test_few_classes_are_kept_with_fillers() -> None:
    live = np.zeros((4, 3), np.bool_)
    live[[3, 0, 2], [0, 1, 1]] = True
    filled = count_pixels._filled(live, 2)
    assert filled.sum(0).tolist() == [2, 2, 2]
    assert (filled & live).sum() == live.sum()
    assert [list(itertools.compress(range(4), column)) for column in filled.T] == [[0, 3], [0, 2], [0, 1]]
