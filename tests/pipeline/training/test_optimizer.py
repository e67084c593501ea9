"""Optimisers and schedules: learning rates as the published training had them, epoch by epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.pipeline.config.recipe import Optimizer, Schedule
from hmsa_pipeline.pipeline.training.optimizer import build_optimizer, build_schedule
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "schedule.json").read_text())
SCHEDULES = {
    "poly_exp1": Schedule(name="poly", exponent=1.0),
    "poly_exp2": Schedule(name="poly", exponent=2.0),
    "poly2_exp1_step110": Schedule(name="poly2", exponent=1.0, step=110),
    "poly2_exp2_step110": Schedule(name="poly2", exponent=2.0, step=110),
}


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([0.5]))]


def trained(settings: Optimizer, schedule: Schedule, epochs: int, step: float) -> tuple[list[float], list[Any]]:
    """The learning rate of each epoch, and the parameters after the last; every gradient is ``step``."""
    weights = parameters()
    optimizer = build_optimizer(weights, settings)
    scheduler = build_schedule(optimizer, schedule, epochs)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        for weight in weights:
            weight.grad = torch.full_like(weight, step)
        optimizer.step()
        scheduler.step()
    # What would be the rate of one epoch more.
    return [*rates, optimizer.param_groups[0]["lr"]], [weight.detach() for weight in weights]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_learning_rates_are_the_published_ones(name: str, optimizer: str) -> None:
    settings = Optimizer.model_validate({"name": optimizer, "lr": GOLDEN["lr"]})
    rates, _ = trained(settings, SCHEDULES[name], GOLDEN["max_epoch"], 1e-3)
    golden = GOLDEN["schedules"][name]["lr_by_epoch"]
    assert [rates[epoch] for epoch in GOLDEN["epochs"]] == pytest.approx(golden, rel=1e-9, abs=1e-12)


def test_all_golden_schedules_of_ours_are_looked_at() -> None:
    assert {name for name in GOLDEN["schedules"] if name.startswith("poly")} == set(SCHEDULES)
    assert (GOLDEN["epochs"][0], GOLDEN["epochs"][-1]) == (0, GOLDEN["max_epoch"])


@given(epochs=st.integers(1, 40), done=st.integers(0, 40), exponent=st.floats(0.1, 5))
def test_a_schedule_that_is_taken_up_again_goes_on_as_if_it_never_stopped(
    epochs: int, done: int, exponent: float
) -> None:
    settings = Optimizer(lr=0.1)
    schedule = Schedule(name="poly2", exponent=exponent, step=3)
    rates, _ = trained(settings, schedule, epochs, 0.0)
    first = build_optimizer(parameters(), settings)
    before = build_schedule(first, schedule, epochs)
    done = min(done, epochs)
    for _ in range(done):
        first.step()
        before.step()
    again = build_optimizer(parameters(), settings)
    after = build_schedule(again, schedule, epochs)
    again.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    assert after.get_last_lr() == [rates[done]]
    for epoch in range(done + 1, epochs + 1):
        again.step()
        after.step()
        assert again.param_groups[0]["lr"] == rates[epoch]


def test_the_rate_stays_at_nothing_after_the_last_epoch() -> None:
    optimizer = build_optimizer(parameters(), Optimizer(lr=0.1))
    scheduler = build_schedule(optimizer, Schedule(exponent=1.5), 2)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0.0]


def test_sgd_has_one_group_without_nesterov_and_decays_everything() -> None:
    golden = GOLDEN["optimizer"]["sgd"]
    settings = Optimizer(lr=0.01, momentum=golden["momentum"], weight_decay=golden["weight_decay"])
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(network.parameters(), settings)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(network.parameters()))
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, golden["nesterov"])
    assert group["dampening"] == 0


def test_sgd_steps_as_written_down() -> None:
    settings = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01)
    rates, found = trained(settings, Schedule(exponent=1.0), 3, 0.5)
    for start, weight in zip(([1.0, -2.0], [0.5]), found, strict=True):
        for value, end in zip(start, weight.tolist(), strict=True):
            velocity = 0.0
            for rate in rates[:3]:
                velocity = 0.9 * velocity + 0.5 + 0.01 * value
                value -= rate * velocity
            assert end == pytest.approx(value, rel=1e-6)


def test_adamw_steps_as_written_down() -> None:
    settings = Optimizer(name="adamw", lr=0.1, momentum=0.8, weight_decay=0.1)
    rates, found = trained(settings, Schedule(exponent=1.0), 3, 0.5)
    for start, weight in zip(([1.0, -2.0], [0.5]), found, strict=True):
        for value, end in zip(start, weight.tolist(), strict=True):
            mean = square = 0.0
            for number, rate in enumerate(rates[:3], start=1):
                mean, square = 0.8 * mean + 0.2 * 0.5, 0.999 * square + 0.001 * 0.25
                value -= rate * 0.1 * value
                value -= rate * (mean / (1 - 0.8**number)) / ((square / (1 - 0.999**number)) ** 0.5 + 1e-8)
            assert end == pytest.approx(value, rel=1e-5)
