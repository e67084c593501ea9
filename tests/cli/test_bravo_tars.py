"""BRAVO's tar files as other programs pack them, and class maps that are void where the truth is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.pipeline.bravo_codec import decode, decode_samples, encode, encode_samples
from hmsa_pipeline.pipeline.bravo_files import plain_name, split_of, truth_endings
from PIL import Image

from .bench import Result, run
from .test_bravo import METRICS, SAMPLES, SUBMISSION, TRUTH, archive, members

APPLE = b"\0\5\x16\7" + b"\0" * 159


def renamed(change: Callable[[str], str]) -> Callable[[Path, Path], None]:
    def pack(source: Path, target: Path) -> None:
        archive(target, {change(name): content for name, content in members(str(source)).items()})

    return pack


def compressed(pack: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        target.write_bytes(pack(source.read_bytes()))

    return write


def by_macos(source: Path, target: Path) -> None:
    contents: dict[str, bytes] = {}
    for name, content in members(str(source)).items():
        folder, _, file = name.rpartition("/")
        contents |= {f"{folder}/._{file}": APPLE, name: content, f"__MACOSX/{folder}/._{file}": APPLE}
    archive(target, contents | {".DS_Store": b"x", "bravo_ACDC/.DS_Store": b"x"})


PACKED: dict[str, Callable[[Path, Path], None]] = {
    "gzip": compressed(gzip.compress),
    "bzip2": compressed(bz2.compress),
    "xz": compressed(lzma.compress),
    "dot": renamed(lambda name: f"./{name}"),
    "parent": renamed(lambda name: f"bravo_1.0/{name}"),
    "macos": by_macos,
}
WARNED = {
    "gzip": "warning: submission.tar: is compressed",
    "dot": "warning: submission.tar: 11 names do not begin with the folder of their split (./bravo_ACDC/",
    "parent": "warning: submission.tar: 11 names do not begin with the folder of their split (bravo_1.0/bravo_ACDC/",
    "macos": "warning: submission.tar: 24 files that macOS added are left out",
}


def evaluated(submission: str | Path, truth: str | Path, samples: str | Path) -> Result:
    words = ("--submission", str(submission), "--ground-truth", str(truth), "--samples", str(samples))
    return run("evaluate", *words, "--json", "-")


def same(found: dict[str, Any]) -> bool:
    return all(found[name] == pytest.approx(value, abs=1e-9) for name, value in METRICS.items())


@pytest.mark.parametrize("kind", PACKED)
def test_every_way_of_packing_gives_the_toolkits_figures(tmp_path: Path, kind: str) -> None:
    sources = {"gt.tar": TRUTH, "samples.tar": SAMPLES, "submission.tar": SUBMISSION}
    for name, source in sources.items():
        PACKED[kind](Path(source), tmp_path / name)
    result = evaluated(*(tmp_path / name for name in ("submission.tar", "gt.tar", "samples.tar")))
    assert result.code == 0, result
    assert same(result.figures)
    assert "failed" not in result.err
    checked = run("submit", "--check", str(tmp_path / "submission.tar"), "--samples", str(tmp_path / "samples.tar"))
    assert (checked.code, checked.out) == (0, "11 images are sound, 0 wrong, 0 missing\n")
    if kind in WARNED:
        (line,) = checked.err.splitlines()
        assert line.startswith(WARNED[kind])


def test_a_compressed_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(gzip.compress(Path(SUBMISSION).read_bytes())[:-500])
    said = evaluated(tmp_path / "s.tar", TRUTH, SAMPLES).err
    assert said.startswith(f"error: {tmp_path}/s.tar: cannot be read as a submission")


def test_names_begin_at_the_folder_of_their_split() -> None:
    assert plain_name("./bravo_ACDC/fog/a.bin") == "bravo_ACDC/fog/a.bin"
    assert plain_name("a/b/bravo_SMIYC/a.bin") == "bravo_SMIYC/a.bin"
    assert plain_name("bravo_ACDC/bravo_SMIYC/a.bin") == "bravo_ACDC/bravo_SMIYC/a.bin"
    assert plain_name("./readme.txt") == "readme.txt"


# ------------------------------------------------------------------ void


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def void_rows(tmp_path: Path, fill: int, *, beyond: bool = False) -> tuple[str, str, str]:
    """Truth whose last eight rows are void, its samples, and a submission that says ``fill`` there."""
    truth, samples, submission = members(TRUTH), members(SAMPLES), members(SUBMISSION)
    for name, content in list(truth.items()):
        ids, _ = truth_endings(split_of(name) or "")
        if not name.endswith(ids):
            continue
        base = name.removesuffix(ids)
        pixels = np.array(Image.open(io.BytesIO(content)))
        pixels[-8:] = 255
        truth[name] = png(pixels)
        label, confidences = decode(submission[f"{base}_encoded.bin"])
        indices = decode_samples(samples[f"{base}_samples.bin"])
        kept = indices < pixels.size - 8 * pixels.shape[1]
        label = label.copy()
        label[-9 if beyond else -8 :] = fill
        if beyond:
            assert (pixels[-9] != 255).any()
        samples[f"{base}_samples.bin"] = encode_samples(indices[kept])
        submission[f"{base}_encoded.bin"] = encode(label, confidences[kept])
    files = {"submission": submission, "gt": truth, "samples": samples}
    return tuple(archive(tmp_path / f"{name}-{fill}.tar", content) for name, content in files.items())  # type: ignore[return-value]


def test_what_stands_where_the_truth_is_void_counts_nowhere(tmp_path: Path) -> None:
    plain, void = (evaluated(*void_rows(tmp_path, fill)) for fill in (0, 255))
    assert (plain.code, void.code) == (0, 0), void
    assert void.figures == plain.figures
    assert void.figures["bravo_index"] is not None


def test_void_on_a_labelled_pixel_is_listed(tmp_path: Path) -> None:
    result = evaluated(*void_rows(tmp_path, 255, beyond=True))
    assert result.code == 1
    assert "the prediction holds class 255 where the ground truth has a class" in result.err


def predictions_with(tmp_path: Path, fill: int | None, *, beyond: bool = False) -> Path:
    """The golden predictions, which say ``fill`` in the rows that `void_rows` made void."""
    folder = Path(shutil.copytree(Path(TRUTH).parent / "predictions", tmp_path / f"predictions-{fill}-{beyond}"))
    for path in folder.rglob("*_pred.png"):
        with Image.open(path) as file:
            label = np.array(file)
        if fill is not None:
            label[-9 if beyond else -8 :] = fill
        Image.fromarray(label).save(path)
    return folder


@pytest.mark.parametrize("fill", [255, 200])
def test_folders_of_predictions_follow_the_rule_of_submissions(tmp_path: Path, fill: int) -> None:
    """A class map says what it likes where the truth is void, and nothing but classes where it is not."""
    _, truth, samples = void_rows(tmp_path, 255)
    words = ("evaluate", "--ground-truth", truth, "--samples", samples, "--json", "-")
    plain = run(*words, "--predictions", str(predictions_with(tmp_path, None)))
    void = run(*words, "--predictions", str(predictions_with(tmp_path, fill)))
    assert (plain.code, void.code) == (0, 0), void
    assert void.figures == plain.figures
    assert void.figures["bravo_index"] is not None
    beyond = run(*words, "--predictions", str(predictions_with(tmp_path, fill, beyond=True)))
    assert beyond.code == 1
    assert f"the prediction holds class {fill} where the ground truth has a class" in beyond.err
    # No truth tells where a submission may say so.
    refused = run("submit", "--predictions", str(tmp_path / f"predictions-{fill}-False"), "--samples", samples,
                  "--output", str(tmp_path / "s.tar"))  # fmt: skip
    assert refused.code != 0 and f"holds class {fill}, but predictions are train ids" in refused.out + refused.err


def test_the_check_warns_of_void_and_still_lists_other_ids(tmp_path: Path) -> None:
    submission, _, samples = void_rows(tmp_path, 255)
    checked = run("submit", "--check", submission, "--samples", samples)
    assert (checked.code, checked.out) == (0, "11 images are sound, 0 wrong, 0 missing\n")
    (line,) = checked.err.splitlines()
    assert line.startswith("warning: submission-255.tar: 11 images hold 255 (bravo_ACDC/fog/")
    submission, _, samples = void_rows(tmp_path, 200)
    assert "holds class 200" in run("submit", "--check", submission, "--samples", samples).err
