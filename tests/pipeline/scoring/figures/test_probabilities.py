"""Sums of probabilities against scikit-learn and a slow version, strip by strip."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hmsa_pipeline.pipeline.scoring.figures.probabilities import ProbabilitySums

SHAPE = (7, 9)


def drawn(spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (7, 9), the first two rows and some pixels void, and probabilities (19, 7, 9) float32."""
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 19, SHAPE).astype(np.uint8)
    truth[:2] = truth[4, ::2] = 255
    logits = torch.from_numpy(draw.normal(0, spread, (19, *SHAPE)))
    return truth, logits.softmax(0).float().numpy()


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_strips_add_up_to_what_all_pixels_give(rows: int, spread: float) -> None:
    """With a small spread no probability leaves the first bin; a strip may have no labels at all."""
    truth, p = drawn(spread)
    sums = ProbabilitySums(truth, 19, ["a", "b"])
    for start in range(0, SHAPE[0], rows):
        strip = slice(start, min(start + rows, SHAPE[0]))
        # A strip of a larger array, as `fuse` gives it where pixels are padded.
        padded = torch.zeros(19, p[:, strip].size // 19 + 5)
        padded[:, :-5] = torch.from_numpy(p[:, strip].reshape(19, -1))
        sums.add("a", strip, padded[:, :-5].view(19, -1, SHAPE[1]))
    known = truth != 255
    label, flat = truth[known], p[:, known].T.astype(np.float64)
    flat /= flat.sum(1, keepdims=True)
    loss, brier = sums.losses["a"] / len(label)
    assert loss == pytest.approx(sklearn.metrics.log_loss(label, flat, labels=range(19)), abs=1e-6)
    wanted = sklearn.metrics.brier_score_loss(label, flat, labels=range(19), scale_by_half=False)
    assert brier == pytest.approx(wanted, abs=1e-6)
    once, bins = np.eye(19)[label], np.minimum((flat * 15).astype(int), 14)
    gaps = [[(once[:, c] - flat[:, c])[bins[:, c] == b].sum() for b in range(15)] for c in range(19)]
    assert sums.classwise["a"] == pytest.approx(np.array(gaps), abs=1e-5)
    assert not sums.losses["b"].any()


def test_a_probability_of_nothing_is_a_finite_loss() -> None:
    p = torch.zeros(2, 1, 1)
    p[1] = 1.0
    sums = ProbabilitySums(np.zeros((1, 1), np.uint8), 2, ["a"])
    sums.add("a", slice(None), p)
    assert sums.losses["a"] == pytest.approx([-np.log(np.finfo(np.float32).tiny), 2.0])
