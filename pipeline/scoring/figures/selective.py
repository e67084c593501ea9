"""Selective prediction: how many pixels are wrong among those that are kept because the confidence is high.

Pixels are kept from the highest confidence down. With n pixels, E_k is the number of wrong ones among the k surest:

==================  ==========================================================================
risk                E_k / k at coverage k / n
generalised risk    E_k / n at coverage k / n
AURC                mean of E_k / k over k = 1..n (Geifman et al., ICLR 2019, arXiv 1805.08206)
E-AURC              AURC minus that of the best order, right pixels first (ibid.)
AUGRC               mean of E_k / n over k = 1..n (Traub et al., NeurIPS 2024, arXiv 2407.01032)
==================  ==========================================================================

Within a group of m pixels of equal confidence, e of them wrong, the order is not known. E_k is its mean over all
orders, E + j e / m after j of the group, so that no figure depends on the order in which pixels are counted. With K
pixels and E errors before the group and r = e / m, the sum of (E + j r) / (K + j) over j = 1..m is
m r + (E - r K) (H(K + m) - H(K)) with harmonic numbers H.
"""

from __future__ import annotations

import math

import numpy as np
import torch

COVERAGE, RISK = 0.8, 0.05
"""The coverage at which the risk is given, and the risk at which the coverage is given."""


def _groups(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and wrong ones at each level that holds some, highest first, (G,) float64 each, of counts (2, L)."""
    every = counts.sum(0)[::-1]
    held = every > 0
    return every[held].astype(np.float64), counts[0, ::-1][held].astype(np.float64)


def _harmonic(numbers: np.ndarray) -> np.ndarray:
    """Harmonic numbers H, up to Euler's constant, of numbers of at least 0."""
    return torch.digamma(torch.from_numpy(numbers + 1.0)).numpy()


def aurc(counts: np.ndarray) -> float:
    """Area under the risk-coverage curve of counts (2, L), ties averaged; NaN without pixels."""
    pixels, wrong = _groups(counts)
    if not pixels.size:
        return math.nan
    above, errors = pixels.cumsum() - pixels, wrong.cumsum() - wrong
    rate = wrong / pixels
    steps = _harmonic(above + pixels) - _harmonic(above)
    return float((wrong + (errors - rate * above) * steps).sum() / pixels.sum())


def best_aurc(counts: np.ndarray) -> float:
    """AURC of counts (2, L) if all right pixels were surer than all wrong ones; NaN without pixels."""
    wrong, right = counts.sum(1)
    return aurc(np.array([[wrong, 0], [0, right]]))


def eaurc(counts: np.ndarray) -> float:
    """Excess of `aurc` over `best_aurc`: 0 where every right pixel is surer than every wrong one."""
    return aurc(counts) - best_aurc(counts)


def augrc(counts: np.ndarray) -> float:
    """Area under the generalised risk-coverage curve of counts (2, L), ties averaged; NaN without pixels."""
    pixels, wrong = _groups(counts)
    if not pixels.size:
        return math.nan
    errors = wrong.cumsum() - wrong
    return float((errors * pixels + wrong * (pixels + 1) / 2).sum() / pixels.sum() ** 2)


def risk_coverage(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk at each level of counts (2, L) that holds pixels, highest first, (G,) float64 each."""
    pixels, wrong = _groups(counts)
    kept = pixels.cumsum()
    return kept / pixels.sum(), wrong.cumsum() / kept


def risk_at_coverage(counts: np.ndarray, coverage: float = COVERAGE) -> float:
    """Share of wrong pixels among the ``coverage`` surest of counts (2, L), ties averaged; NaN without pixels."""
    pixels, wrong = _groups(counts)
    if not pixels.size:
        return math.nan
    kept = coverage * pixels.sum()
    ends = np.append(0.0, pixels.cumsum())
    return float(np.interp(kept, ends, np.append(0.0, wrong.cumsum())) / kept)


def coverage_at_risk(counts: np.ndarray, risk: float = RISK, *, between: bool = False) -> float:
    """Highest share of the pixels of counts (2, L) that a threshold keeps with at most the ``risk``; 0 if none does.

    Only what a threshold can keep counts: groups of equal confidence stay together. NaN without pixels.

    Args:
        counts: of `metrics.level_counts`.
        risk: 0 to 1.
        between: interpolate between thresholds, for levels that were joined and would be far apart.
    """
    coverage, risks = risk_coverage(counts)
    if not coverage.size:
        return math.nan
    held = np.flatnonzero(risks <= risk)
    if not held.size:
        return 0.0
    last = held[-1]
    if not between or last + 1 == coverage.size:
        return float(coverage[last])
    ends = slice(last, last + 2)
    return float(np.interp(risk, risks[ends], coverage[ends]))
