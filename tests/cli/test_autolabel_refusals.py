"""`autolabel` refuses what cannot be labelled in one line, with exit code 2, before it reads a logit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .bench import Bench, files, run
from .labelled_city import MODELS
from .test_autolabel import city, images, label

__all__ = ["city"]


def refused(bench: Bench, write: Path, *options: str) -> str:
    """The line that ``autolabel`` ends with; nothing may have been written."""
    message = bench.run("autolabel", "--write", str(write), *options).refusal()
    assert not write.exists()
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "0.5", "--keep", "0.5"], "--threshold and --keep: each of them decides what is kept"),
        (
            ["--precision", "0.5", "--keep", "0.5", "--fit", "fine"],
            "--precision and --keep: each of them decides what is kept; give one",
        ),
        (["--threshold", "0"], "--threshold 0: is out of range; give a number above 0 and at most 0.9999"),
        (["--threshold", "1"], "--threshold 1: is out of range"),
        (["--threshold", "nan"], "--threshold nan: is out of range"),
        (["--precision", "1", "--fit", "fine"], "--precision 1: is out of range; give a number between 0 and 1"),
        (["--keep", "1.5"], "--keep 1.5: is out of range; give a number above 0 and at most 1"),
        (["--precision", "0.9"], "--precision 0.9: needs labels to be measured on; name a labelled dataset"),
        (["--precision", "0.9", "--fit", "finer"], "--fit finer: is no dataset of the manifest; it has fine, extra"),
        (["--agree", "0"], "--agree 0: is out of range"),
        (["--agree", "4"], "--agree 4: there are 3 members; give at most that many"),
        (["--erode", "-1"], "--erode -1: is out of range; give 0 to 100 pixels"),
        (["--format", "cityscape"], "--format cityscape: is no format; did you mean 'cityscapes'?"),
        (["--respect-coarse", "no"], "--respect-coarse no: is no rule; known: keep, drop"),
        (["--models", "dog"], "no model 'dog'"),
    ],
)
def test_options_that_cannot_be_followed(city: Bench, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refused(city, tmp_path / "labels", *options)


def test_labels_among_photographs_or_logits(city: Bench, tmp_path: Path) -> None:
    root = Path(city.tree["datasets"][1]["root"])
    before = files(city.root)
    for write in (root / "labels", root, city.logits):
        message = city.run("autolabel", "--write", str(write), "--datasets", "extra").refusal()
        assert message.startswith("--write: ")
    others = str(Path(city.tree["datasets"][0]["root"]) / "labels")
    message = city.run("autolabel", "--write", others, "--datasets", "extra").refusal()
    assert f"one tree with the photographs of '{city.tree['datasets'][0]['name']}'" in message
    assert files(city.root) == before
    bench = city.copy(tmp_path / "bench")
    # The dataset is called like its folder: labels would come to lie around the photographs.
    bench.tree["datasets"][1]["name"] = root.name
    message = bench.save().run("autolabel", "--write", str(root.parent), "--datasets", root.name).refusal()
    assert "would lie in one tree with the photographs" in message


def test_a_folder_that_cannot_be_written(city: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = city.run("autolabel", "--write", str(tmp_path / "file/labels")).refusal()
    assert message.startswith(f"--write {tmp_path / 'file/labels'}: cannot be written")


def test_a_url_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = run("autolabel", "--manifest", "cityscapes", "--write", "s3://bucket/labels", "--dry-run").refusal()
    assert message == "--write s3://bucket/labels: is a URL; name a folder of this machine"
    assert not any(tmp_path.iterdir())


def test_no_stores_and_stores_that_are_incomplete(city: Bench, tmp_path: Path) -> None:
    bench, write = city.copy(tmp_path / "bench"), tmp_path / "labels"
    first = images(city, "extra")[0]
    for model in MODELS:
        bench.shard("extra", model, first).unlink()
    message = refused(bench, write, "--datasets", "extra")
    assert message == f"extra: {first} is in no member's store yet; finish 'hmsa-pipeline dump', or take --limit"
    bench.shard("extra", "ant", images(city, "extra")[1]).unlink()
    message = refused(bench, write, "--datasets", "extra")
    assert message == "extra: of 4 images ant lacks 1; finish 'hmsa-pipeline dump' (or import-logits)"
    store = bench.store("extra", "bee")
    shutil.rmtree(store)
    assert refused(bench, write, "--datasets", "extra").startswith(f"{store}: there is no store; make it with")
    message = refused(bench, write, "--datasets", "fine", "--models", "ant", "--fit", "extra")
    assert "lacks 2 of 4 images" in message


def test_stores_of_other_photographs(city: Bench, tmp_path: Path) -> None:
    bench, write = city.copy(tmp_path / "bench"), tmp_path / "labels"
    bench.tree["datasets"][1]["split"] = "train"
    place = bench.logits / "extra"
    assert refused(bench.save(), write, "--datasets", "extra").startswith(
        f"{place}: holds logits of other photographs, of none of the 4 in "
    )
    data = Path(shutil.copytree(city.tree["datasets"][1]["root"], tmp_path / "data"))
    bench.tree["datasets"][1] |= {"split": "train_extra", "root": str(data)}
    first = data / images(city, "extra")[0]
    shutil.copy(first, first.with_name("new_1_1_leftImg8bit.png"))
    assert "lacks 1 of the 5 photographs" in refused(bench.save(), write, "--datasets", "extra")
    first.with_name("new_1_1_leftImg8bit.png").unlink()
    first.write_bytes(first.read_bytes() + b" ")
    assert "1 photographs have another size in bytes" in refused(bench, write, "--datasets", "extra")


def test_a_threshold_that_keeps_nothing(city: Bench, tmp_path: Path) -> None:
    words = ("--datasets", "extra", "--write", str(tmp_path))
    result = city.run("autolabel", *words, "--threshold", "0.99")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("error: --threshold 0.99: keeps nothing of ")
    assert "(best confidence 0." in line and "in extra; lower it, or run the same command with --allow-empty" in line
    assert json.loads((tmp_path / "extra/labels.json").read_text())["complete"] is False
    # No image is labelled twice.
    again = city.run("autolabel", *words, "--threshold", "0.99", "--allow-empty")
    assert again.code == 0
    assert "nothing to do: all 4 images have labels" in again.out
    label(city, tmp_path / "whole", "--threshold", "0.99")
    assert files(tmp_path / "extra") == files(tmp_path / "whole/extra")


def test_a_precision_that_is_nowhere_reached(city: Bench, tmp_path: Path) -> None:
    message = refused(city, tmp_path / "labels", "--precision", "0.99", "--fit", "fine")
    assert message.startswith("--precision 0.99: no threshold reaches it on fine for ")
    assert "(best 0." in message
    assert message.endswith("lower it, or leave such classes out by --allow-empty")


def test_nobody_is_left_to_agree(city: Bench, tmp_path: Path) -> None:
    words = ("--datasets", "extra", "--write", str(tmp_path), "--keep", "0.5", "--agree", "3", "--erode", "9")
    result = city.run("autolabel", *words)
    assert result.code == 2
    assert "(no pixel is left by --agree and --erode)" in result.err


def test_the_labelled_dataset_alone(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    message = refused(bench.save(), tmp_path / "labels", "--fit", "fine")
    assert message == "--fit fine: is the only dataset, and nothing is left to label; name it by --datasets"
    assert label(bench, tmp_path / "labels", "--fit", "fine", "--datasets", "fine").code == 0


def test_datasets_without_labels_of_classes(full: Bench, tmp_path: Path) -> None:
    write = tmp_path / "labels"
    assert refused(full, write, "--fit", "garden").startswith("--fit garden: type 'folder' has no labels of classes")
    message = refused(full, write, "--respect-coarse", "keep", "--datasets", "garden")
    assert message.startswith("--respect-coarse: dataset 'garden' of type 'folder' has no labels of its own")


def test_photographs_that_are_turned(full: Bench, tmp_path: Path) -> None:
    full.tree["datasets"][1]["orientation"] = "exif"
    message = refused(full.save(), tmp_path / "labels", "--datasets", "garden")
    assert message.startswith("dataset 'garden': orientation exif turns photographs")


def test_models_that_do_not_count(city: Bench, tmp_path: Path) -> None:
    bench = city.copy(tmp_path / "bench")
    bench.tree["models"][0]["weight"] = 0.0
    message = refused(bench.save(), tmp_path / "labels", "--models", "ant")
    assert message.startswith("--models: all selected models have weight 0")


def test_labels_that_were_cut_short(city: Bench, tmp_path: Path) -> None:
    label(city, tmp_path, "--threshold", "0.5", "--limit", "1")
    path = next((tmp_path / "extra/labels").rglob("*.png"))
    path.write_bytes(b"")
    message = city.run(
        "autolabel", "--write", str(tmp_path), "--datasets", "extra", "--threshold", "0.5", "--allow-empty"
    )
    assert message.code == 2
    assert f"{path}: is damaged, or was not written by this command" in message.err
    (tmp_path / "extra/labels.json").write_text("{}")
    message = city.run("autolabel", "--write", str(tmp_path), "--datasets", "extra").refusal()
    assert message.startswith(f"{tmp_path / 'extra/labels.json'}: cannot be read")
