"""`dump`: photographs through checkpoints into stores, and again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.hmsa import OCRNet
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from hmsa_pipeline.models.registry import build
from PIL import Image
from torch import Tensor

from .. import golden
from .bench import TINY, Bench, attributes, changed, ended, files, listed, quiet, stored

STREET = ["day/a.png", "day/b.jpg", "night/c.png", "night/d.png"]
GARDEN = ["deep/tree.JPG", "flower.png"]


def network(checkpoint: Path) -> OCRNet:
    """A tiny network with the weights of a file of ours, loaded by torch alone and made ready for inference."""
    model = build(TINY)
    weights: dict[str, Tensor] = torch.load(checkpoint, weights_only=False)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    return prepare_for_inference(model)


def logits(model: OCRNet, photo: Path, scales: list[float], *, flip: bool = False) -> np.ndarray:
    """What a store has to hold: the direct forward pass, rounded to float16."""
    pixels = decode_image(photo).permute(1, 2, 0).numpy()
    images = golden.normalise(pixels).contiguous(memory_format=torch.channels_last)
    return model.predict(images, scales, flip=flip)[0].half().numpy()


def test_stored_logits_are_the_forward_pass_rounded_to_float16(finished: Bench) -> None:
    for model in ("ant", "bee", "cat"):
        direct = network(finished.root / "weights" / f"{model}.pth")
        for dataset, images in (("street", STREET), ("garden", GARDEN)):
            found = stored(finished.store(dataset, model))
            assert list(found) == images
            for image, values in found.items():
                expected = logits(direct, finished.root / "photos" / dataset / image, [0.5, 1.0, 2.0])
                np.testing.assert_array_equal(values, expected)


def test_the_network_looks_at_the_manifests_scales_and_mirrored_too(empty: Bench) -> None:
    empty.tree["inference"] |= {"scales": [1.0, 1.5], "flip": True}
    empty.save().run("dump", "--models", "ant", "--datasets", "street")
    direct = network(empty.root / "weights" / "ant.pth")
    for image, values in stored(empty.store("street", "ant")).items():
        photo = empty.root / "photos/street" / image
        np.testing.assert_array_equal(values, logits(direct, photo, [1.0, 1.5], flip=True))
        pixels = golden.normalise(decode_image(photo).permute(1, 2, 0).numpy())
        images = pixels.contiguous(memory_format=torch.channels_last)
        mirrored = direct.predict(images.flip(-1), [1.0, 1.5]).flip(-1)
        mean = (direct.predict(images, [1.0, 1.5]) + mirrored)[0] / 2
        np.testing.assert_allclose(values, mean.numpy(), rtol=1e-3, atol=1e-3)


def test_a_store_says_what_made_it(finished: Bench) -> None:
    said = attributes(finished.store("street", "bee"))
    expected = {"model": "bee", "architecture": TINY, "checkpoint": "bee.pth", "flip": False, "precision": "fp32"}
    assert said.items() >= (expected | {"scales": [0.5, 1.0, 2.0], "source": None, "encoding": "lossless"}).items()
    assert (len(said["sha256"]), len(said["classes"])) == (64, 19)
    photo = finished.root / "photos/street/night/c.png"
    assert listed(finished.store("street", "bee"))[2] == {
        "path": "night/c.png",
        "bytes": photo.stat().st_size,
        "height": 33,
        "width": 57,
        "array": "33x57",
        "row": 0,
    }


def test_a_process_of_its_own_makes_the_same_stores(finished: Bench, empty: Bench) -> None:
    result = ended(empty.start("dump"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert result.out.splitlines()[-1].startswith("limited by ")
    assert result.out.splitlines()[-2] == f"18 images dumped, 0 complete before, 0 failed; stores: {empty.logits}"
    assert files(empty.logits) == files(finished.logits)


def test_again_it_does_nothing_and_says_so(full: Bench) -> None:
    def again() -> None:
        result = full.run("dump")
        assert (result.code, result.out, result.err) == (0, "nothing to do: all 18 images are complete\n", "")

    assert changed(full.logits, again) == set()


def test_a_deleted_shard_is_made_again_and_nothing_else(full: Bench) -> None:
    before = files(full.logits)
    shard = full.shard("street", "bee", "night/d.png")
    shard.unlink()

    def again() -> None:
        assert "1 image dumped, 17 complete before, 0 failed" in full.run("dump").out

    assert changed(full.logits, again) == {shard.relative_to(full.logits).as_posix()}
    assert files(full.logits) == before


def test_the_table_of_jobs_leaves_out_those_that_had_nothing_to_do(full: Bench) -> None:
    full.shard("street", "bee", "night/d.png").unlink()
    assert "images/s" not in full.run("dump").out  # one job says it all itself
    full.shard("street", "bee", "night/d.png").unlink()
    full.shard("garden", "cat", "flower.png").unlink()
    lines = full.run("dump").out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("job "))
    assert [line.split()[0] for line in lines[head + 1 : -2]] == ["street/bee", "garden/cat"]


def test_limit_models_and_datasets_choose_what_is_dumped(empty: Bench) -> None:
    result = empty.run("dump", "--models", "cat, ant", "--datasets", "street", "--limit", "3")
    assert "6 images dumped, 0 complete before, 0 failed" in result.out
    assert sorted(p.name for p in empty.logits.rglob("*.zarr")) == ["ant.zarr", "cat.zarr"]
    there = stored(empty.store("street", "ant"))
    assert list(there) == STREET  # the table covers the dataset whatever the limit
    assert [bool(np.isnan(values).all()) for values in there.values()] == [False, False, False, True]
    assert "12 images dumped, 6 complete before" in empty.run("dump").out


def test_figures_are_all_that_standard_output_holds(empty: Bench) -> None:
    result = empty.run("dump", "--models", "ant", "--json", "-")
    first, second = result.figures
    assert first.pop("seconds") > 0
    times = first.pop("times")
    assert first.pop("other") == {}
    assert list(times) == ["read", "forward", "write"]
    assert times["forward"] > 0
    assert first == {"job": "street/ant", "done": 4, "skipped": 0, "failed": {}, "fallbacks": {}, "problem": None}
    assert (second["job"], second["done"]) == ("garden/ant", 2)
    assert "6 images dumped" in result.err
    assert [job["skipped"] for job in empty.run("dump", "--models", "ant", "--json", "-").figures] == [4, 2]
    (planned, _) = empty.run("dump", "--models", "ant", "--limit", "3", "--dry-run", "--json", "-").figures
    assert planned == {"job": "street/ant", "images": 3, "complete": 3}


def test_figures_go_into_a_file(empty: Bench) -> None:
    target = empty.root / "new" / "figures.json"
    result = empty.run("dump", "--models", "ant", "--json", str(target))
    assert [job["job"] for job in json.loads(target.read_text())] == ["street/ant", "garden/ant"]
    assert "6 images dumped" in result.out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(empty: Bench) -> None:
    before = files(empty.root)
    result = empty.run("dump", "--dry-run")
    assert result.code == 0
    assert result.out.splitlines()[0] == "street/ant: 4 to do, 0 complete"
    assert "18 images to do on " in result.out
    assert files(empty.root) == before
    assert not empty.output.exists()


def test_photographs_that_were_added_are_appended(full: Bench) -> None:
    before = files(full.logits)
    full.photo("street/day/aa.png", 40, 64, seed=7)
    full.photo("street/new.png", seed=8)
    assert "6 images dumped, 18 complete before" in full.run("dump").out
    paths = [e["path"] for e in listed(full.store("street", "ant"))]
    assert paths == [*STREET, "day/aa.png", "new.png"]
    direct = network(full.root / "weights" / "ant.pth")
    for image, values in stored(full.store("street", "ant")).items():
        expected = logits(direct, full.root / "photos/street" / image, [0.5, 1.0, 2.0])
        np.testing.assert_array_equal(values, expected)
    after = files(full.logits)
    shards = {name: content for name, content in before.items() if name.endswith(".0.0.0")}
    assert len(shards) == 18
    assert all(after[name] == content for name, content in shards.items())


def test_overwrite_starts_a_store_afresh_and_only_the_chosen_one(full: Bench) -> None:
    reference = files(full.logits)
    (full.root / "photos/garden/flower.png").unlink()
    before = listed(full.store("garden", "bee"))
    wanted = ("--models", "bee", "--datasets", "garden")
    touched = changed(full.logits, lambda: full.run("dump", *wanted, "--overwrite"))
    assert {name.split("/")[1] for name in touched} == {"bee.zarr"}
    assert [e["path"] for e in listed(full.store("garden", "bee"))] == ["deep/tree.JPG"]
    assert len(before) == 2
    after = files(full.logits)
    assert all(after[name] == content for name, content in reference.items() if "garden/bee" not in name)


def test_overwrite_allows_other_settings(full: Bench) -> None:
    full.tree["inference"]["scales"] = [1.0]
    result = full.save().run("dump", "--models", "ant", "--overwrite")
    assert "6 images dumped, 0 complete before" in result.out
    assert attributes(full.store("street", "ant"))["scales"] == [1.0]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("scales", [1.0, 2.0], "scales [0.5, 1.0, 2.0] there, [1.0, 2.0] now"),
        ("flip", True, "flip False there, True now"),
        ("precision", "bf16", "precision fp32 there, bf16 now"),
    ],
)
def test_other_settings_are_refused_by_name(full: Bench, setting: str, value: object, said: str) -> None:
    full.tree["inference"][setting] = value
    full.save()

    def again() -> None:
        message = full.run("dump").refusal()
        assert message.startswith(f"{full.store('street', 'ant')}: was made with other settings ({said})")
        assert "--overwrite" in message

    assert changed(full.output, again) == set()


def test_the_order_of_scales_is_no_other_setting(full: Bench) -> None:
    full.tree["inference"]["scales"] = [2.0, 1.0, 0.5]
    assert "nothing to do" in full.save().run("dump").out


def test_another_checkpoint_is_refused_and_a_renamed_one_is_not(full: Bench) -> None:
    checkpoint = full.root / "weights" / "bee.pth"
    checkpoint.rename(full.root / "weights" / "renamed.pth")
    full.tree["models"][1]["checkpoint"] = "weights/renamed.pth"
    assert "nothing to do" in full.save().run("dump").out
    save_checkpoint(full.root / "weights" / "renamed.pth", build(TINY), arch=TINY)
    message = full.run("dump").refusal()
    assert message.startswith(f"{full.store('street', 'bee')}: was made with other settings (sha256 ")


def test_on_a_cpu_fp16_means_fp32_and_one_line_says_so(empty: Bench, finished: Bench) -> None:
    empty.tree["inference"]["precision"] = "fp16"
    result = empty.save().run("dump", "--device", "cpu", "--models", "ant")
    assert result.code == 0
    (note,) = result.err.splitlines()
    assert note.startswith("precision: ")
    assert "fp32" in note
    assert files(empty.store("street", "ant")) == files(finished.store("street", "ant"))


def test_precision_on_the_command_line_wins_and_is_written_down(empty: Bench, finished: Bench) -> None:
    result = empty.run("dump", "--device", "cpu", "--models", "ant", "--precision", "bf16")
    assert (result.code, result.err) == (0, "")
    assert attributes(empty.store("street", "ant"))["precision"] == "bf16"
    rounded, exact = (stored(bench.store("street", "ant"))["day/a.png"] for bench in (empty, finished))
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded.astype(float), exact.astype(float), atol=0.1 * float(np.abs(exact).max()))


def test_a_photograph_that_does_not_decode_is_listed_and_the_rest_goes_on(empty: Bench) -> None:
    photo = empty.root / "photos/garden/flower.png"
    sound = photo.read_bytes()
    photo.write_bytes(b"no picture")
    result = empty.run("dump", "--models", "ant")
    assert result.code == 1
    assert result.err.splitlines()[0].startswith(f"failed: garden/ant: flower.png: {photo}: ")
    assert "5 images dumped, 0 complete before, 1 failed" in result.out
    again = empty.run("dump", "--models", "ant")
    assert again.code == 1
    assert "0 images dumped, 5 complete before, 1 failed" in again.out
    photo.write_bytes(sound)
    assert "1 image dumped, 5 complete before, 0 failed" in empty.run("dump", "--models", "ant").out
    direct = network(empty.root / "weights" / "ant.pth")
    found = stored(empty.store("garden", "ant"))["flower.png"]
    np.testing.assert_array_equal(found, logits(direct, photo, [0.5, 1.0, 2.0]))


def test_a_damaged_photograph_mended_to_its_old_length_is_dumped(empty: Bench) -> None:
    photo = empty.root / "photos/garden/flower.png"
    sound = photo.read_bytes()
    photo.write_bytes(bytes(len(sound)))
    assert empty.run("dump", "--models", "ant").code == 1
    photo.write_bytes(sound)
    assert "1 image dumped, 5 complete before, 0 failed" in empty.run("dump", "--models", "ant").out


def test_a_photograph_that_changed_since_it_was_dumped_is_an_error(full: Bench) -> None:
    full.photo("street/day/a.png", 40, 40)
    message = full.run("dump").refusal()
    assert "1 photographs have another size in bytes" in message
    assert "(first: day/a.png)" in message


def test_an_external_member_is_left_to_import_logits(empty: Bench) -> None:
    empty.tree["models"][2] = {"name": "cat", "arch": "external"}
    result = empty.save().run("dump", "--limit", "1")
    assert result.code == 0
    assert result.err == "model cat: is external, filled by 'hmsa-pipeline import-logits'\n"
    assert not empty.store("street", "cat").exists()
    assert "all are external" in empty.run("dump", "--models", "cat").refusal()


@pytest.mark.parametrize("place", ["photos/garden/run", "photos/garden"])
def test_results_within_the_photographs_folder_are_no_photographs(empty: Bench, place: str) -> None:
    output = ("--output", str(empty.root / place), "--models", "ant")
    for command in ("dump", "ensemble"):
        assert empty.run(command, *output).code == 0
    assert empty.run("dump", *output).out == "nothing to do: all 6 images are complete\n"


def test_the_run_is_written_down_beside_the_stores(finished: Bench) -> None:
    runs = json.loads((finished.output / "run.json").read_text())
    assert runs["dump"].keys() == {f"{d}/{m}" for d in ("street", "garden") for m in ("ant", "bee", "cat")}
    entry = runs["dump"]["street/ant"]
    assert (entry["images"], entry["done"], entry["failed"]) == (4, 4, [])
    assert entry["manifest"]["inference"]["scales"] == [0.5, 1.0, 2.0]


def test_compact_stores_are_fused_to_all_but_the_same(empty: Bench, finished: Bench) -> None:
    empty.tree["store"] = {"encoding": "compact"}
    empty.save()
    for command in ("dump", "ensemble", "verify"):
        assert empty.run(command).code == 0
    assert attributes(empty.store("street", "ant"))["encoding"] == "compact"
    plain = finished.shard("street", "ant", "day/a.png")
    assert 2 * empty.shard("street", "ant", "day/a.png").stat().st_size < plain.stat().st_size
    for name in ("street/day/a", "garden/flower"):
        label, expected = (np.asarray(Image.open(b.predictions / f"{name}_pred.png")) for b in (empty, finished))
        assert (label == expected).mean() > 0.98
        sure, expected = (np.asarray(Image.open(b.predictions / f"{name}_conf.png")) for b in (empty, finished))
        assert np.abs(sure.astype(int) - expected.astype(int)).max() <= 0.004 * 65536 + 1


def test_small_stores_are_smaller_and_fused_to_the_same_bytes(empty: Bench, finished: Bench) -> None:
    empty.tree["store"] = {"encoding": "small"}
    empty.save()
    for command in ("dump", "ensemble", "verify"):
        assert empty.run(command).code == 0
    assert attributes(empty.store("street", "ant"))["encoding"] == "small"
    small, plain = (bench.shard("street", "ant", "day/a.png") for bench in (empty, finished))
    assert small.stat().st_size < 0.9 * plain.stat().st_size
    for name in ("street/day/a", "garden/flower"):
        for kind in ("pred", "conf"):
            paths = [bench.predictions / f"{name}_{kind}.png" for bench in (empty, finished)]
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_store_of_another_encoding_is_refused(full: Bench) -> None:
    full.tree["store"] = {"encoding": "compact"}
    full.save()
    assert "encoding lossless there, compact now" in full.run("dump").refusal()
