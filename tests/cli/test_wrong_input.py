"""What checkpoints, photographs, devices and folders can be wrong with: one line, and nothing is begun."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from torch import nn

from ..pipeline.stores import made_version_1
from .bench import TINY, Bench, attributes, changed, files


def refused(bench: Bench, command: str, *options: str) -> str:
    """What a command says of its input, having changed nothing."""
    said: list[str] = []
    assert changed(bench.root, lambda: said.append(bench.run(command, *options).refusal())) == set()
    return said[0]


class Malicious:
    """Unpickled without care it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.place}'",)


def malicious(path: Path) -> None:
    state = {"state_dict": {"module.weight": torch.zeros(1)}, "optimizer": Malicious(path.with_name("pwned"))}
    torch.save(state, path)


def plainly_malicious(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Malicious(path.with_name("pwned"))}, protocol=4))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def foreign(path: Path) -> None:
    save_checkpoint(path, nn.Sequential(nn.Conv2d(3, 19, 1), nn.BatchNorm2d(19)), arch="other")


def of_other_classes(path: Path) -> None:
    save_checkpoint(path, build(TINY, 65), arch=TINY)


def half(path: Path) -> None:
    state = build(TINY).state_dict()
    save_checkpoint(path, dict(list(state.items())[: len(state) // 2]), arch=TINY)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no such checkpoint"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder, not a checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (truncated, "is truncated, damaged or no checkpoint"),
    "text": (lambda path: path.write_text("weights"), "is truncated, damaged or no checkpoint"),
    "malicious": (malicious, "refused, it asks for 'posix.system'"),
    "malicious and old": (plainly_malicious, "refused, it asks for 'posix.system'"),
    "no state dict": (lambda path: torch.save([1, 2], path), "holds no state dict"),
    "of a foreign architecture": (foreign, f"keys are missing (first: {next(iter(build(TINY).state_dict()))}"),
    "of other classes": (of_other_classes, ": scores 65 classes, 19 are wanted; "),
    "half of one": (half, "keys are missing"),
}


@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=" ".join)
@pytest.mark.parametrize("trouble", CHECKPOINTS)
def test_a_checkpoint_that_is_none(full: Bench, trouble: str, options: tuple[str, ...]) -> None:
    """Even of the last member: nothing of the others is begun, not even removed."""
    spoil, said = CHECKPOINTS[trouble]
    path = full.root / "weights" / "cat.pth"
    spoil(path)
    message = refused(full, "dump", *options)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert not path.with_name("pwned").exists()


def test_a_checkpoint_whose_sha256_is_another(empty: Bench) -> None:
    empty.tree["models"][1]["sha256"] = "0" * 64
    message = refused(empty.save(), "dump")
    assert message.startswith(f"{empty.root / 'weights/bee.pth'}: its sha256 is ")
    assert "the manifest says 000000000000... for model 'bee'" in message


def test_a_variable_that_is_not_set_is_named_with_its_flag(empty: Bench) -> None:
    empty.tree["models"][0]["checkpoint"] = "${HMSA_ASSETS}/weights/ant.pth"
    empty.tree["datasets"][0]["root"] = "${HMSA_DATA_ROOT}/street"
    empty.save()
    message = refused(empty, "dump")
    assert "HMSA_DATA_ROOT is not set; set it or give --data-root FOLDER" in message
    message = refused(empty, "dump", "--data-root", str(empty.root / "photos"))
    assert "HMSA_ASSETS is not set; set it or give --assets FOLDER" in message
    folders = ("--data-root", str(empty.root / "photos"), "--assets", str(empty.root))
    assert empty.run("dump", *folders, "--models", "ant").code == 0


def test_a_variable_wins_over_nothing_and_a_flag_over_it(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    empty.tree["datasets"][0]["root"] = "${HMSA_DATA_ROOT}/street"
    empty.save()
    monkeypatch.setenv("HMSA_DATA_ROOT", str(empty.root / "nowhere"))
    assert refused(empty, "dump").startswith(f"{empty.root / 'nowhere/street'}: there is no such folder")
    assert empty.run("dump", "--data-root", str(empty.root / "photos"), "--dry-run").code == 0
    monkeypatch.setenv("HMSA_DATA_ROOT", str(empty.root / "photos"))
    assert empty.run("dump", "--dry-run").code == 0


def no_images(garden: Path) -> None:
    for path in garden.rglob("*.*"):
        path.rename(path.with_name(f".{path.name}"))
    (garden / "notes.txt").write_text("no image")


DATASETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda garden: garden.rename(garden.with_name("moved")), "there is no such folder"),
    "a file": (lambda garden: (garden.rename(garden.with_name("moved")), garden.write_text("")), "is not a folder"),
    "empty": (no_images, "holds no image"),
    "two images of one output": (
        lambda garden: (garden / "flower.webp").write_bytes((garden / "flower.png").read_bytes()),
        "so their outputs would have the same names: flower.png, flower.webp",
    ),
    "a name that is not UTF-8": (
        lambda garden: Path(os.fsdecode(bytes(garden) + b"/caf\xe9.png")).write_bytes(b""),
        r"1 file names are not UTF-8: 'caf\udce9.png'",
    ),
    "a link to nothing": (lambda garden: (garden / "z.png").symlink_to("nowhere.png"), "link to a file that is not"),
}


@pytest.mark.parametrize("command", ["dump", "dump --dry-run", "import-logits --model dog --dataset garden photos"])
@pytest.mark.parametrize("trouble", DATASETS)
def test_a_dataset_that_is_none(empty: Bench, trouble: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, said = DATASETS[trouble]
    monkeypatch.chdir(empty.root)
    empty.tree["models"].append({"name": "dog", "arch": "external"})
    spoil(empty.root / "photos" / "garden")
    message = refused(empty.save(), *command.split())
    assert message.startswith(f"{empty.root / 'photos/garden'}")
    assert said in message
    assert not empty.output.exists()


def test_a_split_that_the_type_has_not(empty: Bench) -> None:
    empty.tree["datasets"][1] |= {"type": "cityscapes", "split": "vall"}
    assert "did you mean 'val'?" in refused(empty.save(), "dump")
    empty.tree["datasets"][1]["split"] = "val"
    assert "leftImg8bit/val" in refused(empty.save(), "dump")


def test_a_gpu_that_is_not_there(empty: Bench) -> None:
    for name in ("cuda", "cuda:0", "cuda:7"):
        message = refused(empty, "dump", "--device", name)
        assert message == f"--device {name}: 0 CUDA devices are there; use --device auto or cpu"


@pytest.mark.parametrize("name", ["tpu", "cpu:0", "cuda:", "cuda:x", "cuda:0,", "CPU", ""])
def test_a_device_that_is_none(empty: Bench, name: str) -> None:
    message = refused(empty, "dump", "--device", name)
    assert message == f"--device {name}: is no device; use auto, cpu, cuda or cuda:N"


def a_file_as_output(bench: Bench) -> str:
    bench.output.write_text("in the way")
    return "run"


def a_file_within_the_output(bench: Bench) -> str:
    bench.output.mkdir()
    bench.logits.write_text("in the way")
    return "run/logits"


def a_file_above_the_output(bench: Bench) -> str:
    (bench.root / "above").write_text("in the way")
    bench.manifest.write_text(bench.manifest.read_text().replace(str(bench.output), str(bench.root / "above/run")))
    return "above/run"


@pytest.mark.parametrize("block", [a_file_as_output, a_file_within_the_output, a_file_above_the_output])
def test_an_output_that_cannot_be_written(empty: Bench, block: Callable[[Bench], str]) -> None:
    place = empty.root / block(empty)
    message = refused(empty, "dump")
    assert message.startswith(str(place))
    assert "cannot be written (" in message


def test_an_output_without_the_right_to_write(empty: Bench) -> None:
    empty.output.mkdir(mode=0o500)
    if os.access(empty.output, os.W_OK):
        pytest.skip("this user may write anywhere")
    assert refused(empty, "dump").startswith(f"{empty.output}: cannot be written (Permission denied)")


def test_predictions_that_cannot_be_written(full: Bench) -> None:
    moved = full.predictions.rename(full.root / "moved")
    full.predictions.write_text("in the way")
    message = full.run("ensemble").refusal()
    assert message.startswith(str(full.predictions))
    full.predictions.unlink()
    moved.rename(full.predictions)
    assert "nothing to do" in full.run("ensemble").out


def passed_over(bench: Bench, *options: str) -> str:
    """What ``verify`` says of the one store that it cannot read; the others it reads."""
    before = files(bench.output)
    result = bench.run("verify", *options)
    (line,) = result.err.splitlines()
    assert (result.code, files(bench.output)) == (1, before)
    assert "14 images are sound, 0 damaged, 0 unreadable, 1 store cannot be read" in result.out
    return line.removeprefix("unreadable: ")


def test_images_of_a_store_that_would_leave_the_output_folder(full: Bench) -> None:
    paths = zarr.open_array(full.store("street", "ant") / "images" / "path", mode="r+")
    for path in ("../../../evil.png", "/tmp/evil.png", "day/../../evil.png", "..\\evil.png"):
        paths[0] = path
        for command in ("dump", "ensemble"):
            result = full.run(command)
            assert result.code in (1, 2)
            assert "evil.png' leaves the output folder" in result.err + result.out
        assert passed_over(full).startswith(f"street/ant: {full.store('street', 'ant')}: ")
    assert not [*full.root.parent.rglob("evil.png")]


def test_arrays_of_a_store_that_would_leave_the_output_folder(full: Bench) -> None:
    made_version_1(full.store("street", "ant"))  # which names them
    metadata = full.store("street", "ant") / "zarr.json"
    sound = metadata.read_text()
    for array in ("../../../photos", "/etc", "../bee.zarr/48x80"):
        metadata.write_text(sound.replace('"array": "48x80"', f'"array": "{array}"'))
        for command in ("dump", "ensemble"):
            assert refused(full, command).startswith(f"{full.store('street', 'ant')}: ")
        assert passed_over(full).startswith(f"street/ant: {full.store('street', 'ant')}: ")


def test_a_store_of_another_format_version(full: Bench) -> None:
    metadata = full.store("street", "bee") / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"format_version": 2', '"format_version": 3'))
    for command in (["dump"], ["dump", "--dry-run"], ["ensemble"]):
        message = refused(full, *command)
        assert message.startswith(f"{metadata.parent}: is of format version 3, this hmsa-pipeline reads 1 and 2; ")
    for options in ([], ["--repair"]):
        assert passed_over(full, *options).startswith(f"street/bee: {metadata.parent}: is of format version 3, ")
    assert full.run("dump", "--models", "bee", "--overwrite").code == 0
    assert attributes(metadata.parent)["format_version"] == 2
    assert full.run("verify").code == 0


METADATA: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no JSON": lambda content: b"hello",
    "a list": lambda content: b"[]",
    "not UTF-8": lambda content: content.replace(b"ant", b"\xff\xfe\xfd"),
    "no images": lambda content: content.replace(b'"images"', b'"pictures"'),
    "no number of images": lambda content: content.replace(b'"images": ', b'"images": [], "pictures": '),
    "no identity": lambda content: content.replace(b'"sha256"', b'"md5"'),
    "no group": lambda content: content.replace(b'"node_type": "group"', b'"node_type": "array"'),
    "another zarr": lambda content: content.replace(b'"zarr_format": 3', b'"zarr_format": 4'),
}


@pytest.mark.parametrize("trouble", METADATA)
def test_a_store_whose_metadata_are_damaged(full: Bench, trouble: str) -> None:
    metadata = full.store("street", "ant") / "zarr.json"
    spoilt = METADATA[trouble](metadata.read_bytes())
    assert spoilt != metadata.read_bytes()
    metadata.write_bytes(spoilt)
    for command in ("dump", "ensemble"):
        assert refused(full, command).startswith(f"{metadata.parent}: ")
    assert passed_over(full).startswith(f"street/ant: {metadata.parent}: ")
    assert full.run("status").code == 0
    before = files(full.store("street", "bee"))
    assert full.run("dump", "--models", "ant", "--overwrite").code == 0
    assert full.run("verify").code == 0
    assert files(full.store("street", "bee")) == before


def test_an_array_whose_metadata_are_damaged(full: Bench) -> None:
    metadata = full.store("street", "ant") / "48x80" / "zarr.json"
    sound = metadata.read_bytes()
    for spoilt in (b"", b"{}", sound[:-20], sound.replace(b"blosc", b"blosk")):
        metadata.write_bytes(spoilt)
        result = full.run("verify")
        assert result.code in (1, 2)
        assert all(str(full.store("street", "ant")) in line for line in result.err.splitlines())
        (full.predictions / "street/day/a_pred.png").unlink(missing_ok=True)
        result = full.run("ensemble")
        assert result.code in (1, 2)
        assert "Traceback" not in result.err
        assert not (full.predictions / "street/day/a_pred.png").exists()


def test_a_record_of_predictions_that_is_damaged(full: Bench) -> None:
    record = full.predictions / "street" / "ensemble.json"
    for content in (b"{", b"\xff", b"[]", b'{"members": 3}', b'{"members": [{}]}', b'{"partial": []}', b""):
        record.write_bytes(content)
        assert refused(full, "ensemble").startswith(str(record.parent))
    assert full.run("ensemble", "--overwrite").code == 0


def test_a_run_record_that_is_damaged_stops_nothing(full: Bench) -> None:
    for content in (b"{", b"[]", b'{"dump": 3}', b'{"dump": {"street/ant": []}}', b"\xff"):
        (full.output / "run.json").write_bytes(content)
        full.shard("street", "ant", "day/a.png").unlink()
        assert full.run("dump").code == 0
        assert full.run("ensemble").code == 0


def test_a_manifest_with_a_name_of_several_lines_gets_one(empty: Bench) -> None:
    empty.tree["datasets"][0]["root"] = "photos/no\nsuch\x1b[31m folder"
    message = empty.save().run("dump").refusal()
    assert "no\\nsuch" in message
    assert "\x1b" not in message


def test_what_the_system_refuses_elsewhere_gets_one_line_too(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> io.BytesIO:
        raise OSError(5, "Input/output error", "/somewhere/checkpoint.pth")

    monkeypatch.setattr("hmsa_pipeline.pipeline.inference.member_network.sha256", fail)
    assert "/somewhere/checkpoint.pth: Input/output error" in refused(empty, "dump")
