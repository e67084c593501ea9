"""Distillation: a student learns what the stores of its teachers say at the crop's place."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.labels.mask_reader import NoLabels
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.segmentation_dataset import PROBABILITIES, SampleRequest, SegmentationDataset
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.transforms import TrainTransform
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.training.soft_targets import StoreTargets
from PIL import Image
from scipy.stats import dirichlet
from torch import Tensor

from .bench import TINY, changed, ended, listed, run, start_forked, stored
from .sources import recipe, source, trained, words
from .test_train_interruptions import EVERY_STEP, equal_runs, interrupted
from .training import history

MEMBERS = ("ant", "bee")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn GTA5, and the logits of two members on both. Tests leave it as it is, or take a copy."""
    root = tmp_path_factory.mktemp("world")
    for name, seed, train in (("labelled", 1, 10), ("extra", 2, 4)):
        write_source(root / name, "gta5", train=train, val=2, size=(48, 80), seed=seed)
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        network = build(TINY)
        with torch.no_grad():
            for parameter in network.ocr.cls_head.parameters():
                parameter.mul_(30)  # so that members are sure, and differ
        save_checkpoint(root / f"{name}.pth", network, arch=TINY)
    tree = {
        "version": 1,
        "output": str(root / "teachers"),
        "inference": {"scales": [0.5, 1.0], "flip": False, "precision": "fp32"},
        "models": [{"name": name, "arch": TINY, "checkpoint": str(root / f"{name}.pth")} for name in MEMBERS],
        "datasets": [
            {"name": name, "type": "gta5", "root": str(root / name / "GTA5"), "split": "train"}
            for name in ("labelled", "extra")
        ],
    }
    (root / "teachers.yaml").write_text(yaml.safe_dump(tree))
    result = run("dump", "--manifest", str(root / "teachers.yaml"))
    assert result.code == 0, result
    return root


def loss(stores: Path, **settings: Any) -> dict[str, Any]:
    return {"criterion": "cross_entropy", "distillation": {"stores": str(stores), **settings}}


def slow_targets(world: Path, dataset: str, image: str, temperature: float) -> Tensor:
    """The mean of the members' softmax on a whole photograph, as plain zarr-python gives their logits."""
    softmax = [
        (
            torch.from_numpy(stored(world / f"teachers/logits/{dataset}/{name}.zarr")[image]).double() / temperature
        ).softmax(0)
        for name in MEMBERS
    ]
    return torch.stack(softmax).mean(0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_transformed_together_with_the_photograph(
    world: Path, tmp_path: Path, temperature: float
) -> None:
    """Photographs whose colours are the probabilities of three classes show where these must be found."""
    root = Path(shutil.copytree(world / "labelled/GTA5", tmp_path / "GTA5"))
    pairs = list_pairs(root, "gta5", "train")
    classes = [0, 5, 11]
    for pair in pairs:
        colours = slow_targets(world, "labelled", pair.image, temperature)[classes]
        Image.fromarray((255 * colours).round().byte().permute(1, 2, 0).numpy()).save(root / pair.image)
    transform = TrainTransform((40, 56), scale=(0.5, 2.0), color_jitter=0)
    targets = StoreTargets([world / f"teachers/logits/labelled/{name}.zarr" for name in MEMBERS], temperature)
    dataset = SegmentationDataset(root, pairs, NoLabels(root), transform, soft_targets=(19, targets))
    padded = 0
    for number in range(24):
        centroid = (number * 3, number) if number % 3 == 0 else None
        sample = dataset[SampleRequest(number % len(pairs), number, centroid)]
        found = sample.more[PROBABILITIES].float()
        inside = found.sum(0) > 0
        torch.testing.assert_close(found.sum(0), inside.float(), rtol=0, atol=5e-3)
        # Both are rounded: colours before and after they are scaled.
        assert (255 * found[classes] - sample.image)[:, inside].abs().max() < 1.7
        padded += not bool(inside.all())
    assert 0 < padded < 24
    assert found.std(0).max() > 0.05


def test_a_strip_at_a_time_gives_what_all_of_it_gives(world: Path) -> None:
    targets = StoreTargets([world / f"teachers/logits/extra/{name}.zarr" for name in MEMBERS], 2.0)
    image = listed(targets.paths[0])[1]["path"]
    whole = slow_targets(world, "extra", image, 2.0)
    for top, bottom, left, right in ((0, 48, 0, 80), (7, 8, 79, 80), (13, 41, 20, 63)):
        found = targets.read(image, (top, bottom, left, right))
        torch.testing.assert_close(found.double(), whole[:, top:bottom, left:right], rtol=1e-5, atol=1e-6)


def exact(world: Path, path: Path, labels: str = "own", **settings: Any) -> Path:
    """A recipe that shows whole photographs as they are to a network that starts as the first member."""
    return recipe(
        path,
        source(world / "labelled/GTA5", labels=labels),
        loss=loss(world / "teachers", **settings),
        init={"checkpoint": str(world / "ant.pth")},
        augmentation={"crop": [48, 80], "scale": [1.0, 1.0], "flip": 0.0, "color_jitter": 0.0},
        sampling={"class_uniform": 0.0, "tile": 32},
        optimizer={"lr": 1e-30},
        dropout=0.0,
    )


def test_a_network_agrees_with_its_own_logits_and_not_with_those_of_others(world: Path, tmp_path: Path) -> None:
    """The loss of one epoch, against softmax and divergence in float64 by numpy."""

    def divergence(name: str, **settings: Any) -> float:
        output = trained(exact(world, tmp_path / f"{name}.yaml", **settings), tmp_path / name)
        (row,) = history(output)
        terms = row["loss"]
        expected = (
            terms["main"]
            + 0.4 * terms["auxiliary"]
            + 0.05 * sum(value for key, value in terms.items() if key.startswith("scale"))
            + settings.get("weight", 1.0) * terms["distillation"]
        )
        assert terms["total"] == pytest.approx(expected, rel=1e-5)
        return terms["distillation"]

    assert divergence("own", models=["ant"]) < 1e-3
    temperature = 2.0
    divergences = []
    for image, own in stored(world / "teachers/logits/labelled/ant.zarr").items():
        teacher = slow_targets(world, "labelled", image, temperature).numpy()
        scaled = own.astype(np.float64) / temperature
        student = np.exp(scaled) / np.exp(scaled).sum(0)
        divergences.append((teacher * np.log(teacher / student)).sum(0).mean())
    found = divergence("both", temperature=temperature, weight=0.5)
    assert found == pytest.approx(temperature**2 * np.mean(divergences), rel=1e-2)
    assert found > 0.01


def test_a_network_learns_how_far_its_teachers_differ(world: Path, tmp_path: Path) -> None:
    """The loss of one epoch, against scipy's Dirichlet distribution of each teacher's probabilities in float64."""
    output = trained(exact(world, tmp_path / "r.yaml", target="distribution", temperature=2.0), tmp_path / "run")
    losses = []
    stores = [stored(world / f"teachers/logits/labelled/{name}.zarr") for name in MEMBERS]
    for image, own in stores[0].items():
        concentrations = 1 / (np.exp(-own.astype(np.float64) / 2) + 1e-4)
        for store in stores:
            scaled = np.exp(store[image].astype(np.float64) / 2)
            smoothed = 0.9999 * scaled / scaled.sum(0) + 0.0001 / 19
            places = [(y, x) for y in range(0, 48, 3) for x in range(0, 80, 3)]
            losses += [-dirichlet.logpdf(smoothed[:, y, x], concentrations[:, y, x]) for y, x in places]
    (row,) = history(output)
    assert row["loss"]["distillation"] == pytest.approx(np.mean(losses), rel=2e-2)
    assert row["loss"]["total"] == pytest.approx(
        row["loss"]["main"]
        + 0.4 * row["loss"]["auxiliary"]
        + 0.05 * sum(value for key, value in row["loss"].items() if key.startswith("scale"))
        + row["loss"]["distillation"],
        rel=1e-5,
    )


def test_one_teacher_has_no_distribution(world: Path, tmp_path: Path) -> None:
    settings = loss(world / "teachers", target="distribution", models=["bee"])
    manifest = recipe(tmp_path / "r.yaml", source(world / "labelled/GTA5"), loss=settings)
    message = run(*words(manifest, tmp_path / "run")).refusal()
    assert "loss.distillation.target distribution: " in message
    assert "gives bee alone, and one network has no distribution; dump others too, or take target: mean" in message
    both = loss(world / "teachers", target="distribution", temperature=2.0)
    manifest = recipe(tmp_path / "r.yaml", source(world / "labelled/GTA5"), loss=both)
    lines = run(*words(manifest, tmp_path / "run", "--dry-run")).out.splitlines()
    assert "teacher: from 2 members of 'labelled' (ant, bee); their distribution, temperature 2, weight 1" in lines


def test_photographs_without_labels_are_learnt_from_teachers_alone(world: Path, tmp_path: Path) -> None:
    data = [source(world / "labelled/GTA5", share=0.5), source(world / "extra/GTA5", labels="none", share=0.5)]
    manifest = recipe(tmp_path / "r.yaml", data, loss=loss(world / "teachers", temperature=2.0))
    output = trained(manifest, tmp_path / "run", "--epochs", "2")
    assert all(
        np.isfinite(row["loss"]["distillation"]) and row["loss"]["distillation"] > 0 for row in history(output)
    )
    alone = recipe(
        tmp_path / "alone.yaml", source(world / "labelled/GTA5", labels="none"), loss=loss(world / "teachers")
    )
    (row,) = history(trained(alone, tmp_path / "alone"))
    assert row["loss"]["main"] == 0
    assert row["loss"]["total"] == pytest.approx(row["loss"]["distillation"])


def test_stores_of_one_source_leave_the_others_alone(world: Path, tmp_path: Path) -> None:
    """Sources are told apart by the sizes of their photographs, which bear the same names."""
    data = [source(world / "labelled/GTA5"), source(world / "extra/GTA5")]
    manifest = recipe(tmp_path / "r.yaml", data, loss=loss(world / "teachers", temperature=2.0, models=["bee"]))
    lines = run(*words(manifest, tmp_path / "run", "--dry-run")).out.splitlines()
    place = lines.index("teacher: data[0] from 1 member of 'labelled' (bee); their mean, temperature 2, weight 1")
    assert lines[place + 1] == "         data[1] from 1 member of 'extra' (bee)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_distilled_run_goes_on_to_the_same_bits(world: Path, tmp_path: Path, number: signal.Signals) -> None:
    data = [source(world / "labelled/GTA5", share=0.5), source(world / "extra/GTA5", labels="none", share=0.5)]
    settings = loss(world / "teachers", temperature=2.0)
    manifest = recipe(tmp_path / "r.yaml", data, loss=settings, batch_norm="local", epochs=3)
    whole, output = tmp_path / "whole", tmp_path / "run"
    result = ended(start_forked(*words(manifest, whole, "--workers", "1")))
    assert result.code == 0, result
    interrupted(words(manifest, output, *EVERY_STEP), output, tmp_path / "hold", number)
    result = ended(start_forked(*words(manifest, output, *EVERY_STEP, "--resume")))
    assert result.code == 0, result
    assert equal_runs(output, whole)


def test_a_run_goes_on_with_moved_stores_and_not_with_those_of_others(world: Path, tmp_path: Path) -> None:
    stores = Path(shutil.copytree(world / "teachers", tmp_path / "stores"))
    data = source(world / "labelled/GTA5")
    output = trained(recipe(tmp_path / "r.yaml", data, loss=loss(stores)), tmp_path / "run")
    moved = stores.rename(tmp_path / "moved")
    manifest = recipe(tmp_path / "r.yaml", data, loss=loss(moved))
    assert run(*words(manifest, output, "--resume")).out.startswith("nothing to do")
    table = moved / "logits/labelled/ant.zarr/zarr.json"
    found = json.loads(table.read_text())
    found["attributes"]["sha256"] = "0" * 64
    table.write_text(json.dumps(found))
    assert ", or their teachers did; put back" in run(*words(manifest, output, "--resume")).refusal()


def test_wrong_stores_are_refused_in_one_line(world: Path, tmp_path: Path) -> None:
    def refusal(data: Any, stores: Path = world / "teachers", **settings: Any) -> str:
        manifest = recipe(tmp_path / "r.yaml", data, loss=loss(stores, **settings))
        said: list[str] = []
        assert changed(tmp_path, lambda: said.append(run(*words(manifest, tmp_path / "run")).refusal())) == set()
        return said[0]

    labelled, extra = (source(world / name / "GTA5") for name in ("labelled", "extra"))
    assert f"{tmp_path / 'nowhere/logits'} holds no logits; name the --output" in refusal(
        labelled, tmp_path / "nowhere"
    )
    assert "has no store of cat; there are ant, bee" in refusal(labelled, models=["cat"])
    assert "loss.distillation.dataset street: " in refusal(labelled, dataset="street")
    # Stores of another dataset: the names are the same here, the photographs are not.
    assert "photographs have another size in bytes than when the logits were stored" in refusal(
        labelled, dataset="extra"
    )
    other = tmp_path / "other"
    write_source(other, "bdd100k", train=2, val=1, size=(48, 80))
    message = refusal({"type": "bdd100k", "root": str(other / "bdd100k")})
    assert "has logits of extra, labelled, and none of the photographs of " in message
    unlabelled = refusal([labelled, {"type": "bdd100k", "root": str(other / "bdd100k"), "labels": "none"}])
    assert "which have no labels either; dump them, or remove the source" in unlabelled
    manifest = recipe(tmp_path / "r.yaml", [labelled, {**extra, "labels": "none"}])
    assert (
        "data[1].labels: without labels there is only a teacher" in run(*words(manifest, tmp_path / "run")).refusal()
    )


def test_incomplete_and_foreign_stores_are_refused(world: Path, tmp_path: Path) -> None:
    stores = Path(shutil.copytree(world / "teachers", tmp_path / "stores"))
    manifest = recipe(tmp_path / "r.yaml", source(world / "labelled/GTA5"), loss=loss(stores))
    store = stores / "logits/labelled/bee.zarr"
    entry = listed(store)[3]
    shard = store / entry["array"] / f"c.{entry['row']}.0.0.0"
    kept = shard.read_bytes()
    shard.unlink()
    message = run(*words(manifest, tmp_path / "run")).refusal()
    assert message.startswith(f"{store}: lacks 1 of 10 images ({entry['path']}); make them with 'hmsa-pipeline dump'")
    shard.write_bytes(kept)
    table = store / "zarr.json"
    whole = table.read_text()
    found = json.loads(whole)
    found["attributes"]["classes"][0] = "street"
    table.write_text(json.dumps(found))
    message = run(*words(manifest, tmp_path / "run")).refusal()
    assert "has logits of 19 classes (street, sidewalk, building" in message
    table.write_text(whole)
    # Damage inside of a shard is found when it is read.
    shard.write_bytes(kept[: len(kept) // 2])
    result = run(*words(manifest, tmp_path / "run", "--epochs", "9"))
    assert result.code == 2
    assert "error: " in result.err
    assert "are damaged" in result.err


def test_a_photograph_that_changed_since_the_dump_is_refused(world: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(world / "labelled/GTA5", tmp_path / "GTA5"))
    manifest = recipe(tmp_path / "r.yaml", source(root), loss=loss(world / "teachers"))
    photograph = next((root / "images").glob("*2.png"))
    photograph.write_bytes(photograph.read_bytes() + b"\0")
    message = run(*words(manifest, tmp_path / "run", "--set", "loss.distillation.dataset=labelled")).refusal()
    assert (
        f"1 photograph has another size in bytes than when the logits were stored (images/{photograph.name})"
        in message
    )
