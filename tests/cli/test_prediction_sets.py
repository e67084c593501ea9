"""`calibrate --sets` and `render --kinds sets`: prediction sets with a known coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hmsa_pipeline.pipeline.pictures.colours import set_size_colours
from hmsa_pipeline.pipeline.scoring.resampling.bootstrap import Resampling, draws
from hmsa_pipeline.pipeline.text import figure

from .bench import Bench, run
from .test_calibrate import bench
from .test_calibration_methods import fused
from .test_evaluate import scored, truth
from .test_render import opened

__all__ = ["bench", "scored"]


def fit_sets(bench: Bench, *options: str) -> tuple[Any, dict[str, Any]]:
    target = bench.root / "s.yaml"
    result = bench.run("calibrate", "--write", str(target), "--json", "-", *options)
    assert (result.code, result.err) == (0, result.err), result
    return result.figures, yaml.safe_load(target.read_text())


def plain(bench: Bench) -> dict[str, dict[str, Any]]:
    return {m["name"]: {"weight": 1.0, "temperature": 1.0} | m for m in bench.tree["models"]}


def test_thresholds_are_those_of_the_fused_probabilities(bench: Bench) -> None:
    """With all pixels: image by image, the least probability that half of a class's pixels reach."""
    figures, tree = fit_sets(bench, "--sets", "0.4", "--pixels", "10000000")
    assert tree["sets"]["coverage"] == 0.4
    order = np.random.default_rng(0).permutation(3).tolist()
    images = list(truth(bench))
    fitted, others = images[order[0]], [images[i] for i in order[1:]]
    labels = truth(bench)[fitted]
    p = fused(bench, "city", fitted, plain(bench))
    for number, one in enumerate(figures["classes"]):
        least = tree["sets"]["thresholds"][number]
        assert one["threshold"] == least
        own = np.sort(p[number][labels == number])
        assert one["fitted"] == (1 if own.size else 0)
        if own.size:
            # One image: its weight is a half, and so is that of an image of which nothing is known.
            count = int(np.ceil(0.8 * own.size - 1e-9))
            assert least == pytest.approx(own[-count], abs=2e-6)
        else:
            assert least == 0
    coverages, sizes, by_class = [], [], []
    for image in others:
        chances, known = fused(bench, "city", image, plain(bench)), truth(bench)[image]
        inside = chances >= np.array(tree["sets"]["thresholds"])[:, None, None]
        right = np.take_along_axis(inside, (known % 19)[None].astype(int), 0)[0]
        coverages.append(right[known != 255].mean())
        sizes.append(inside.sum(0)[known != 255].mean())
        own = np.take_along_axis(inside, (known % 19)[None].astype(int), 0)[0]
        by_class.append({k: own[known == k].mean() for k in range(19) if (known == k).any()})
    assert figures["total"]["coverage"] == pytest.approx(np.mean(coverages), abs=1e-3)
    assert figures["total"]["size"] == pytest.approx(np.mean(sizes), abs=1e-2)
    assert figures["total"]["images"] == 2
    times = np.stack(list(draws(2, Resampling(1000, 0))))
    for name, each in (("coverage", coverages), ("size", sizes)):
        wanted = np.quantile(np.array(each) @ times / 2, (0.025, 0.975))
        assert figures["total"]["intervals"][name] == pytest.approx(wanted, abs=1e-2)
    assert figures["total"]["intervals"]["coverage"][0] < figures["total"]["intervals"]["coverage"][1]
    for number, one in enumerate(figures["classes"]):
        held = [(image[number], count) for image, count in zip(by_class, times, strict=True) if number in image]
        if not held:
            assert one["intervals"]["coverage"] == [None, None]
            continue
        drawn, counts = sum(value * count for value, count in held), sum(count for _, count in held)
        wanted = np.quantile((drawn / np.maximum(counts, 1))[counts > 0], (0.025, 0.975))
        assert one["intervals"]["coverage"] == pytest.approx(wanted, abs=1e-3), one["name"]


def test_the_table_names_classes_that_are_always_in_the_set(bench: Bench) -> None:
    figures, _ = fit_sets(bench, "--sets", "0.9")
    result = bench.run("calibrate", "--write", str(bench.root / "s.yaml"), "--sets", "0.9")
    lines = result.out.splitlines()
    titles = ["least", "probability", "of", "images", "coverage", "size", "empty", "images"]
    assert lines[0].split() == [*titles, *["95", "%", "interval", "of", "the", "coverage"]]
    total = figures["total"]["intervals"]["coverage"]
    assert lines[20].endswith(f"  {total[0]:.4f} to {total[1]:.4f}")
    assert lines[1].split()[:2] == ["road", "0.000000"], "one image gives no 90 %"
    assert lines[20].startswith("all ")
    assert lines[21].startswith("asked for: coverage 0.9; ")
    assert lines[22].startswith("always in the set, because too few images hold them: road, ")
    assert lines[-1] == f"written: {bench.root}/s.yaml"


def test_one_threshold_for_all_classes(bench: Bench) -> None:
    figures, tree = fit_sets(bench, "--sets", "0.4", "--common-threshold")
    assert figures["common"] is True
    assert len(set(tree["sets"]["thresholds"])) == 1
    assert figures["total"]["threshold"] == tree["sets"]["thresholds"][0] > 0


def test_sizes_are_drawn(bench: Bench, tmp_path: Path) -> None:
    _, tree = fit_sets(bench, "--sets", "0.45")
    assert bench.run("ensemble", "--overwrite").code == 0
    manifest = str(bench.root / "s.yaml")
    result = run("render", "--manifest", manifest, "--write", str(tmp_path / "p"), "--kinds", "sets", "--limit", "1")
    assert (result.code, result.err) == (0, "")
    image = min(truth(bench))
    picture = opened(tmp_path / "p" / "city" / f"{image.rpartition('.')[0]}_sets.png")
    chances = fused(bench, "city", image, plain(bench))
    sizes = (chances >= np.array(tree["sets"]["thresholds"])[:, None, None]).sum(0)
    assert (picture == set_size_colours(sizes)).all(2).mean() > 0.999
    assert len(np.unique(sizes)) > 2


def test_the_report_shows_coverage_and_size(bench: Bench, tmp_path: Path) -> None:
    _, tree = fit_sets(bench, "--sets", "0.45")
    assert bench.run("ensemble", "--overwrite").code == 0
    report = ("report", "--manifest", str(bench.root / "s.yaml"), "--write", str(tmp_path / "r"), "--json", "-")
    result = run(*report)
    (found,) = result.figures
    least = np.array(tree["sets"]["thresholds"])[:, None, None]
    wanted: dict[str | None, list[list[float]]] = {row["name"]: [] for row in found["sets"]}
    names = [name for name in wanted if name is not None]
    assert len(names) == 19
    for image, labels in truth(bench).items():
        inside = fused(bench, "city", image, plain(bench)) >= least
        for number, name in [*enumerate(names), (None, None)]:
            own = labels != 255 if number is None else labels == number
            if own.any():
                right = np.take_along_axis(inside, (labels % 19)[None].astype(int), 0)[0][own]
                sizes = inside.sum(0)[own]
                wanted[name].append([right.mean(), sizes.mean(), (sizes == 0).mean()])
    page = (tmp_path / "r" / "index.html").read_text()
    for row in found["sets"]:
        mine = [row["coverage"], row["size"], row["empty"]]
        assert row["images"] == len(wanted[row["name"]])
        if not row["images"]:
            assert mine == [None, None, None]
            continue
        # A probability that stands at its threshold may be on either side of it.
        assert mine == pytest.approx(np.mean(wanted[row["name"]], 0), abs=2e-3), row
        assert f">{row['coverage']:.4f}<small>" in page
        times = np.stack(list(draws(3, Resampling(200))))
        shares = np.zeros((3, 2))
        for number, labels in enumerate(truth(bench).values()):
            own = labels != 255 if row["name"] is None else labels == names.index(row["name"])
            shares[number] = (own.any(), wanted[row["name"]].pop(0)[0] if own.any() else 0)
        count, covered = (times.T @ shares).T
        ends = np.quantile((covered / np.maximum(count, 1))[count > 0], (0.025, 0.975))
        assert row["intervals"]["coverage"] == pytest.approx(ends, abs=2e-3)
        assert f"<small>{figure(ends[0])[:4]}" in page
    assert len({row["coverage"] for row in found["sets"]}) > 3
    assert "Asked for: coverage 0.45." in page
    alone = run(*report, "--models", "ant")
    assert "sets" not in alone.figures[0]
    assert "note: no coverage of prediction sets: sets: the thresholds were fitted to other members" in alone.err
    assert "sets" not in run(*report, "--no-members").figures[0]


def test_thresholds_of_another_ensemble_are_refused(bench: Bench, tmp_path: Path) -> None:
    options = ("--write", str(tmp_path / "p"), "--kinds", "sets")
    assert bench.run("ensemble", "--overwrite").code == 0
    assert bench.run("render", *options).refusal().startswith("sets: the manifest has no thresholds")
    _, tree = fit_sets(bench, "--sets", "0.5")
    for change in ({"temperature": 2.0}, {"weight": 3.0}):
        bench.tree["sets"] = tree["sets"]
        bench.tree["models"][0] |= change
        bench.save()
        assert "sets: the thresholds were fitted to other members" in bench.run("render", *options).refusal()
        bench.tree["models"][0] |= {"temperature": 1.0, "weight": 1.0}
    bench.tree["sets"]["thresholds"] = [0.5]
    bench.save()
    assert "thresholds: are of 1 classes, but the manifest has 19" in bench.run("render", *options).refusal()
    assert not (tmp_path / "p").exists()


def test_what_changes_nothing_is_refused(bench: Bench) -> None:
    options = ("--write", str(bench.root / "s.yaml"))
    for more in (("--weights",), ("--method", "vector"), ("--per-dataset",), ("--average", "labelled")):
        assert (
            f"{more[0]}: changes nothing with --sets"
            in bench.run("calibrate", *options, "--sets", "0.9", *more).refusal()
        )
    said = bench.run("calibrate", *options, "--common-threshold").refusal()
    assert said == "--common-threshold: changes nothing without --sets; leave it out"
    assert "must lie between 0 and 1" in bench.run("calibrate", *options, "--sets", "1").refusal()
    bench.tree["models"][1]["weight"] = 1.0
    bench.tree["ensemble"] = {"label": "min-softmax"}
    bench.save()
    assert "gives no probabilities" in bench.run("calibrate", *options, "--sets", "0.9").refusal()
