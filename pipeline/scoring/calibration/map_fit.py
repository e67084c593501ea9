"""Fits what else is done to one member's logits besides the division by a temperature.

Each method minimises the mean negative log likelihood of the labels, which is convex in its numbers; formulas and
sources are in `fusion.calibrated_logits`. What is believed beforehand is the member's best temperature T:

=================  ==================================================================================
method             added to the mean negative log likelihood
=================  ==================================================================================
vector             (sum (T w - 1)^2 + sum b^2) / (2 s^2 n)
class-conditional  sum log(T_k / T)^2 / (2 s^2 n)
dirichlet          l (sum of W_ij^2 with i != j / (C (C - 1)) + sum b^2 / C)
=================  ==================================================================================

n is the number of independent observations, s = log 2. The last row is the off-diagonal and intercept regularisation
of Kull et al., NeurIPS 2019 (arXiv 1910.12656, section 3). Its l is that one of `STRENGTHS` that makes one half of
the pixels most likely when it is fitted to the other half.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...config.calibration_field import Calibration
from ...fusion.member_sums import first_maximum
from .temperature_fit import MAX_TEMPERATURE, MIN_TEMPERATURE, PIXELS_AT_ONCE, PRIOR_SPREAD, fit_temperature

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Factors of the off-diagonal and intercept regularisation that are tried."""
_TRIED_PIXELS = 20_000
_ROUNDS = 200
_DIGITS = 6

Forward = Callable[[Tensor, Tensor], Tensor]
"""Parameters and logits (N, C) float64 to calibrated logits (N, C)."""
Penalty = Callable[[Tensor], Tensor]


def fit_map(method: str, logits: Tensor, labels: Tensor, observations: float) -> Calibration:
    """Fit one member's calibration in float64.

    Args:
        method: vector, class-conditional or dirichlet.
        logits: (N, C), of any floating type.
        labels: (N,) int64 train ids.
        observations: number of independent observations that they count as; `math.inf` for no belief beforehand.
    """
    classes = logits.shape[1]
    heat = fit_temperature(logits, labels)
    belief = 1 / (2 * PRIOR_SPREAD**2 * observations)
    if method == "vector":
        start = torch.cat([torch.full((classes,), 1 / heat), torch.zeros(classes)]).double()
        found = _minimise(
            start,
            logits,
            labels,
            lambda p, z: p[:classes] * z + p[classes:],
            lambda p: belief * ((heat * p[:classes] - 1).square().sum() + p[classes:].square().sum()),
        )
        return Calibration(method="vector", scale=_numbers(found[:classes]), bias=_numbers(found[classes:]))
    if method == "class-conditional":
        log_heat = _minimise(
            torch.full((classes,), math.log(heat), dtype=torch.float64),
            logits,
            labels,
            lambda p, z: z / _clamped(p)[first_maximum(z.T)[0].long()][:, None],
            lambda p: belief * (p - math.log(heat)).square().sum(),
        )
        return Calibration(method="class-conditional", temperatures=_numbers(_clamped(log_heat)))
    strength = _strength(logits, labels, heat)
    found = _dirichlet(logits, labels, heat, strength)
    return Calibration(
        method="dirichlet", matrix=tuple(map(_numbers, found[:, :classes])), bias=_numbers(found[:, classes])
    )


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values.tolist())


def _clamped(log_heat: Tensor) -> Tensor:
    return log_heat.clamp(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)).exp()


def _strength(logits: Tensor, labels: Tensor, heat: float) -> float:
    """Choose the strength of the regularisation by halves of the pixels, which come image by image."""
    half = len(labels) // 2
    first, second = slice(0, half), slice(half, None)
    step = max(1, half // _TRIED_PIXELS)
    parts = [(logits[part][::step], labels[part][::step]) for part in (first, second)]
    if not all(len(y) for _, y in parts):
        return STRENGTHS[-1]

    def loss(strength: float) -> float:
        found = _dirichlet(*parts[0], heat, strength)
        z, y = parts[1]
        return torch.nn.functional.cross_entropy(_linear(found, z.double()), y).item()

    return min(STRENGTHS, key=loss)


def _linear(parameters: Tensor, z: Tensor) -> Tensor:
    return torch.addmm(parameters[:, -1], z.log_softmax(1), parameters[:, :-1].T)


def _dirichlet(logits: Tensor, labels: Tensor, heat: float, strength: float) -> Tensor:
    """Fit matrix and bias, (C, C + 1) float64."""
    classes = logits.shape[1]
    start = torch.cat([torch.eye(classes) / heat, torch.zeros(classes, 1)], 1).double()
    elsewhere = 1 - torch.eye(classes, dtype=torch.float64)

    def penalty(p: Tensor) -> Tensor:
        off_diagonal = (elsewhere * p[:, :classes]).square().sum() / (classes * max(1, classes - 1))
        return strength * (off_diagonal + p[:, classes].square().sum() / classes)

    return _minimise(start, logits, labels, _linear, penalty)


def _minimise(start: Tensor, logits: Tensor, labels: Tensor, forward: Forward, penalty: Penalty) -> Tensor:
    """Return the parameters of least mean negative log likelihood and penalty, by L-BFGS from ``start``."""
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [parameters],
        max_iter=_ROUNDS,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = penalty(parameters)
        total.backward()
        total = total.detach()
        for z, y in zip(logits.split(PIXELS_AT_ONCE), labels.split(PIXELS_AT_ONCE), strict=True):
            part = torch.nn.functional.cross_entropy(forward(parameters, z.double()), y, reduction="sum")
            (part / len(labels)).backward()
            total = total + part.detach() / len(labels)
        return total

    optimiser.step(loss)
    return parameters.detach()
