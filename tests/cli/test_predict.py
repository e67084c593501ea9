"""Dump and fusion in one pass: what the two would leave, without the logits, and safe to interrupt like them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.inference import networks, store_writes
from hmsa_pipeline.pipeline.inference.predictor import Predictor
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store.shard_writer import ShardWriter
from torch import Tensor

from ..limits import PATIENCE
from .bench import Bench, changed, ended, files, quiet
from .conftest import plain_cpu

GARDEN = ("--datasets", "garden")


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """No two networks fit onto the device together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "free_gpu_memory", lambda _: 0)
        patch.setattr(networks.LoadedNetworks, "key", None)
        yield
        patch.setattr(networks.LoadedNetworks, "networks", None)


@pytest.fixture(params=["together", "in turns"])
def _fitting(request: pytest.FixtureRequest) -> Iterator[None]:
    with in_turns() if request.param == "in turns" else contextlib.nullcontext():
        yield


@pytest.fixture(scope="module")
def predicted(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """All of `fresh` predicted; tests must leave it as it is, or take a `copy`."""
    bench = fresh.copy(tmp_path_factory.mktemp("predicted") / "bench")
    with plain_cpu():
        result = bench.run("predict")
        assert (result.code, result.err) == (0, ""), result
    return bench


@pytest.fixture
def done(predicted: Bench, tmp_path: Path) -> Bench:
    """A copy of `predicted` to work on."""
    return predicted.copy(tmp_path / "bench")


def record(bench: Bench) -> dict[str, Any]:
    return json.loads((bench.output / "run.json").read_text())["predict"]


# ------------------------------------------------------------------ the result


def test_predictions_are_those_of_dump_and_ensemble_and_no_logits_are_left(predicted: Bench, finished: Bench) -> None:
    assert files(predicted.predictions) == files(finished.predictions)
    assert not predicted.logits.exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"ensemble": {"label": "mean-logit", "confidence": "mutual-information"}},
        {"ensemble": {"label": "max-softmax", "confidence": "min-softmax"}},
        {"weights": (0.0, 1.0, 2.5), "temperatures": (1.0, 0.5, 3.0)},
        {"inference": {"flip": True, "precision": "fp32", "scales": [0.5, 1.0]}},
    ],
    ids=str,
)
@pytest.mark.usefixtures("_fitting")
def test_every_setting_gives_what_dump_and_ensemble_give(
    empty: Bench, finished: Bench, tmp_path: Path, setting: dict
) -> None:
    setting = dict(setting)
    for key in ("weights", "temperatures"):
        for model, value in zip(empty.tree["models"], setting.pop(key, ()), strict=False):
            model[key.removesuffix("s")] = value
    empty.tree |= setting
    other = empty.save().copy(tmp_path / "other")
    if "inference" not in setting:  # the logits do not depend on it
        shutil.copytree(finished.logits, other.logits)
    assert empty.run("predict").code == 0
    for command in ("dump", "ensemble"):
        assert other.run(command).code == 0
    assert files(empty.predictions) == files(other.predictions)


def test_turns_are_taken_over_groups_of_images(
    empty: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    call = Predictor.__call__

    def listening(self: Predictor, image: Tensor) -> tuple[Tensor, str | None]:
        order.append(self.member.name)
        return call(self, image)

    monkeypatch.setattr(Predictor, "__call__", listening)
    monkeypatch.setattr(networks, "TURN_IMAGES", 3)
    with in_turns():
        assert empty.run("predict", "--datasets", "street").code == 0
    assert order == ["ant"] * 3 + ["bee"] * 3 + ["cat"] * 3 + ["ant", "bee", "cat"]
    assert files(empty.predictions / "street") == files(finished.predictions / "street")


def test_processes_of_their_own_make_the_same(empty: Bench, finished: Bench) -> None:
    result = ended(empty.start("predict", "--workers", "2"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert files(empty.predictions) == files(finished.predictions)
    assert result.out.splitlines()[-2] == f"6 images predicted, 0 done before, 0 failed; {empty.predictions}"
    assert result.out.splitlines()[-1].startswith("limited by ")


def test_a_photograph_that_changed_is_refused(done: Bench) -> None:
    photo = done.root / "photos" / "street" / "day" / "a.png"
    old = photo.read_bytes()
    before = files(done.output)
    done.photo("street/day/a.png", seed=99)
    assert len(photo.read_bytes()) != len(old)
    assert done.run("predict").refusal() == (
        f"{done.predictions}/street: 1 photographs have another size in bytes than when they were predicted "
        "(first: day/a.png); put the old files back, or start over with --overwrite"
    )
    assert files(done.output) == before
    photo.write_bytes(old)
    assert "nothing to do" in done.run("predict").out
    done.photo("street/day/a.png", seed=99)
    assert done.run("predict", "--overwrite").code == 0
    assert "nothing to do" in done.run("predict").out


def test_one_that_is_not_predicted_yet_may_change(done: Bench) -> None:
    done.photo("street/day/a.png", seed=99)
    (done.predictions / "street/day/a_pred.png").unlink()
    assert "1 image predicted, 5 done before, 0 failed" in done.run("predict").out
    assert "nothing to do" in done.run("predict").out


def test_notes_that_cannot_be_read_are_named(done: Bench) -> None:
    note = done.output / "photographs" / "street.json"
    note.write_text("[]")
    said = done.run("predict").refusal()
    assert said == (
        f"{note}: cannot be read (it is no list of sizes); remove it if the photographs are those that were predicted"
    )
    note.unlink()
    assert "nothing to do" in done.run("predict").out


def test_ensemble_takes_up_what_predict_began(done: Bench) -> None:
    before = files(done.predictions)
    for command in ("dump", "ensemble"):
        assert done.run(command).code == 0
    assert files(done.predictions) == before


def test_predict_takes_up_what_ensemble_began(full: Bench) -> None:
    assert changed(full.predictions, lambda: full.run("predict")) == set()
    (full.predictions / "garden/flower_pred.png").unlink()
    result = full.run("predict")
    assert "1 image predicted, 5 done before, 0 failed" in result.out


def test_images_that_were_fused_from_some_members_are_predicted_from_all(full: Bench, finished: Bench) -> None:
    full.shard("garden", "bee", "flower.png").unlink()
    (full.predictions / "garden/flower_pred.png").unlink()
    assert full.run("ensemble", "--allow-missing", *GARDEN).code == 0
    assert json.loads((full.predictions / "garden/ensemble.json").read_text())["partial"] != {}
    result = full.run("predict", *GARDEN)
    assert "1 image predicted, 1 done before" in result.out
    assert files(full.predictions) == files(finished.predictions)


# ------------------------------------------------------------------ keeping logits


@pytest.mark.usefixtures("_fitting")
def test_kept_logits_are_those_of_dump(empty: Bench, finished: Bench) -> None:
    assert empty.run("predict", "--keep", "ant,cat").code == 0
    assert files(empty.predictions) == files(finished.predictions)
    for dataset in ("street", "garden"):
        for model in ("ant", "cat"):
            assert files(empty.store(dataset, model)) == files(finished.store(dataset, model))
        assert not empty.store(dataset, "bee").exists()
    assert "nothing to do: all 12 images are complete" in empty.run("dump", "--models", "ant,cat").out


@pytest.mark.usefixtures("_fitting")
def test_logits_that_are_wanted_later_take_only_their_own_network(
    done: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: set[str] = set()
    call = Predictor.__call__

    def listening(self: Predictor, image: Tensor) -> tuple[Tensor, str | None]:
        ran.add(self.member.name)
        return call(self, image)

    monkeypatch.setattr(Predictor, "__call__", listening)
    before = files(done.predictions)
    assert "6 images predicted, 0 done before" in done.run("predict", "--keep", "bee").out
    assert ran == {"bee"}
    assert files(done.predictions) == before
    assert files(done.store("garden", "bee")) == files(finished.store("garden", "bee"))
    assert "nothing to do: all 6 predictions are there" in done.run("predict", "--keep", "bee").out


def test_a_member_of_weight_0_can_be_kept(empty: Bench, finished: Bench) -> None:
    empty.tree["models"][1]["weight"] = 0.0
    empty.save()
    assert empty.run("predict", "--keep", "bee", *GARDEN).code == 0
    assert files(empty.store("garden", "bee")) == files(finished.store("garden", "bee"))
    names = [m["name"] for m in json.loads((empty.predictions / "garden/ensemble.json").read_text())["members"]]
    assert names == ["ant", "cat"]


def test_ensemble_fuses_nothing_again_where_all_logits_were_kept(empty: Bench) -> None:
    assert empty.run("predict", "--keep", "ant,bee,cat").code == 0
    assert "nothing to do: all 6 predictions are there" in empty.run("ensemble").out


# ------------------------------------------------------------------ options


def test_again_it_does_nothing_and_says_so(done: Bench) -> None:
    def again() -> None:
        result = done.run("predict")
        assert (result.code, result.out, result.err) == (0, "nothing to do: all 6 predictions are there\n", "")

    assert changed(done.root, again) == set()


def test_limit_models_and_datasets_choose_what_is_predicted(empty: Bench) -> None:
    result = empty.run("predict", "--models", "ant,bee", "--datasets", "street", "--limit", "3")
    assert "3 images predicted, 0 done before, 0 failed" in result.out
    assert len(list(empty.predictions.rglob("*_pred.png"))) == 3
    assert (
        "1 image predicted, 3 done before" in empty.run("predict", "--models", "ant,bee", "--datasets", "street").out
    )
    message = empty.run("predict", "--datasets", "street").refusal()
    assert "holds predictions made in another way (members ant, bee there, ant, bee, cat now)" in message


def test_overwrite_makes_everything_again(done: Bench, finished: Bench) -> None:
    done.tree["inference"]["flip"] = True
    message = done.save().run("predict").refusal()
    assert "store of ant made with other settings" in message
    assert "--overwrite" in message
    result = done.run("predict", "--overwrite", "--keep", "ant")
    assert "6 images predicted, 0 done before" in result.out
    assert files(done.predictions) != files(finished.predictions)
    done.tree["inference"]["flip"] = False
    assert done.save().run("predict", "--overwrite").code == 0
    assert files(done.predictions) == files(finished.predictions)


def test_figures_and_a_dry_run(empty: Bench) -> None:
    result = empty.run("predict", "--dry-run", "--keep", "cat")
    assert result.out.splitlines() == [
        "street: 4 to do, 0 complete",
        "garden: 2 to do, 0 complete",
        f"worker this process: {result.out.splitlines()[2].removeprefix('worker this process: ')}",
        "6 images to do with 3 models (ant, bee, cat) on cpu in fp32; logits kept: cat",
    ]
    assert not empty.output.exists()
    first, second = empty.run("predict", "--json", "-").figures
    assert first.pop("seconds") > 0
    assert set(first.pop("times")) == {"read", "forward", "write"}
    assert first.pop("other") == {}
    assert first == {"dataset": "street", "done": 4, "skipped": 0, "failed": {}, "fallbacks": {}, "problem": None}
    assert second["done"] == 2
    assert record(empty)["street"]["done"] == 4
    planned = empty.run("predict", "--dry-run", "--json", "-", "--limit", "1").figures
    assert planned == [{"dataset": d, "images": 1, "complete": 1} for d in ("street", "garden")]


# ------------------------------------------------------------------ wrong input


def test_wrong_input_is_refused_before_anything_is_written(empty: Bench) -> None:
    assert "no model 'dog' in the manifest" in empty.run("predict", "--keep", "dog").refusal()
    assert "--keep: names nothing" in empty.run("predict", "--keep", ",").refusal()
    empty.tree["models"].append({"name": "else", "arch": "external"})
    message = empty.save().run("predict").refusal()
    assert message.startswith("model 'else': is external, there is no network to run; leave it out with --models")
    assert empty.run("predict", "--models", "ant", "--dry-run").code == 0
    empty.photo("garden/flower.jpg")
    message = empty.run("predict", "--models", "ant", *GARDEN).refusal()
    assert "2 images differ in their suffix alone" in message
    (empty.root / "photos/garden/flower.jpg").unlink()
    empty.tree["models"][0]["sha256"] = "0" * 64
    assert "the manifest says 000000000000" in empty.save().run("predict", "--models", "ant").refusal()
    assert not empty.output.exists()


def test_a_folder_or_store_in_use_is_refused(empty: Bench) -> None:
    with writer_lock(empty.predictions / "garden"):
        assert "garden.lock: held by process" in empty.run("predict").refusal()
    with writer_lock(empty.store("garden", "cat")):
        assert "cat.zarr.lock: held by process" in empty.run("predict", "--keep", "cat").refusal()


def test_a_store_of_other_settings_is_refused(full: Bench) -> None:
    assert full.run("predict", "--overwrite", "--datasets", "street").code == 0  # without it no store counts
    full.tree["inference"]["flip"] = True
    message = full.save().run("predict", "--keep", "ant", "--output", str(full.output)).refusal()
    assert "made in another way" in message
    for folder in ("street", "garden"):
        for file in (full.predictions / folder).rglob("*.*"):
            file.unlink()
    assert "flip False there, True now" in full.run("predict", "--keep", "ant").refusal()


# ------------------------------------------------------------------ trouble


@pytest.mark.usefixtures("_fitting")
def test_a_damaged_photograph_is_listed_and_the_rest_is_done(empty: Bench, finished: Bench) -> None:
    photo = empty.root / "photos/garden/flower.png"
    sound = photo.read_bytes()
    photo.write_bytes(sound[: len(sound) // 2])
    result = empty.run("predict", "--keep", "ant")
    assert result.code == 1
    assert result.err.startswith("failed: garden: flower.png: ")
    assert "5 images predicted, 0 done before, 1 failed" in result.out
    assert "to try again what failed: hmsa-pipeline predict" in result.out
    assert [failure["image"] for failure in record(empty)["garden"]["failed"]] == ["flower.png"]
    photo.write_bytes(sound)
    os.utime(photo)
    result = empty.run("predict", "--keep", "ant")
    assert (result.code, "1 image predicted, 5 done before" in result.out) == (0, True)
    assert files(empty.predictions) == files(finished.predictions)


def test_a_prediction_of_the_first_images_keeps_the_reasons_of_later_failures(empty: Bench) -> None:
    (empty.root / "photos/garden/flower.png").write_bytes(b"no picture")
    assert empty.run("predict", *GARDEN).code == 1
    reasons = record(empty)["garden"]["failed"]
    assert [failure["image"] for failure in reasons] == ["flower.png"]
    (empty.predictions / "garden/deep/tree_pred.png").unlink()
    assert empty.run("predict", *GARDEN, "--limit", "1").code == 0
    assert record(empty)["garden"]["failed"] == reasons


@pytest.mark.usefixtures("_fitting")
def test_logits_that_are_not_finite_are_listed(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Predictor.__call__

    def broken(self: Predictor, image: Tensor) -> tuple[Tensor, str | None]:
        logits, way = call(self, image)
        if tuple(image.shape[1:]) == (33, 57):
            logits = logits.clone()
            logits[3, 7, 9] = torch.nan
        return logits, way

    monkeypatch.setattr(Predictor, "__call__", broken)
    result = empty.run("predict", "--datasets", "street")
    assert result.code == 1
    assert "failed: street: night/c.png: night/c.png: a member's logits are not finite in fp32" in result.err
    assert not (empty.predictions / "street/night/c_pred.png").exists()
    assert len(list(empty.predictions.rglob("*_pred.png"))) == 3


@pytest.mark.usefixtures("_fitting")
def test_an_image_too_large_for_the_memory_is_listed(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Predictor.__call__

    def short(self: Predictor, image: Tensor) -> tuple[Tensor, str | None]:
        if tuple(image.shape[1:]) == (33, 57):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, image)

    monkeypatch.setattr(Predictor, "__call__", short)
    result = empty.run("predict", "--datasets", "street")
    assert result.code == 1
    assert "night/c.png: 33x57 does not fit into the device's memory" in result.err
    assert "3 images predicted" in result.out


@pytest.mark.usefixtures("_fitting")
def test_images_made_in_parts_are_listed_by_member(
    empty: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Predictor.compute

    def short(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        if gather is None and self.member.name == "bee":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, image, gather)

    monkeypatch.setattr(Predictor, "compute", short)
    result = empty.run("predict", *GARDEN)
    assert "2 images did not fit into the device's memory at once" in result.err
    assert set(record(empty)["garden"]["fallbacks"].values()) == {"bee scale by scale"}
    assert files(empty.predictions / "garden") == files(finished.predictions / "garden")


def test_a_disk_that_is_nearly_full_stops_the_run(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writes, "free_bytes", lambda _: 1000)
    result = empty.run("predict")
    assert result.code == 2
    assert "are free on its disk, too few to go on safely" in result.err
    assert list(empty.predictions.rglob("*_pred.png")) == []


def test_a_lost_lock_stops_the_dataset(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(target: Path, token: str) -> None:
        raise StoreError(f"{target}.lock: is another run's now")

    monkeypatch.setattr(store_writes, "require_held", lost)
    result = empty.run("predict", *GARDEN)
    assert result.code == 1
    assert "failed: garden: " in result.err
    assert "is another run's now" in result.err
    assert "1 of 1 datasets could not be done" in result.out


def test_kept_logits_that_were_written_survive_a_lost_prediction(
    empty: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a `kill -9` between the two."""
    assert empty.run("predict", "--keep", "ant").code == 0
    (empty.predictions / "garden/flower_pred.png").unlink()
    wrote: list[str] = []
    write = ShardWriter.write
    monkeypatch.setattr(
        ShardWriter, "write", lambda self, entry, logits: (wrote.append(entry.path), write(self, entry, logits))
    )
    assert "1 image predicted, 5 done before" in empty.run("predict", "--keep", "ant").out
    assert wrote == []
    assert files(empty.predictions) == files(finished.predictions)


@pytest.fixture(scope="module")
def whole(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Enough work for a signal to fall into the middle of it, done in one go; tests must leave it as it is."""
    bench = fresh.copy(tmp_path_factory.mktemp("whole") / "bench")
    for number in range(24):
        bench.photo(f"street/more/{number:02}.png", 64, 96, seed=number)
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    with plain_cpu():
        for command in ("dump", "ensemble"):
            assert bench.save().run(command).code == 0
    return bench


@pytest.fixture
def long(whole: Bench, tmp_path: Path) -> Bench:
    """`whole` with nothing done yet."""
    bench = whole.copy(tmp_path / "long")
    shutil.rmtree(bench.output)
    return bench


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_goes_on_after_an_interruption(long: Bench, whole: Bench, how: signal.Signals) -> None:
    process = long.start("predict", "--workers", "0", "--keep", "bee")
    while len(list(long.predictions.rglob("*_pred.png"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    if how == signal.SIGKILL:
        process.communicate(timeout=PATIENCE)
    else:
        result = ended(process)
        assert result.code == 130
        assert "run the same command again to go on" in result.err
    there = len(list(long.predictions.rglob("*_pred.png")))
    assert 4 <= there < 28
    result = long.run("predict", "--keep", "bee")
    assert result.code == 0
    if how != signal.SIGKILL:
        assert f"{28 - there} images predicted, {there} done before" in result.out
    assert files(long.predictions) == files(whole.predictions)
    assert files(long.store("street", "bee")) == files(whole.store("street", "bee"))
