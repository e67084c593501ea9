"""`import-logits`: members whose logits were made elsewhere."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hmsa_pipeline.pipeline.fusion.fuse import fuse, quantise
from PIL import Image
from safetensors.torch import save_file
from scipy.special import softmax

from .bench import Bench, Result, attributes, changed, ended, files, stored

SIZES = {"day/a.png": (48, 80), "day/b.jpg": (48, 80), "night/c.png": (33, 57), "night/d.png": (48, 80)}


def made(image: str, channels: int = 19, seed: int = 0) -> np.ndarray:
    """Logits of another network, (channels, H, W) float16."""
    draw = np.random.default_rng([seed, *image.encode()])
    return (5 * draw.standard_normal((channels, *SIZES[image]))).astype(np.float16)


def write(folder: Path, image: str, logits: np.ndarray, key: str = "logits") -> Path:
    path = folder / f"{image.rpartition('.')[0]}_logits.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **{key: logits})
    return path


@pytest.fixture
def bench(empty: Bench) -> Bench:
    """`dog` comes from elsewhere; its logits of the street lie in ``elsewhere/``."""
    empty.tree["models"].append({"name": "dog", "arch": "external"})
    for image in SIZES:
        write(empty.root / "elsewhere", image, made(image))
    return empty.save()


def fill(bench: Bench, *options: str, folder: str = "elsewhere") -> Result:
    return bench.run("import-logits", "--model", "dog", "--dataset", "street", *options, str(bench.root / folder))


@pytest.mark.parametrize("encoding", ["lossless", "small"])
def test_what_was_made_elsewhere_is_stored_bit_by_bit(bench: Bench, encoding: str) -> None:
    bench.tree["store"] = {"encoding": encoding}
    result = fill(bench.save())
    assert (result.code, result.err) == (0, "")
    assert result.out == "4 images imported, 0 complete before, 0 failed\n"
    found = stored(bench.store("street", "dog"))
    assert list(found) == list(SIZES)
    for image, logits in found.items():
        np.testing.assert_array_equal(logits, made(image))
    said = attributes(bench.store("street", "dog"))
    assert (said["architecture"], said["checkpoint"], said["scales"]) == ("external", None, None)
    assert said["source"] == {"folder": str(bench.root / "elsewhere"), "channels": None, "kind": "logits"}


@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_the_probability_of_channels_that_are_not_taken_is_recorded(bench: Bench, kind: str) -> None:
    belief = {image: softmax(made(image, 31).astype(np.float64), 0) for image in SIZES}
    for image in SIZES:
        write(
            bench.root / "many", image, made(image, 31) if kind == "logits" else 3 * belief[image].astype(np.float32)
        )
    assert fill(bench, "--channels", "5-23", "--kind", kind, "--limit", "1", folder="many").code == 0
    done = fill(bench, "--channels", "5-23", "--kind", kind, "--json", "-", folder="many")
    lost = {image: float(1 - one[5:24].sum(0).mean()) for image, one in belief.items()}
    recorded = json.loads((bench.output / "other/street/dog.json").read_text())
    assert recorded == pytest.approx(lost, abs=2e-6)
    assert done.figures["other"] == pytest.approx(np.mean(list(lost.values())[1:]), abs=2e-6)
    assert fill(bench, "--overwrite").code == 0
    assert not (bench.output / "other/street/dog.json").exists()


def test_again_it_does_nothing_and_a_lost_shard_is_made_again(bench: Bench) -> None:
    fill(bench)
    before = files(bench.logits)

    def again() -> None:
        assert fill(bench).out == "nothing to do: all 4 images are complete\n"

    assert changed(bench.logits, again) == set()
    bench.shard("street", "dog", "night/c.png").unlink()
    assert "1 image imported, 3 complete before" in fill(bench).out
    assert files(bench.logits) == before


def test_limit_and_figures(bench: Bench) -> None:
    result = fill(bench, "--limit", "3", "--json", "-")
    assert result.figures == {"done": 3, "skipped": 0, "failed": {}, "uniform_pixels": 0, "other": None}
    assert attributes(bench.store("street", "dog"))["images"] == 4


@pytest.mark.parametrize(
    ("given", "taken"),
    [("0-18", range(19)), ("5-23", range(5, 24)), ("30, 0-17", [30, *range(18)])],
)
def test_channels_are_selected_in_the_order_given(bench: Bench, given: str, taken: list[int]) -> None:
    for image in SIZES:
        write(bench.root / "many", image, made(image, 31))
    assert fill(bench, "--channels", given, folder="many").code == 0
    for image, logits in stored(bench.store("street", "dog")).items():
        np.testing.assert_array_equal(logits, made(image, 31)[list(taken)])


@pytest.mark.parametrize("given", ["0-17", "0-19", "0-17,17", "a-b", "", "-1-17", "18-0", "0-99999999999"])
def test_a_list_that_is_no_19_channels_is_refused(bench: Bench, given: str) -> None:
    assert fill(bench, f"--channels={given}").refusal().startswith(f"--channels {given}: ")
    assert not bench.output.exists()


def archive(member: bytes) -> bytes:
    """An .npz whose ``logits`` are these bytes, deflated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("logits.npy", member)
    return buffer.getvalue()


def damaged_stream() -> bytes:
    """Compressed logits with a bit flipped."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=made("day/a.png"))
    content = bytearray(buffer.getvalue())
    content[200:210] = bytes(10)
    return bytes(content)


def as_npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


A = made("day/a.png")
MISFITS: dict[str, tuple[Callable[[], bytes], str]] = {
    "another height": (lambda: as_npz(logits=A[:, :-1]), "the photograph is 48x80, so save (classes, 48, 80), or 2,"),
    "transposed": (lambda: as_npz(logits=A.transpose(1, 2, 0)), "shape (48, 80, 19); the photograph is 48x80"),
    "a batch": (lambda: as_npz(logits=A[None]), "shape (1, 19, 48, 80); the photograph is 48x80"),
    "more channels": (lambda: as_npz(logits=made("day/a.png", 20)), "20 channels for 19 classes; select with --chan"),
    "beyond float16": (lambda: as_npz(logits=A.astype(np.float32) * 1e5), "holds logits beyond 65504, the largest"),
    "integers": (lambda: as_npz(logits=A.astype(np.int32)), "holds int32; floating-point numbers are needed"),
    "several arrays": (lambda: as_npz(a=A, b=A), "holds 2 arrays, none of them alone is called logits or"),
    "not finite": (lambda: as_npz(logits=np.full_like(A, np.inf)), "not finite"),
    "pickled objects": (lambda: as_npz(logits=np.array([{}], dtype=object)), "is no readable .npz file"),
    "empty": (lambda: b"", "is no readable .npz file"),
    "cut short": (lambda: as_npz(logits=A)[:-40], "is no readable .npz file"),
    "damaged in the middle": (damaged_stream, "is no readable .npz file"),
    "no array within": (lambda: archive(b"hello"), "is no readable .npz file"),
    "text": (lambda: b"logits: none", "is no readable .npz file"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_file_that_does_not_fit_is_listed_and_the_rest_goes_on(bench: Bench, misfit: str) -> None:
    content, said = MISFITS[misfit]
    path = bench.root / "elsewhere" / "day/a_logits.npz"
    path.write_bytes(content())
    result = fill(bench)
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("failed: street/dog: day/a.png: ")
    assert said in line
    assert "3 images imported, 0 complete before, 1 failed" in result.out
    assert not bench.shard("street", "dog", "day/a.png").exists()
    write(bench.root / "elsewhere", "day/a.png", A)
    assert "1 image imported, 3 complete before, 0 failed" in fill(bench).out


def test_missing_files_are_listed_and_foreign_ones_counted(bench: Bench) -> None:
    missing = bench.root / "elsewhere" / "day/a_logits.npz"
    missing.rename(missing.with_name("e_logits.npz"))
    result = fill(bench)
    assert result.code == 1
    assert result.err.splitlines() == [
        f"failed: street/dog: day/a.png: {missing}: there is no such file; make it and import again",
        f"{bench.root / 'elsewhere'}: 1 file belongs to no photograph of street",
    ]


def test_a_folder_that_is_linked_in_is_read(bench: Bench) -> None:
    (bench.root / "linked").mkdir()
    for name in ("day", "night"):
        (bench.root / "linked" / name).symlink_to(bench.root / "elsewhere" / name)
    assert fill(bench, folder="linked").code == 0


def test_a_photograph_that_does_not_decode_has_no_place_for_logits(bench: Bench) -> None:
    (bench.root / "photos/street/day/a.png").write_bytes(b"no picture")
    result = fill(bench)
    assert result.code == 1
    assert "a photograph that cannot be read" in result.err
    assert "3 images imported" in result.out


def test_another_source_is_refused_unless_the_store_is_overwritten(bench: Bench) -> None:
    fill(bench)
    for image in SIZES:
        write(bench.root / "other", image, made(image, seed=1))
    for options, folder in ((("--channels", "0-18"), "elsewhere"), ((), "other")):

        def again(options: tuple[str, ...] = options, folder: str = folder) -> None:
            message = fill(bench, *options, folder=folder).refusal()
            assert message.startswith(f"{bench.store('street', 'dog')}: was made with other settings (source ")
            assert "--overwrite" in message

        assert changed(bench.output, again) == set()
    assert fill(bench, "--overwrite", folder="other").code == 0
    for image, logits in stored(bench.store("street", "dog")).items():
        np.testing.assert_array_equal(logits, made(image, seed=1))


def test_a_store_that_took_nothing_is_bound_to_no_source(bench: Bench) -> None:
    for image in SIZES:
        write(bench.root / "many", image, made(image, 31))
    assert fill(bench, folder="many").code == 1
    assert "4 images imported" in fill(bench, "--channels", "0-18", folder="many").out


def test_only_an_external_member_is_filled(bench: Bench) -> None:
    for options, said in (
        (("--model", "ant", "--dataset", "street"), "model 'ant': is dumped from a checkpoint"),
        (("--model", "dgo", "--dataset", "street"), "no model 'dgo' in the manifest; did you mean 'dog'?"),
        (("--model", "dog", "--dataset", "sea"), "no dataset 'sea' in the manifest"),
    ):
        message = bench.run("import-logits", *options, str(bench.root / "elsewhere")).refusal()
        assert message.startswith(said)
    assert not bench.output.exists()


def test_a_folder_without_logits_is_refused(bench: Bench) -> None:
    assert fill(bench, folder="nowhere").refusal().startswith(f"{bench.root / 'nowhere'}: there is no such folder")
    message = fill(bench, folder="photos").refusal()
    assert "holds none of the 4 files" in message
    assert "(first: day/a_logits.npz, or .npy or .safetensors)" in message
    assert not bench.output.exists()


# ------------------------------------------------------------------ what is no logits


def believed(bench: Bench) -> dict[str, np.ndarray]:
    """Softmax of what is stored, float64."""
    return {
        image: softmax(logits.astype(np.float64), 0) for image, logits in stored(bench.store("street", "dog")).items()
    }


def probabilities(image: str) -> np.ndarray:
    return softmax(made(image).astype(np.float64), 0).astype(np.float32)


def test_probabilities_are_believed_as_they_are(bench: Bench) -> None:
    for image in SIZES:
        write(bench.root / "p", image, probabilities(image))
    assert fill(bench, "--kind", "probabilities", folder="p").code == 0
    for image, belief in believed(bench).items():
        np.testing.assert_allclose(belief, probabilities(image), rtol=0.01, atol=1e-5)
    assert attributes(bench.store("street", "dog"))["source"]["kind"] == "probabilities"


def test_scores_are_divided_by_their_sum_and_what_nobody_scored_is_uniform_and_counted(bench: Bench) -> None:
    for image in SIZES:
        scores = 7 * probabilities(image)
        if image == "night/c.png":
            scores[:, 3, 4:9] = 0
        write(bench.root / "s", image, scores)
    result = fill(bench, "--kind", "scores", "--json", "-", folder="s")
    assert (result.code, result.figures["uniform_pixels"]) == (0, 5)
    for image, belief in believed(bench).items():
        expected = probabilities(image)
        if image == "night/c.png":
            expected[:, 3, 4:9] = 1 / 19
        np.testing.assert_allclose(belief, expected, rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_what_may_be_no_logits_is_refused_until_the_user_says_what_it_is(bench: Bench, scale: float) -> None:
    for image in SIZES:
        write(bench.root / "p", image, scale * probabilities(image))
    message = fill(bench, folder="p").refusal()
    assert message.startswith(f"{bench.root / 'p'}/day/a_logits.npz: no value is below zero")
    assert "--kind probabilities" in message
    assert not bench.output.exists()
    assert fill(bench, "--kind", "logits", folder="p").code == 0
    np.testing.assert_array_equal(
        stored(bench.store("street", "dog"))["day/a.png"], (scale * probabilities("day/a.png")).astype(np.float16)
    )


def test_one_image_that_may_be_no_logits_is_listed(bench: Bench) -> None:
    write(bench.root / "elsewhere", "night/d.png", np.abs(made("night/d.png")))
    result = fill(bench)
    assert result.code == 1
    assert "night/d_logits.npz: no value is below zero" in result.err
    assert "3 images imported" in result.out


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("probabilities", 7 * probabilities("day/a.png"), "add up to 7.000 to 7.000 instead of 1; are they scores?"),
        ("probabilities", made("day/a.png"), "below zero; are they logits?"),
        ("scores", made("day/a.png"), "below zero; are they logits?"),
        ("scores", np.full((19, 48, 80), np.inf, np.float32), "not all scores are finite"),
    ],
)
def test_a_wrong_kind_is_found_out(bench: Bench, kind: str, values: np.ndarray, said: str) -> None:
    write(bench.root / "elsewhere", "day/a.png", values)
    result = fill(bench, "--kind", kind, "--limit", "1")
    assert result.code == 1
    assert said in result.err
    assert fill(bench, "--kind", "labels").refusal().startswith("--kind labels: is unknown; known: logits, ")


def test_the_name_of_a_file_says_what_it_holds(bench: Bench) -> None:
    for image in SIZES:
        path = write(bench.root / "p", image, probabilities(image), key="arr_0")
        path.rename(path.with_name(path.name.replace("_logits", "_probabilities")))
    assert fill(bench, folder="p").code == 0
    for image, belief in believed(bench).items():
        np.testing.assert_allclose(belief, probabilities(image), rtol=0.01, atol=1e-5)


def as_npy(folder: Path, image: str) -> None:
    np.save(folder / f"{image.rpartition('.')[0]}_logits.npy", made(image))


def as_safetensors(folder: Path, image: str) -> None:
    save_file({"logits": torch.from_numpy(made(image))}, folder / f"{image.rpartition('.')[0]}_logits.safetensors")


def as_zarr(folder: Path, image: str) -> None:
    group = zarr.open_group(folder, mode="a", zarr_format=2)
    group.create_array(f"{image.rpartition('.')[0]}_logits", data=made(image))


@pytest.mark.parametrize("save", [as_npy, as_safetensors, as_zarr])
def test_other_formats_hold_the_same(bench: Bench, save: Callable[[Path, str], None]) -> None:
    folder = bench.root / "other"
    for image in SIZES:
        if save is not as_zarr:
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
        save(folder, image)
    assert fill(bench, folder="other").out == "4 images imported, 0 complete before, 0 failed\n"
    for image, logits in stored(bench.store("street", "dog")).items():
        np.testing.assert_array_equal(logits, made(image))


def test_two_files_for_a_photograph_are_refused(bench: Bench) -> None:
    as_npy(bench.root / "elsewhere", "day/a.png")
    message = fill(bench).refusal()
    assert message == f"{bench.root}/elsewhere/day/a_logits.npz: day/a_logits.npy is there, too; leave one of them"


@pytest.mark.parametrize("bits", [np.uint8, np.uint16])
def test_class_maps_with_confidences_become_one_class_and_an_even_rest(bench: Bench, bits: type) -> None:
    rng = np.random.default_rng(0)
    maps = {}
    for image, size in SIZES.items():
        label = rng.integers(0, 19, size).astype(np.uint8)
        label[0, :5] = 255
        level = rng.integers(0, np.iinfo(bits).max, size, endpoint=True).astype(bits)
        maps[image] = label, level / np.iinfo(bits).max
        stem = bench.root / "maps" / image.rpartition(".")[0]
        stem.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(f"{stem}_pred.png")
        Image.fromarray(level).save(f"{stem}_conf.png")
    assert fill(bench, folder="maps").code == 0
    for image, belief in believed(bench).items():
        label, confidence = maps[image]
        known = label != 255
        assert (belief.argmax(0) == label)[known & (confidence > 0.06)].all()
        sure = np.maximum(confidence, 1.001 / 19)
        np.testing.assert_allclose(belief.max(0)[known], sure[known], atol=2e-3)
        np.testing.assert_allclose(belief.min(0)[known], ((1 - sure) / 18)[known], atol=2e-3)
        np.testing.assert_allclose(belief[:, ~known], 1 / 19, atol=1e-4)


def test_a_class_map_without_its_confidence_is_listed(bench: Bench) -> None:
    (bench.root / "maps/day").mkdir(parents=True)
    Image.fromarray(np.zeros((48, 80), np.uint8)).save(bench.root / "maps/day/a_pred.png")
    result = fill(bench, "--limit", "1", folder="maps")
    assert result.code == 1
    assert "a_conf.png: there is no such file; a class map needs its confidence" in result.err


@pytest.mark.parametrize("step", [2, 4])
def test_smaller_outputs_are_enlarged_bilinearly(bench: Bench, step: int) -> None:
    rng = np.random.default_rng(0)
    given = {}
    for image, (height, width) in SIZES.items():
        # Odd sizes are rounded down here; networks do both.
        given[image] = rng.normal(0, 3, (19, height // step, width // step)).astype(np.float32)
        write(bench.root / "small", image, given[image])
    assert fill(bench, folder="small").code == 0
    for image, logits in stored(bench.store("street", "dog")).items():
        enlarged = torch.nn.functional.interpolate(
            torch.from_numpy(given[image])[None], SIZES[image], mode="bilinear"
        )
        np.testing.assert_array_equal(logits, enlarged[0].half().numpy())
    assert attributes(bench.store("street", "dog"))["source"]["enlarged"] == f"{step} times, bilinearly"


def test_a_store_of_a_version_that_knew_only_logits_is_continued(bench: Bench) -> None:
    assert fill(bench, "--limit", "2").code == 0
    path = bench.store("street", "dog") / "zarr.json"
    group = json.loads(path.read_text())
    del group["attributes"]["source"]["kind"]
    path.write_text(json.dumps(group))
    assert "2 images imported, 2 complete before" in fill(bench).out
    message = fill(bench, "--kind", "scores").refusal()
    there, _, now = message.partition(" there, ")
    assert ("'kind': 'logits'" in there, "'kind': 'scores'" in now) == (True, True)


def test_an_external_member_is_fused_with_the_others(bench: Bench) -> None:
    bench.tree["models"] = [bench.tree["models"][i] for i in (0, 3)]
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    assert bench.save().run("dump").code == 0
    assert "make it with 'hmsa-pipeline import-logits'" in bench.run("ensemble").refusal()
    result = ended(
        bench.start("import-logits", "--model", "dog", "--dataset", "street", str(bench.root / "elsewhere"))
    )
    assert (result.code, result.err) == (0, "")
    assert bench.run("ensemble").code == 0
    ants = stored(bench.store("street", "ant"))
    for image in SIZES:
        expected = fuse([torch.from_numpy(ants[image]), torch.from_numpy(made(image))], [1.0, 1.0])
        stem = bench.predictions / "street" / image.rpartition(".")[0]
        np.testing.assert_array_equal(np.asarray(Image.open(f"{stem}_pred.png")), expected.label.numpy())
        confidence = quantise(expected.confidence).numpy()
        np.testing.assert_array_equal(np.asarray(Image.open(f"{stem}_conf.png")), confidence)


def test_photographs_of_several_strips_are_fused_whole(bench: Bench) -> None:
    """A wide photograph is stored in strips of rows, and fused strip by strip."""
    height, width = 40, 4001
    for path in (bench.root / "photos/street").rglob("*.*"):
        path.unlink()
    bench.photo("street/wide.png", height, width)
    bench.tree["models"] = [{"name": name, "arch": "external"} for name in ("dog", "elk")]
    bench.tree["datasets"] = bench.tree["datasets"][:1]
    bench.save()
    draw = np.random.default_rng(0)
    logits = [draw.normal(0, 3, (19, height, width)).astype(np.float16) for _ in range(2)]
    for model, values in zip(("dog", "elk"), logits, strict=True):
        folder = bench.root / model
        write(folder, "wide.png", values)
        assert bench.run("import-logits", "--model", model, "--dataset", "street", str(folder)).code == 0
    assert bench.run("ensemble").code == 0
    expected = fuse(map(torch.from_numpy, logits), [1.0, 1.0])
    found = np.asarray(Image.open(bench.predictions / "street/wide_pred.png"))
    np.testing.assert_array_equal(found, expected.label.numpy())
    confidence = np.asarray(Image.open(bench.predictions / "street/wide_conf.png")).astype(int)
    assert np.abs(confidence - quantise(expected.confidence).numpy().astype(int)).max() <= 1
