"""Over which classes `evaluate`, `report` and `train` take the mean, and what they say of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from PIL import Image

from .bench import run
from .training import history, options

OUTSIDE_SHIFT = (12, 14, 15, 16, 17, 18)


def saved(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


class World:
    """One image of one dataset with labels and a prediction, scored without any store."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind

    def predict(self, image: str, label: np.ndarray) -> None:
        saved(self.root / f"pred/{image}_pred.png", label)
        saved(self.root / f"pred/{image}_conf.png", np.full(label.shape, 60000, np.uint16))

    def evaluate(self, *more: str) -> Any:
        tree = {
            "version": 1,
            "output": str(self.root / "run"),
            "models": [{"name": "a", "arch": "external"}],
            "datasets": [{"name": "d", "type": self.kind, "root": str(self.root / "data"), "split": "val"}],
        }
        (self.root / "m.yaml").write_text(yaml.safe_dump(tree))
        given = ("--manifest", str(self.root / "m.yaml"), "--predictions", str(self.root / "pred"))
        result = run("evaluate", *given, "--processes", "1", *more)
        assert result.code == 0, result
        return result


@pytest.fixture(params=[True, False], ids=["ids", "train_ids"])
def shift(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """All 23 ids of SHIFT, and six pixels of vehicles that are called what SHIFT has no label for."""
    world = World(tmp_path, "shift")
    raw = np.repeat(np.arange(23, dtype=np.uint8), 4)[:, None].repeat(100, 1)
    train = dataset_spec("shift").lookup("ids")[raw]
    where, name = "discrete/images/val/front/0003-17fb", "00000000"
    saved(tmp_path / f"data/{where}/{name}_img_front.jpg", np.zeros((*raw.shape, 3), np.uint8))
    if request.param:
        mask = np.stack([raw, raw * 0, raw * 0, raw * 0 + 255], 2)
        saved(tmp_path / f"data/{where}/{name}_semseg_front.png", mask)
    else:
        saved(tmp_path / f"data/{where.replace('images', 'labels_cityscapes')}/{name}_semseg_front.png", train)
    label = np.where(train == 255, 0, train).astype(np.uint8)
    rows, columns = np.nonzero(raw == 10)
    label[rows[:6], columns[:6]] = OUTSIDE_SHIFT
    world.predict(f"{where}/{name}_img_front", label)
    return world


def test_shift_has_thirteen_classes_whatever_is_predicted(shift: World, tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    (found,) = shift.evaluate("--json", "-", "--csv", str(table)).figures
    score = found["scores"]["ensemble"]
    assert score["miou"] == pytest.approx((12 + 394 / 400) / 13)
    assert (score["miou_classes"], score["accuracy"]) == (13, pytest.approx(5594 / 5600))
    assert (found["average"]["name"], found["average"]["rule"]) == ("dataset", "labelled-or-predicted")
    assert len(found["average"]["classes"]) == 13
    assert not {CLASS_NAMES[i] for i in OUTSIDE_SHIFT} & set(found["average"]["classes"])
    (row,) = csv.DictReader(table.open())
    assert (row["miou_classes"], row["average"]) == ("13", "dataset")
    said = shift.evaluate().out
    assert "dataset: over those of the 13 classes of its label table that are labelled or predicted" in said
    header, values = (line.split() for line in said.splitlines()[2:4])
    assert values[1 + header.index("miou_classes")] == "13"


def test_every_average_can_be_asked_for(shift: World) -> None:
    (found,) = shift.evaluate("--average", "labelled-or-predicted", "--json", "-").figures
    assert found["scores"]["ensemble"]["miou"] == pytest.approx((12 + 394 / 400) / 19)
    assert (found["scores"]["ensemble"]["miou_classes"], found["average"]["name"]) == (19, "labelled-or-predicted")
    (found,) = shift.evaluate("--average", "labelled", "--json", "-").figures
    assert found["scores"]["ensemble"]["miou_classes"] == 13


def test_bdd100k_is_averaged_as_its_own_evaluator_does(tmp_path: Path) -> None:
    """Held against bdd100k 1.0.1 once: 2.839354949586074 for three such pictures; here a slow mean stands for it."""
    world, draw = World(tmp_path, "bdd100k"), np.random.default_rng(0)
    truth, label = draw.integers(0, 16, (24, 32), np.uint8), draw.integers(0, 19, (24, 32), np.uint8)
    saved(tmp_path / "data/images/10k/val/a.jpg", np.zeros((24, 32, 3), np.uint8))
    saved(tmp_path / "data/labels/sem_seg/masks/val/a.png", truth)
    world.predict("images/10k/val/a", label)
    each = [((truth == c) & (label == c)).sum() / ((truth == c) | (label == c)).sum() for c in range(19)]
    (found,) = world.evaluate("--json", "-").figures
    assert found["scores"]["ensemble"]["miou"] == pytest.approx(sum(each) / 16)
    assert (found["average"]["rule"], found["scores"]["ensemble"]["miou_classes"]) == ("labelled", 16)
    (found,) = world.evaluate("--average", "labelled-or-predicted", "--json", "-").figures
    assert found["scores"]["ensemble"]["miou"] == pytest.approx(sum(each) / 19)


def test_an_unknown_average_is_refused_and_none_goes_with_the_challenge() -> None:
    for command in (("evaluate",), ("report", "--write", "r"), ("calibrate", "--write", "c.yaml")):
        assert "--average labeled: is no average" in run(*command, "--average", "labeled").refusal()
    words = ("--ground-truth", "a.tar", "--samples", "b.tar", "--average", "labelled")
    assert "--average labelled: BRAVO's figures" in run("evaluate", *words).refusal()


def test_training_chooses_by_the_mean_over_the_classes_of_its_dataset(tmp_path: Path) -> None:
    write_source(tmp_path / "worlds", "shift", train=2, val=2, size=(48, 80))
    result = run(*options(tmp_path / "worlds", tmp_path / "run", "--epochs", "1", dataset="shift"))
    assert result.code == 0, result
    (row,) = history(tmp_path / "run")
    table = {CLASS_NAMES[i] for i in dataset_spec("shift").classes}
    values = [value for name, value in row["iou"].items() if name in table and value is not None]
    assert row["mean_iou"] == pytest.approx(sum(values) / len(values))
    assert any(value is not None for name, value in row["iou"].items() if name not in table)
    assert row["mean_iou_classes"] == len(values)
    assert f"mean of {len(values)}" in result.out
