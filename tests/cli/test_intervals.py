"""`evaluate --bootstrap` and `--compare`: intervals over images, and one subject against another."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .bench import Bench
from .conftest import plain_cpu
from .labelled_city import draw_city

FINE = ("--datasets", "fine")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Three labelled images with logits of three members, fused."""
    with plain_cpu():
        bench = draw_city(tmp_path_factory.mktemp("city"))
        assert bench.run("ensemble", *FINE).code == 0
        yield bench


def evaluated(bench: Bench, *options: str) -> dict[str, Any]:
    result = bench.run("evaluate", *FINE, *options, "--json", "-")
    assert result.code == 0, result
    (figures,) = result.figures
    return figures


def test_every_figure_has_an_interval_around_it(city: Bench) -> None:
    found = evaluated(city, "--per-model", "--bootstrap", "200", "--seed", "7")
    assert found["bootstrap"] == {"replicates": 200, "seed": 7, "interval": 0.95}
    plain = evaluated(city, "--per-model")
    assert plain["scores"] == found["scores"]
    assert "intervals" not in plain
    for name, scores in found["scores"].items():
        ends = found["intervals"][name]
        assert ends.keys() == scores.keys() - {"images", "pixels", "miou_classes"}
        for figure, value in scores.items():
            pairs = [(ends[figure], value)] if isinstance(value, float) else []
            pairs += list(zip(ends[figure], value, strict=True)) if isinstance(value, list) else []
            for (low, high), one in pairs:
                assert (low is None) == (one is None)
                assert one is None or low <= high
        assert ends["accuracy"][0] < scores["accuracy"] < ends["accuracy"][1]
    assert evaluated(city, "--bootstrap", "200", "--seed", "8")["intervals"] != found["intervals"]
    again = evaluated(city, "--bootstrap", "200", "--seed", "7", "--processes", "1")["intervals"]["ensemble"]
    assert again.items() <= found["intervals"]["ensemble"].items()
    assert {*found["intervals"]["ensemble"]} - {*again} == {"nll", "brier", "classwise_ece"}  # of the stores


def test_intervals_stand_below_the_figures(city: Bench, tmp_path: Path) -> None:
    table = str(tmp_path / "t.csv")
    scored = str(tmp_path / "s.json")
    said = city.run("evaluate", *FINE, "--bootstrap", "50", "--csv", table, "--json", scored).out.splitlines()
    (found,) = json.loads(Path(scored).read_text())
    ends = found["intervals"]["ensemble"]
    assert "95 % intervals: 50 resamplings of the images, seed 0; too narrow for fewer than 20 images" in said
    row = next(number for number, line in enumerate(said) if line.startswith("ensemble"))
    for line, end, title in ((said[row + 1], 0, "2.5 %"), (said[row + 2], 1, "97.5 %")):
        assert line.split()[:3] == [*title.split(), f"{ends['miou'][end]:.4f}"]
        assert (
            len(line.split()) == len(said[row].split()) - 1 + 1
        )  # no interval of miou_classes, and a sign of percent
    with Path(table).open() as file:
        (cells,) = csv.DictReader(file)
    assert [float(cells[f"miou {end}"]) for end in ("low", "high")] == ends["miou"]
    assert [float(cells[f"iou road {end}"]) for end in ("low", "high")] == ends["iou"][0]


def test_two_subjects_are_compared_on_the_same_images(city: Bench, tmp_path: Path) -> None:
    table, scored = str(tmp_path / "t.csv"), str(tmp_path / "s.json")
    names = ("ensemble", "without bee")
    said = city.run("evaluate", *FINE, "--compare", *names, "--csv", table, "--json", scored)
    assert said.code == 0
    (found,) = json.loads(Path(scored).read_text())
    assert list(found["scores"]) == list(names)
    assert found["bootstrap"]["replicates"] == 1000
    compared = found["comparison"]
    assert compared["subjects"] == list(names)
    for figure, one in compared["figures"].items():
        values = [found["scores"][name][figure] for name in names]
        if isinstance(one, list):
            assert [each["difference"] for each in one] == [
                None if None in pair else pytest.approx(pair[0] - pair[1]) for pair in zip(*values, strict=True)
            ]
        else:
            assert one["difference"] == pytest.approx(values[0] - values[1])
            assert 0 < one["p"] <= 1
            assert one["low"] <= one["high"]
    accuracy = compared["figures"]["accuracy"]
    line = next(line for line in said.out.splitlines() if line.startswith("accuracy "))
    wanted = [f"{found['scores'][name]['accuracy']:.4f}" for name in names]
    wanted += [f"{accuracy[name]:+.4f}" for name in ("difference", "low", "high")]
    assert line.split() == ["accuracy", *wanted, f"{accuracy['p']:.4f}"]
    with Path(table).open() as file:
        last = list(csv.DictReader(file))[-1]
    assert last["subject"] == "ensemble - without bee"
    assert float(last["accuracy p"]) == accuracy["p"]
    # The other way round all signs turn, because the draws are the same.
    turned = evaluated(city, "--compare", *reversed(names))["comparison"]["figures"]["accuracy"]
    assert turned["difference"] == pytest.approx(-accuracy["difference"])
    assert (turned["low"], turned["high"]) == pytest.approx((-accuracy["high"], -accuracy["low"]))
    assert turned["p"] == accuracy["p"]


def test_a_subject_that_is_none_is_refused(city: Bench) -> None:
    said = city.run("evaluate", *FINE, "--compare", "ensemble", "bees").refusal()
    assert said == "--compare bees: is not scored; did you mean 'bee'?"
    said = city.run("evaluate", *FINE, "--compare", "bee", "bee").refusal()
    assert said == "--compare: 'bee' with itself; name two"
    said = city.run("evaluate", *FINE, "--seed", "1").refusal()
    assert said == "--seed: changes nothing without --bootstrap or --compare; leave it out"


def test_one_image_has_no_interval(city: Bench) -> None:
    options = ("--limit", "1", "--compare", "ensemble", "bee")
    found = evaluated(city, *options)
    assert found["intervals"] == {"ensemble": {}, "bee": {}}
    accuracy = found["comparison"]["figures"]["accuracy"]
    assert np.isfinite(accuracy["difference"])
    assert (accuracy["low"], accuracy["high"], accuracy["p"]) == (None, None, None)
    said = city.run("evaluate", *FINE, *options).out
    assert "no intervals: there are fewer than two images to resample" in said
