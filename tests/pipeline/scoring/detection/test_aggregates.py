"""Images' figures of uncertainty, each against a loop, and confidences back to the figures of the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, STANDARDISED, fuse, quantise
from hmsa_pipeline.pipeline.fusion.uncertainty import as_uncertainty
from hmsa_pipeline.pipeline.scoring.detection.aggregates import aggregate, is_aggregate
from hmsa_pipeline.pipeline.scoring.detection.image_scores import detection_of_images
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    side=st.integers(1, 40),
    percent=st.integers(1, 99),
    seed=st.integers(0, 2**31),
)
def test_aggregates_are_those_of_a_loop(height: int, width: int, side: int, percent: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) ** 4
    assert aggregate("mean", pixels) == pytest.approx(math.fsum(pixels.ravel()) / pixels.size)
    down, across = min(side, height), min(side, width)
    patches = [
        pixels[y : y + down, x : x + across].mean()
        for y in range(height - down + 1)
        for x in range(width - across + 1)
    ]
    assert aggregate(f"patch{side}", pixels) == pytest.approx(max(patches), abs=1e-12)
    ordered = sorted(pixels.ravel())
    place = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    assert aggregate(f"q{percent}", pixels) == pytest.approx(low + (high - low) * (place % 1), abs=1e-12)


@pytest.mark.parametrize("name", ["", "q", "q0", "q100", "patch", "patch0", "patch10x10", "mean2", "max", "patch-3"])
def test_other_names_are_no_aggregates(name: str) -> None:
    assert not is_aggregate(name)
    with pytest.raises(ValueError, match="unknown aggregate"):
        aggregate(name, np.ones((2, 2)))


@pytest.mark.parametrize("function", CONFIDENCES)
def test_a_stored_confidence_gives_back_the_uncertainty_that_it_was_made_of(function: str) -> None:
    source = torch.Generator().manual_seed(5)
    members = [(3 * torch.randn(19, 400, generator=source)).half() for _ in range(3)]
    standard = MaxLogits(mean=tuple(float(k) for k in range(19)), deviation=(0.5,) * 19)
    fused = fuse(members, [1.0] * 3, None, (), [standard] * 3, confidence=function)
    stored = quantise(fused.confidence).numpy()
    p = torch.stack([member.double().softmax(0) for member in members])
    z = torch.stack([member.double() for member in members]).mean(0)
    mean, entropy = p.mean(0), torch.special.entr(p).sum(1).mean(0)
    wanted = {
        "entropy": torch.special.entr(mean).sum(0),
        "expected-entropy": entropy,
        "mutual-information": torch.special.entr(mean).sum(0) - entropy,
        "max-logit": -z.amax(0),
        STANDARDISED: (fused.label - z.gather(0, fused.label.long()[None])[0]) / 0.5,
        "energy": -z.logsumexp(0),
        "rba": -z.tanh().sum(0),
        "mean-softmax": 1 - mean.amax(0),
    }.get(function, 1 - torch.from_numpy((stored + 0.5) / 65536))
    found = as_uncertainty(function, stored, 19)
    assert (found.dtype, found.shape) == (np.float64, stored.shape)
    # A level of a logit l is (1 + |l|)^2 / 32768 wide.
    room = (1 + wanted.abs()).square().numpy() / 32768
    assert (np.abs(found - wanted.numpy()) <= np.maximum(room, 2e-3)).all()
    levels = np.arange(65536, dtype=np.uint16)
    assert (np.diff(as_uncertainty(function, levels, 19)) < 0).all(), "a higher confidence is less uncertain"


def test_images_are_told_apart_as_scikit_learn_says() -> None:
    draw = np.random.default_rng(1)
    inside, outside = draw.normal(0, 1, 40).round(1), draw.normal(0.8, 1, 25).round(1)
    truth = np.repeat([0, 1], [40, 25])
    scores = np.concatenate([inside, outside])
    (found,) = detection_of_images(inside.tolist(), outside.tolist())
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["auprc"] == pytest.approx(average_precision_score(truth, scores))
    lowest = np.sort(outside)[::-1][math.ceil(0.95 * 25) - 1]
    assert found["fpr95"] == pytest.approx((inside >= lowest).mean())
    assert all(math.isnan(detection_of_images(*scores)[0]["auroc"]) for scores in (([], [1.0]), ([0.1], [])))
