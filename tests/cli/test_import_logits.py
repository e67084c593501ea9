"""`import-logits`: members whose logits were made elsewhere."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.fusion.fuse import fuse, quantise
from PIL import Image

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


def test_what_was_made_elsewhere_is_stored_bit_by_bit(bench: Bench) -> None:
    result = fill(bench)
    assert (result.code, result.err) == (0, "")
    assert result.out == "4 images imported, 0 complete before, 0 failed\n"
    found = stored(bench.store("street", "dog"))
    assert list(found) == list(SIZES)
    for image, logits in found.items():
        np.testing.assert_array_equal(logits, made(image))
    said = attributes(bench.store("street", "dog"))
    assert (said["architecture"], said["checkpoint"], said["scales"]) == ("external", None, None)
    assert said["source"] == {"folder": str(bench.root / "elsewhere"), "channels": None}


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
    assert result.figures == {"done": 3, "skipped": 0, "failed": {}}
    assert len(attributes(bench.store("street", "dog"))["images"]) == 4


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
    "another height": (lambda: as_npz(logits=A[:, :-1]), "shape (19, 47, 80); the photograph is 48x80"),
    "transposed": (lambda: as_npz(logits=A.transpose(1, 2, 0)), "shape (48, 80, 19); the photograph is 48x80"),
    "a batch": (lambda: as_npz(logits=A[None]), "shape (1, 19, 48, 80); the photograph is 48x80"),
    "more channels": (lambda: as_npz(logits=made("day/a.png", 20)), "20 channels for 19 classes; select with --chan"),
    "float32": (lambda: as_npz(logits=A.astype(np.float32)), "holds float32; float16 is needed"),
    "not finite": (lambda: as_npz(logits=np.full_like(A, np.inf)), "not finite"),
    "another key": (lambda: as_npz(arr_0=A), "has no array 'logits'"),
    "pickled objects": (lambda: as_npz(logits=np.array([{}], dtype=object)), "is no readable .npz file"),
    "empty": (lambda: b"", "is no readable .npz file"),
    "cut short": (lambda: as_npz(logits=A)[:-40], "is no readable .npz file"),
    "damaged in the middle": (damaged_stream, "is no readable .npz file"),
    "no array within": (lambda: archive(b"hello"), "float16 is needed"),
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
    assert "(first: day/a_logits.npz)" in message
    assert not bench.output.exists()


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
