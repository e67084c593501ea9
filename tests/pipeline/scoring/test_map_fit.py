"""Vector, class-conditional and Dirichlet calibration, against scipy's minimum of the plain formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.config.calibration_field import Calibration
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.fusion.calibrated_logits import calibrated_logits, logit_map
from hmsa_pipeline.pipeline.fusion.fuse import fuse
from hmsa_pipeline.pipeline.scoring.calibration import map_fit
from hmsa_pipeline.pipeline.scoring.calibration.map_fit import fit_map
from hmsa_pipeline.pipeline.scoring.calibration.temperature_fit import fit_temperature
from scipy.optimize import minimize
from scipy.special import log_softmax

CLASSES = 4


def drawn(count: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a network that is twice too sure, of class 0 most, and likes class 1 too much."""
    draw = np.random.default_rng(3)
    z = draw.normal(0, 1.5, (count, CLASSES))
    chances = np.exp(log_softmax(z, 1))
    labels = (chances.cumsum(1) < draw.random((count, 1))).sum(1).clip(max=CLASSES - 1)
    given = z * np.array([3.0, 2.0, 2.0, 1.5]) + np.array([0.0, 1.0, 0.0, 0.0])
    return torch.from_numpy(given), torch.from_numpy(labels)


def loss(z: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(z, 1)[np.arange(len(z)), labels].mean())


def best(function, start: np.ndarray) -> float:
    return float(minimize(function, start, method="BFGS", options={"gtol": 1e-7}).fun)


def member(calibration: Calibration, temperature: float = 1.0) -> Member:
    return Member(name="m", arch="external", calibration=(calibration,), temperature=temperature)


def mapped(calibration: Calibration, z: torch.Tensor) -> np.ndarray:
    """The plain formulas, with the numbers as they are written."""
    given = z.double().numpy()
    if calibration.method == "vector":
        return np.array(calibration.scale) * given + np.array(calibration.bias)
    if calibration.method == "class-conditional":
        return given / np.array(calibration.temperatures)[given.argmax(1)][:, None]
    return log_softmax(given, 1) @ np.array(calibration.matrix).T + np.array(calibration.bias)


def test_vector_scaling_is_the_minimum() -> None:
    z, labels = drawn()
    found = fit_map("vector", z, labels, math.inf)
    expected = best(
        lambda p: loss(p[:CLASSES] * z.numpy() + p[CLASSES:], labels.numpy()),
        np.concatenate([np.ones(CLASSES), np.zeros(CLASSES)]),
    )
    assert loss(mapped(found, z), labels.numpy()) == pytest.approx(expected, abs=2e-7)
    assert found.scale == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1 / 1.5], abs=0.12)


def test_class_conditional_temperatures_are_those_of_the_pixels_that_are_predicted_so() -> None:
    z, labels = drawn()
    found = fit_map("class-conditional", z, labels, math.inf)
    predicted = z.argmax(1)
    expected = [fit_temperature(z[predicted == k], labels[predicted == k]) for k in range(CLASSES)]
    assert found.temperatures == pytest.approx(expected, rel=1e-4)
    assert max(expected) / min(expected) > 1.3


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_dirichlet_is_the_minimum_with_its_regularisation(monkeypatch: pytest.MonkeyPatch, strength: float) -> None:
    monkeypatch.setattr(map_fit, "STRENGTHS", (strength,))
    z, labels = drawn()
    x = log_softmax(z.numpy(), 1)

    def objective(p: np.ndarray) -> float:
        matrix, bias = p[: CLASSES**2].reshape(CLASSES, CLASSES), p[CLASSES**2 :]
        off = (matrix**2).sum() - (np.diag(matrix) ** 2).sum()
        penalty = off / (CLASSES * (CLASSES - 1)) + (bias**2).sum() / CLASSES
        return loss(x @ matrix.T + bias, labels.numpy()) + strength * penalty

    found = fit_map("dirichlet", z, labels, math.inf)
    reached = objective(np.concatenate([np.ravel(found.matrix), found.bias]))
    expected = best(objective, np.concatenate([np.eye(CLASSES).ravel(), np.zeros(CLASSES)]))
    assert reached == pytest.approx(expected, abs=2e-7)


def test_the_strength_is_the_one_that_suits_the_other_half() -> None:
    z, labels = drawn()
    heat = fit_temperature(z, labels)
    halves = [(z[:500], labels[:500]), (z[500:], labels[500:])]
    losses = {
        s: loss(
            mapped_linear(map_fit._dirichlet(*halves[0], fit_temperature(z, labels), s), halves[1][0]), halves[1][1]
        )
        for s in map_fit.STRENGTHS
    }
    assert map_fit._strength(z, labels, heat) == min(losses, key=lambda s: losses[s])


def mapped_linear(parameters: torch.Tensor, z: torch.Tensor) -> np.ndarray:
    return log_softmax(z.numpy(), 1) @ parameters[:, :-1].numpy().T + parameters[:, -1].numpy()


@pytest.mark.parametrize("method", ["vector", "class-conditional"])
def test_few_observations_leave_the_one_temperature(method: str) -> None:
    z, labels = drawn()
    heat = fit_temperature(z, labels)
    found = fit_map(method, z, labels, 1e-4)
    numbers = [1 / s for s in found.scale or ()] or found.temperatures
    assert numbers == pytest.approx([heat] * CLASSES, rel=0.01)


@pytest.mark.parametrize("method", ["vector", "class-conditional", "dirichlet"])
def test_fusion_does_what_the_formula_says(method: str) -> None:
    z, labels = drawn(200)
    found = fit_map(method, z, labels, math.inf)
    expected = mapped(found, z.float()) / 1.7
    assert calibrated_logits(z.float().T, member(found, 1.7)).T.numpy() == pytest.approx(expected, abs=1e-4)
    fused = fuse([z.float().T], [1.0], [1.7], [logit_map(member(found))])
    assert fused.confidence.numpy() == pytest.approx(np.exp(log_softmax(expected, 1)).max(1), abs=1e-5)
    changes = (fused.label.numpy() != z.argmax(1).numpy()).any()
    assert bool(changes) == (method != "class-conditional")


@pytest.mark.parametrize("method", ["vector", "class-conditional", "dirichlet"])
def test_a_pixel_does_not_depend_on_its_neighbours(method: str) -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(19, 5000, generator=draw) * 5
    numbers = torch.randn(19, 19, generator=draw).tolist()
    fields = {
        "vector": {"scale": numbers[0], "bias": numbers[1]},
        "class-conditional": {"temperatures": [abs(x) + 0.1 for x in numbers[0]]},
        "dirichlet": {"matrix": numbers, "bias": numbers[0]},
    }[method]
    change = logit_map(member(Calibration.model_validate({"method": method, **fields})))
    whole = fuse([z], [1.0], [1.0], [change])
    for start, stop in ((0, 1), (3, 700), (700, 5000), (64, 128)):
        part = fuse([z[:, start:stop]], [1.0], [1.0], [change])
        assert torch.equal(part.confidence, whole.confidence[start:stop])
        assert torch.equal(part.label, whole.label[start:stop])


def test_a_calibration_of_some_dataset_is_not_taken_for_any() -> None:
    entry = Calibration(dataset="city", method="class-conditional", temperatures=(1.0, 2.0))
    with pytest.raises(ValueError, match="depends on the dataset"):
        logit_map(member(entry))
    assert logit_map(member(entry).on("other")) is None
    assert logit_map(member(entry).on("City")) is not None
