"""Other classes than the 19 of Cityscapes through every command, held against slow counts over all pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zarr
from hmsa_pipeline.datasets.class_set import ClassSet, shipped_set
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.models.checkpoint import read_checkpoint, save_checkpoint
from hmsa_pipeline.models.registry import build
from PIL import Image

from .bench import TINY, Bench, attributes, listed, run
from .conftest import plain_cpu
from .training import SMALL

OWN = ClassSet(None, ("ground", "thing", "sky", "alive"), ((90, 60, 30), (200, 200, 0), (0, 128, 255), (255, 0, 90)))
TO_OWN = [0, 0, 1, 1, 1, 1, 1, 1, 3, 3, 2, 3, 3, 1, 1, 1, 1, 1, 1]
"""Id of each of the 19 classes among the four."""
DRAWN = ("--train", "4", "--val", "3", "--size", "64x128")


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def written(classes: ClassSet) -> list[dict[str, Any]]:
    rows = zip(classes.names, classes.colours, strict=True)
    return [{"name": name, "color": list(colour)} for name, colour in rows]


def weights(path: Path, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    save_checkpoint(path, build(TINY, count), arch=TINY, num_classes=count)


def folder_of_own_classes(root: Path) -> dict[str, np.ndarray]:
    """Photographs in ``photos/val`` and ``photos/train``, masks of the four classes; those of ``val`` by image."""
    assert run("datasets", "draw", "bdd100k", "--output", str(root / "drawn"), *DRAWN).code == 0
    drawn, truths = root / "drawn" / dataset_spec("bdd100k").folder, {}
    table = np.full(256, 255, np.uint8)
    table[: len(TO_OWN)] = TO_OWN
    for split in ("train", "val"):
        for photo in sorted((drawn / "images/10k" / split).iterdir()):
            mask = table[opened(drawn / "labels/sem_seg/masks" / split / f"{photo.stem}.png")]
            for folder, name in (("photos", photo.name), ("masks", f"{photo.stem}.png")):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                if folder == "photos":
                    (root / folder / split / name).write_bytes(photo.read_bytes())
                else:
                    Image.fromarray(mask).save(root / folder / split / name)
            if split == "val":
                truths[f"{photo.name}"] = mask
    return truths


def raw_masks(root: Path, name: str) -> dict[str, np.ndarray]:
    """Raw ids of the drawn masks of Mapillary's validation split, by image."""
    folder = root / "drawn" / dataset_spec(name).folder / "validation"
    return {f"validation/images/{p.stem}.jpg": opened(p) for p in sorted((folder / "labels").iterdir())}


World = tuple[Bench, ClassSet, dict[str, np.ndarray]]


def made(root: Path, which: str) -> World:
    """A manifest of two members over labelled images of one class set, dumped and fused; and the labels by image."""
    classes = OWN if which == "own" else shipped_set(which)
    for seed, name in enumerate(("ant", "bee")):
        weights(root / f"{name}.pth", len(classes), seed)
    tree: dict[str, Any] = {
        "version": 1,
        "inference": {"scales": [0.5, 1.0], "precision": "fp32"},
        "models": [{"name": name, "arch": TINY, "checkpoint": f"{name}.pth"} for name in ("ant", "bee")],
    }
    if which == "own":
        truths = folder_of_own_classes(root)
        (root / "classes.yaml").write_text(yaml.safe_dump(written(OWN)))
        tree["classes"] = "classes.yaml"
        tree["datasets"] = [{"name": "world", "type": "folder", "root": "photos/val", "masks": "masks/val"}]
    else:
        tree |= {"classes": which, "store": {"encoding": "compact"}}
        source = "idd" if which == "idd26" else "mapillary"
        assert run("datasets", "draw", source, "--output", str(root / "drawn"), *DRAWN).code == 0
        folder = f"drawn/{dataset_spec(source).folder}"
        tree["datasets"] = [{"name": "world", "type": source, "root": folder, "split": "val"}]
        truths = {}
        if source == "mapillary":
            # Unlabeled, of v1.2, is ignored.
            truths = {image: np.where(raw == 65, 255, raw) for image, raw in raw_masks(root, source).items()}
    bench = Bench(root, tree).save()
    for command in ("dump", "ensemble"):
        result = bench.run(command)
        assert (result.code, result.err) == (0, ""), result
    return bench, classes, truths


@pytest.fixture(scope="module", params=["own", "mapillary65"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with plain_cpu():
        yield made(tmp_path_factory.mktemp(request.param) / "bench", request.param)


def predicted(bench: Bench, image: str) -> np.ndarray:
    return opened(bench.predictions / "world" / f"{image.rpartition('.')[0]}_pred.png")


def slow_iou(labels: list[np.ndarray], truths: list[np.ndarray], count: int) -> list[float | None]:
    """IoU of each class, by comparing masks of pixels."""
    label, truth = (np.concatenate([one.ravel() for one in parts]) for parts in (labels, truths))
    label, truth = label[truth != 255], truth[truth != 255]
    union = [((label == c) | (truth == c)).sum() for c in range(count)]
    return [((label == c) & (truth == c)).sum() / union[c] if union[c] else None for c in range(count)]


def test_stores_hold_all_classes_with_their_names(world: World) -> None:
    bench, classes, truths = world
    for name in ("ant", "bee"):
        said = attributes(bench.store("world", name))
        assert said["classes"] == list(classes.names)
        group = zarr.open_group(bench.store("world", name), mode="r")
        for entry in listed(bench.store("world", name)):
            size = truths[entry["path"]].shape
            assert group[entry["array"]][entry["row"]].shape == (len(classes), *size)  # type: ignore[index]
    assert json.loads((bench.predictions / "world/ensemble.json").read_text())["classes"] == list(classes.names)


def test_predictions_are_the_mean_of_what_the_networks_say(world: World) -> None:
    bench, classes, truths = world
    for image in truths:
        beliefs = []
        for name in ("ant", "bee"):
            group = zarr.open_group(bench.store("world", name), mode="r")
            entry = next(e for e in listed(bench.store("world", name)) if e["path"] == image)
            logits = np.asarray(group[entry["array"]][entry["row"]], np.float64)  # type: ignore[index]
            odds = np.exp(logits - logits.max(0))
            beliefs.append(odds / odds.sum(0))
        mean = np.mean(beliefs, axis=0)
        sure = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-6
        label = predicted(bench, image)
        assert label.max() < len(classes)
        assert (mean.argmax(0) == label)[sure].all()


def test_evaluate_counts_every_class(world: World) -> None:
    bench, classes, truths = world
    (figures,) = bench.run("evaluate", "--per-model", "--json", "-").figures
    assert figures["classes"] == list(classes.names)
    wanted = slow_iou([predicted(bench, image) for image in truths], list(truths.values()), len(classes))
    assert figures["scores"]["ensemble"]["iou"] == pytest.approx(wanted, abs=1e-12)
    known = [value for value in wanted if value is not None]
    assert figures["scores"]["ensemble"]["miou"] == pytest.approx(np.mean(known), abs=1e-12)
    assert set(figures["scores"]) == {"ensemble", "ant", "bee"}
    table = bench.run("evaluate").out
    assert all(name in table for name in classes.names)


def test_calibrate_report_and_render_follow(world: World, tmp_path: Path) -> None:
    bench, classes, truths = world
    result = bench.run("calibrate", "--write", str(tmp_path / "c.yaml"), "--json", "-")
    assert result.code == 0, result
    assert set(result.figures["average"]["classes"]) <= set(classes.names)
    # The written manifest stands alone: it needs no file of classes.
    again = run("evaluate", "--manifest", str(tmp_path / "c.yaml"), "--json", "-")
    assert again.code == 0, again

    assert bench.run("report", "--write", str(tmp_path / "report")).code == 0
    figures = json.loads((tmp_path / "report/report.json").read_text())
    wanted = slow_iou([predicted(bench, image) for image in truths], list(truths.values()), len(classes))
    assert figures["datasets"][0]["scores"]["ensemble"]["iou"] == pytest.approx(wanted, abs=1e-12)
    assert set(figures["datasets"][0]["worst_by_class"]) <= set(classes.names)
    page = (tmp_path / "report/index.html").read_text()
    for name, colour in zip(classes.names, classes.colours, strict=True):
        assert name.replace("&", "&amp;") in page
        assert "#" + bytes(colour).hex() in page
    assert "autorickshaw" not in page

    assert bench.run("render", "--write", str(tmp_path / "p"), "--kinds", "colour,sheet").code == 0
    for image in truths:
        stem = image.rpartition(".")[0]
        colours = np.array(classes.colours, np.uint8)
        assert np.array_equal(opened(tmp_path / "p/world" / f"{stem}_colour.png"), colours[predicted(bench, image)])
        assert (tmp_path / "p/world" / f"{stem}_sheet.png").is_file()


def test_train_follows_and_its_checkpoint_remembers(world: World, tmp_path: Path) -> None:
    bench, classes, _ = world
    recipe = yaml.safe_load((Path(__file__).parents[2] / "manifests/train/bdd100k.yaml").read_text())
    own = classes.name is None
    data: dict[str, Any] = {"type": "mapillary", "root": str(bench.root / "drawn/mapillary-vistas-1.2")}
    if own:
        data = {"type": "folder", "root": str(bench.root / "photos"), "masks": str(bench.root / "masks")}
    recipe |= {"classes": str(bench.root / "classes.yaml") if own else classes.name, "data": data, "init": {}}
    recipe["augmentation"] |= {"crop": [32, 64]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    words = ("--manifest", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "out"), "--epochs", "1")
    result = run("train", *words, *SMALL)
    assert result.code == 0, result
    row = json.loads((tmp_path / "out/history.json").read_text())[-1]
    assert list(row["iou"]) == list(classes.names)
    saved = read_checkpoint(tmp_path / "out/best_weights.pth")
    assert (saved["num_classes"], saved["class_names"]) == (len(classes), list(classes.names))
    # The figures of the last epoch are those of the network that is saved.
    bench = bench.copy(tmp_path / "bench")
    member = {"name": "new", "arch": TINY, "checkpoint": str(tmp_path / "out/best_weights.pth")}
    bench.tree |= {"models": [member], "store": {"encoding": "lossless"}}
    bench.tree["inference"] = {"scales": recipe["validation"]["scales"], "precision": "fp32"}
    bench.save()
    for command in ("dump", "ensemble"):
        assert bench.run(command, "--overwrite").code == 0
    (figures,) = bench.run("evaluate", "--json", "-").figures
    found = figures["scores"]["ensemble"]["iou"]
    assert [value is None for value in found] == [row["iou"][name] is None for name in classes.names]
    learnt = [0.0 if value is None else value for value in row["iou"].values()]
    assert [value or 0.0 for value in found] == pytest.approx(learnt, abs=2e-3)
    assert run("train", *words, *SMALL, "--resume").code == 0
    # Another set with as many classes, or without them, is not taken silently.
    bench.tree["classes"] = [{"name": f"c{i}", "color": [i, i, i]} for i in range(len(classes))]
    said = bench.save().run("dump", "--overwrite").refusal()
    assert "best_weights.pth was trained on other classes" in said
    assert "say which are which with 'classes' of the model" in said


def test_idd_is_scored_by_the_ids_of_level_3(tmp_path: Path) -> None:
    bench, _, _ = made(tmp_path / "bench", "idd26")
    facts = dataset_spec("idd")
    level3 = facts.class_sets["idd26"].ids
    assert not isinstance(level3, str)
    (figures,) = bench.run("evaluate", "--json", "-").figures
    # The same polygons, drawn as raw ids by the authors' rule: later ones over earlier ones.
    from hmsa_pipeline.datasets.labels.polygons import draw

    ids = {name: raw for raw, (_, name) in (facts.labels or {}).items()}
    labels, truths = [], []
    folder = bench.root / "drawn" / facts.folder
    for file in sorted((folder / "gtFine/val").rglob("*_polygons.json")):
        raw = draw(file, ids)
        truths.append(np.vectorize(lambda one: level3.get(one, 255))(raw))
        stem = file.relative_to(folder / "gtFine").as_posix().replace("_gtFine_polygons.json", "_leftImg8bit")
        labels.append(opened(bench.predictions / "world/leftImg8bit" / f"{stem}_pred.png"))
    assert figures["scores"]["ensemble"]["iou"] == pytest.approx(slow_iou(labels, truths, 26), abs=1e-12)
    assert figures["classes"][8] == "autorickshaw"
    # Masks that the authors' scripts draw are preferred.
    for file, truth in zip(sorted((folder / "gtFine/val").rglob("*_polygons.json")), truths, strict=True):
        png = file.with_name(file.name.replace("_polygons.json", "_labellevel3Ids.png"))
        Image.fromarray(np.where(truth == 8, 9, truth).astype(np.uint8)).save(png)
    (figures,) = bench.run("evaluate", "--json", "-").figures
    changed = [np.where(truth == 8, 9, truth) for truth in truths]
    assert figures["scores"]["ensemble"]["iou"] == pytest.approx(slow_iou(labels, changed, 26), abs=1e-12)


def test_masks_of_mapillary_2_are_read_in_both_of_its_sets(tmp_path: Path) -> None:
    assert run("datasets", "draw", "mapillary", "--output", str(tmp_path), *DRAWN).code == 0
    facts = dataset_spec("mapillary")
    folder = tmp_path / facts.folder
    draw, truths = np.random.default_rng(0), {}
    for old in sorted((folder / "validation/labels").iterdir()):
        raw = draw.integers(0, 124, opened(old).shape).astype(np.uint8)
        new = folder / "validation/v2.0/labels" / old.name
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(raw).save(new)
        truths[f"validation/images/{old.stem}"] = raw
        old.unlink()
    (folder / "validation/labels").rmdir()
    ignored = [2, 31, 38, 79, 86, 96, 115, 123]
    as_v1 = np.array([(facts.labels_v2 or {})[raw][0] for raw in range(124)])
    for name, table, count in (
        ("mapillary124", np.where(np.isin(np.arange(124), ignored), 255, np.arange(124)), 124),
        ("mapillary65", np.where(as_v1 == 65, 255, as_v1), 65),
    ):
        weights(tmp_path / f"{name}.pth", count, 0)
        tree = {
            "version": 1,
            "classes": name,
            "inference": {"scales": [1.0], "precision": "fp32"},
            "models": [{"name": "ant", "arch": TINY, "checkpoint": str(tmp_path / f"{name}.pth")}],
            "datasets": [{"name": "world", "type": "mapillary", "root": str(folder), "split": "val"}],
        }
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name, tree).save()
        for command in ("dump", "ensemble"):
            assert bench.run(command).code == 0
        (figures,) = bench.run("evaluate", "--json", "-").figures
        labels = [opened(bench.predictions / "world" / f"{stem}_pred.png") for stem in truths]
        wanted = slow_iou(labels, [table[raw] for raw in truths.values()], count)
        assert figures["scores"]["ensemble"]["iou"] == pytest.approx(wanted, abs=1e-12)
        counted = len(figures["average"]["classes"])
        assert counted == (116 if count == 124 else len(set(as_v1) - {65}))
