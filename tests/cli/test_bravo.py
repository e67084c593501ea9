"""BRAVO: `submit` and `evaluate` with the challenge's tar files, against what its toolkit wrote and computed."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from hmsa_pipeline.errors import DatasetError
from hmsa_pipeline.pipeline.scoring.bravo_protocol import SUBSETS
from hmsa_pipeline.pipeline.submission.bravo_archives import write_samples
from hmsa_pipeline.pipeline.submission.bravo_codec import decode, decode_samples, encode, encode_samples
from PIL import Image

from .bench import Bench, Result, run
from .conftest import plain_cpu

GOLDEN = Path(__file__).parents[1] / "data" / "bravo_submission"
TRUTH, SAMPLES, SUBMISSION = (str(GOLDEN / name) for name in ("gt.tar", "samples.tar", "submission.tar"))
METRICS: dict[str, Any] = json.loads((GOLDEN / "metrics.json").read_text())
FOG = "bravo_ACDC/fog/test_ref/GOPR0475/GOPR0475_frame_000041"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """A copy of the golden predictions to work on."""
    return Path(shutil.copytree(GOLDEN / "predictions", tmp_path / "predictions"))


def members(path: Path | str) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}  # type: ignore[union-attr]


def archive(path: Path, contents: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def submit(folder: Path, target: Path, *options: str) -> Result:
    words = ("--predictions", str(folder), "--samples", SAMPLES, "--output", str(target))
    return run("submit", *words, *options)


def score(*options: str) -> Result:
    return run("evaluate", "--ground-truth", TRUTH, "--samples", SAMPLES, "--json", "-", *options)


# ------------------------------------------------------------------ submit


def test_the_payloads_are_the_toolkits(predictions: Path, tmp_path: Path) -> None:
    result = submit(predictions, tmp_path / "sub.tar")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("11 images, ")
    ours, theirs = members(tmp_path / "sub.tar"), members(SUBMISSION)
    assert ours.keys() == theirs.keys()
    assert list(ours) == sorted(ours)
    for name, content in ours.items():
        for mine, golden in zip(decode(content), decode(theirs[name]), strict=True):
            np.testing.assert_array_equal(mine, golden)


def test_the_same_predictions_give_the_same_bytes(predictions: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "sub.tar", tmp_path / "b.tar"
    submit(predictions, first)
    again = Path(shutil.copytree(predictions, tmp_path / "elsewhere"))
    for path in again.rglob("*.png"):
        path.touch()
    submit(again, second)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar.getmembers()} == {(0, 0, "", 0o644)}


def test_the_manifests_own_predictions_are_taken(empty: Bench, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "predictions", empty.predictions)
    options = ("--samples", SAMPLES, "--output", str(tmp_path / "sub.tar"), "--json", "-")
    figures = empty.run("submit", *options).figures
    assert figures == {"images": 11, "bytes": (tmp_path / "sub.tar").stat().st_size, "failed": {}}
    found = empty.run("evaluate", "--ground-truth", TRUTH, "--samples", SAMPLES, "--json", "-").figures
    assert found["bravo_index"] == pytest.approx(METRICS["bravo_index"], abs=1e-12)


def test_missing_predictions_are_counted_and_nothing_is_written(predictions: Path, tmp_path: Path) -> None:
    (predictions / f"{FOG}_rgb_anon_conf.png").unlink()
    said = submit(predictions, tmp_path / "sub.tar").refusal()
    assert said.startswith(
        f"{predictions}: lacks 1 of the 22 files that the sampling file calls for ({FOG}_rgb_anon_"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


UNFIT = {
    "label ids": ("pred", np.full((40, 96), 26, np.uint8), "holds class 26, but predictions are train ids"),
    "eight bits": ("conf", np.zeros((40, 96), np.uint8), "confidences are stored in 16"),
    "another size": ("conf", np.zeros((40, 95), np.uint16), "its class map"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_predictions_that_are_something_else_are_listed_and_nothing_is_written(
    predictions: Path, tmp_path: Path, kind: str
) -> None:
    what, pixels, reason = UNFIT[kind]
    Image.fromarray(pixels).save(predictions / f"{FOG}_rgb_anon_{what}.png")
    target = tmp_path / "sub.tar"
    target.write_bytes(b"the last one")
    result = submit(predictions, target)
    assert result.code == 1
    assert result.err.startswith(f"failed: submission: {FOG}: ")
    assert reason in result.err
    assert "1 image cannot be used, and nothing was written" in result.out
    assert target.read_bytes() == b"the last one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions", "sub.tar"]


def test_a_scaled_prediction_is_told(predictions: Path, tmp_path: Path) -> None:
    for what, kind in (("pred", np.uint8), ("conf", np.uint16)):
        Image.fromarray(np.zeros((20, 48), kind)).save(predictions / f"{FOG}_rgb_anon_{what}.png")
    result = submit(predictions, tmp_path / "sub.tar")
    assert result.code == 1
    assert "is 20x48, but pixel " in result.err


def test_an_interruption_leaves_no_half_file(
    predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def interrupted(*arguments: np.ndarray) -> bytes:
        seen.append(1)
        if len(seen) > 5:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr("hmsa_pipeline.pipeline.submission.submit_bravo.encode", interrupted)
    assert submit(predictions, tmp_path / "sub.tar").code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


# ------------------------------------------------------------------ submit --check


def test_a_sound_submission_is_said_so() -> None:
    result = run("submit", "--check", SUBMISSION, "--samples", SAMPLES)
    assert (result.code, result.err) == (0, "")
    assert result.out == "11 images are sound, 0 wrong, 0 missing\n"
    figures = run("submit", "--check", SUBMISSION, "--json", "-").figures
    assert figures["splits"] == {
        "ACDC": 4,
        "SMIYC": 2,
        "outofcontext": 1,
        "synflare": 1,
        "synobjs": 2,
        "synrain": 1,
    }


def _cut(content: bytes) -> bytes:
    return content[:-5]


def _other_classes(content: bytes) -> bytes:
    label, confidences = decode(content)
    return encode(label + np.uint8(19), confidences)


def _fewer(content: bytes) -> bytes:
    label, confidences = decode(content)
    return encode(label, confidences[:-3])


def _smaller(content: bytes) -> bytes:
    label, confidences = decode(content)
    return encode(label[:5], confidences)


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (_cut, "is damaged: its checksum is another"),
    "label ids": (_other_classes, "holds class "),
    "fewer": (_fewer, "holds 1497 confidences, and 1500 pixels are sampled"),
    "smaller": (_smaller, "is 5x80, but pixel "),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_submission_is_listed(tmp_path: Path, kind: str) -> None:
    change, reason = WRONG[kind]
    contents = members(SUBMISSION)
    contents[f"{FOG}_encoded.bin"] = change(contents[f"{FOG}_encoded.bin"])
    changed = archive(tmp_path / "sub.tar", contents)
    result = run("submit", "--check", changed, "--samples", SAMPLES)
    assert result.code == 1
    assert result.out == "10 images are sound, 1 wrong, 0 missing\n"
    assert f"failed: sub.tar: {FOG}_encoded.bin: " in result.err
    assert reason in result.err


def test_missing_and_unexpected_files_of_a_submission_are_listed(tmp_path: Path) -> None:
    contents = members(SUBMISSION)
    moved = contents.pop(f"{FOG}_encoded.bin")
    contents |= {"bravo_ACDC/fog/other_encoded.bin": moved, "readme.txt": b"hello"}
    result = run("submit", "--check", archive(tmp_path / "sub.tar", contents), "--samples", SAMPLES)
    assert result.code == 1
    assert result.out == "10 images are sound, 2 wrong, 1 missing\n"
    assert f"failed: sub.tar: {FOG}: is missing" in result.err
    assert "readme.txt: is no encoded prediction" in result.err
    assert "other_encoded.bin: is not in the sampling file" in result.err


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 99, Path(SUBMISSION).read_bytes()[:9000]])
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    name = str(tmp_path / "x.tar")
    said = run("submit", "--check", name).refusal()
    assert said.startswith(f"{name}: cannot be read as a submission (it is no plain tar file")
    assert name in run("submit", "--predictions", str(tmp_path), "--samples", name, "-o", f"{name}.new").refusal()
    assert name in run("evaluate", "--submission", SUBMISSION, "--ground-truth", name, "--samples", SAMPLES).refusal()


# ------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("kind", ["--submission", "--predictions"])
def test_the_figures_are_the_toolkits(kind: str) -> None:
    result = score(kind, SUBMISSION if kind == "--submission" else str(GOLDEN / "predictions"))
    assert result.code == 0
    found = result.figures
    assert found.keys() == METRICS.keys()
    for name, value in METRICS.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert f"BRAVO index: {METRICS['bravo_index']:.4f}" in result.err.splitlines()
    row = next(line for line in result.err.splitlines() if line.startswith("ACDCfog"))
    assert row.split()[1:3] == ["1", f"{METRICS['ACDCfog_miou_valid']:.4f}"]


def test_what_macos_adds_to_archives_is_left_out(tmp_path: Path) -> None:
    """Its tar writes a file of attributes before each file, and its zip a folder of them."""

    def packed(path: str) -> str:
        contents: dict[str, bytes] = {}
        for name, content in members(path).items():
            folder, _, file = name.rpartition("/")
            contents |= {f"{folder}/._{file}": b"\0\5\x16\7" * 40, f"__MACOSX/{name}": b"no picture", name: content}
        return archive(tmp_path / Path(path).name, contents)

    truth, samples, submission = map(packed, (TRUTH, SAMPLES, SUBMISSION))
    options = ("--ground-truth", truth, "--samples", samples, "--submission", submission, "--json", "-")
    result = run("evaluate", *options)
    assert (result.code, result.out) == (0, score("--submission", SUBMISSION).out)


def without(path: str, part: str) -> dict[str, bytes]:
    return {name: content for name, content in members(path).items() if part not in name}


def test_a_subset_without_ground_truth_gives_null_and_no_index(tmp_path: Path) -> None:
    truth = archive(tmp_path / "gt.tar", without(TRUTH, "/fog/"))
    options = ("--ground-truth", truth, "--samples", SAMPLES, "--submission", SUBMISSION, "--json", "-")
    result = run("evaluate", *options)
    found = result.figures
    assert (result.code, found.keys()) == (0, METRICS.keys())
    for name in ("ACDCfog_miou_valid", "ACDCfog_auroc_valid", "ACDCfog_hmean", "semantic_hmean", "bravo_index"):
        assert found[name] is None, name
    assert found["ACDCfog_iou_valid"] == [None] * 19
    assert found["ood_hmean"] == pytest.approx(METRICS["ood_hmean"], abs=1e-9)
    assert found["ACDCrain_miou_valid"] == pytest.approx(METRICS["ACDCrain_miou_valid"], abs=1e-9)


def image(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


def test_a_subset_without_invalid_pixels_has_no_figures_of_them(tmp_path: Path) -> None:
    contents = members(TRUTH)
    for name in [name for name in contents if name.endswith("_mask.png")]:
        with Image.open(io.BytesIO(contents[name])) as mask:
            contents[name] = image(np.zeros(mask.size[::-1], np.uint8))
    options = ("--ground-truth", archive(tmp_path / "gt.tar", contents), "--samples", SAMPLES, "--json", "-")
    found = run("evaluate", *options, "--submission", SUBMISSION).figures
    assert (found["synobjs_auroc_ood"], found["synobjs_auprc_ood"], found["bravo_index"]) == (None, None, None)
    assert found["SMIYC_auroc_ood"] == pytest.approx(METRICS["SMIYC_auroc_ood"], abs=1e-9)


def test_an_image_that_is_all_void_adds_nothing(tmp_path: Path) -> None:
    contents = members(TRUTH)
    name = f"{FOG}_gt_labelTrainIds.png"
    with Image.open(io.BytesIO(contents[name])) as ids:
        contents[name] = image(np.full(ids.size[::-1], 255, np.uint8))
    options = ("--ground-truth", archive(tmp_path / "gt.tar", contents), "--samples", SAMPLES, "--json", "-")
    result = run("evaluate", *options, "--submission", SUBMISSION)
    assert result.code == 0
    assert result.figures["ACDCfog_miou_valid"] is None


def test_label_ids_in_the_ground_truth_are_named(tmp_path: Path) -> None:
    contents = members(TRUTH)
    name = f"{FOG}_gt_labelTrainIds.png"
    with Image.open(io.BytesIO(contents[name])) as ids:
        contents[name] = image(np.full(ids.size[::-1], 26, np.uint8))
    truth = archive(tmp_path / "gt.tar", contents)
    result = run("evaluate", "--ground-truth", truth, "--samples", SAMPLES, "--submission", SUBMISSION)
    assert result.code == 1
    assert (
        f"failed: BRAVO: {FOG}: {truth}: {FOG} holds ids that are neither train ids nor 255: label ids?" in result.err
    )


# ------------------------------------------------------------------ samples


def test_samples_are_drawn_as_the_toolkit_draws_them(tmp_path: Path) -> None:
    write_samples(Path(TRUTH), tmp_path / "a.tar", most=1500, seed=1)
    write_samples(Path(TRUTH), tmp_path / "b.tar", most=1500, seed=1)
    ours, theirs = members(tmp_path / "a.tar"), members(SAMPLES)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert list(ours) == sorted(theirs)
    for name, content in ours.items():
        np.testing.assert_array_equal(decode_samples(content), decode_samples(theirs[name]), name)
    write_samples(Path(TRUTH), tmp_path / "all.tar")
    labelled = np.asarray(Image.open(io.BytesIO(members(TRUTH)[f"{FOG}_gt_labelTrainIds.png"]))) != 255
    every = decode_samples(members(tmp_path / "all.tar")[f"{FOG}_samples.bin"])
    np.testing.assert_array_equal(every, np.flatnonzero(labelled))


def test_an_image_without_labels_cannot_be_sampled(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(file, "PNG")
    truth = archive(tmp_path / "gt.tar", {f"{FOG}_gt_labelTrainIds.png": file.getvalue()})
    with pytest.raises(DatasetError, match=r"_gt_labelTrainIds.png has no label that could be sampled$"):
        write_samples(Path(truth), tmp_path / "s.tar")
    assert not (tmp_path / "s.tar").exists()


# ------------------------------------------------------------------ members


@pytest.fixture(scope="module")
def challenge(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two members over photographs that fit the golden ground truth, dumped and fused; tests leave it as it is."""
    bench = fresh.copy(tmp_path_factory.mktemp("challenge") / "bench")
    shutil.rmtree(bench.root / "photos")
    for number, path in enumerate(sorted((GOLDEN / "predictions").rglob("*_pred.png"))):
        name = path.relative_to(GOLDEN / "predictions").as_posix().replace("_pred.png", ".png")
        with Image.open(path) as image:
            bench.photo(name, image.height, image.width, seed=number)
    bench.tree["models"] = bench.tree["models"][:2]
    bench.tree["models"][1] |= {"weight": 2.0, "temperature": 1.5}
    folders = sorted(path.name for path in (bench.root / "photos").iterdir())
    bench.tree["datasets"] = [{"name": name, "type": "bravo", "root": f"photos/{name}"} for name in folders]
    bench.save()
    with plain_cpu():
        assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
    return bench


def of_bravo(bench: Bench, *options: str) -> Result:
    tars = ("--ground-truth", TRUTH, "--samples", SAMPLES, "--json", "-")
    return bench.run("evaluate", *tars, *options)


def test_members_are_scored_as_if_each_were_submitted_alone(challenge: Bench, tmp_path: Path) -> None:
    result = of_bravo(challenge, "--per-model", "--leave-one-out")
    assert result.code == 0
    scores = result.figures
    assert list(scores) == ["ensemble", "ant", "bee", "without ant", "without bee"]
    assert scores["without ant"] == scores["bee"]
    assert scores["without bee"] == scores["ant"]
    assert scores["ensemble"] == of_bravo(challenge).figures
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logits").symlink_to(challenge.logits)
    for name in ("ant", "bee"):
        output = ("--output", str(tmp_path / "run"))
        assert challenge.run("ensemble", *output, "--models", name, "--overwrite").code == 0
        assert of_bravo(challenge, *output).figures == scores[name]
    lines = result.err.splitlines()
    assert lines[0].split()[:4] == ["semantic", "ood", "BRAVO", "index"]
    assert [line.split("  ")[0].strip() for line in lines[1:]] == list(scores)
    assert f"{scores['bee']['bravo_index']:.4f}" in lines[3]


def test_members_that_cannot_be_scored(challenge: Bench, tmp_path: Path) -> None:
    bench = challenge.copy(tmp_path / "bench")
    missing = bench.store("bravo_synrain", "bee")
    shutil.rmtree(missing)
    assert of_bravo(bench, "--per-model").refusal().startswith(f"{missing}: ")
    said = of_bravo(bench, "--per-model", "--datasets", "bravo_ACDC,bravo_SMIYC").refusal()
    assert said.startswith("the manifest has no dataset of the name bravo_outofcontext, which the ground truth has")
    assert of_bravo(bench).code == 0, "nobody asked for members"


def test_tar_files_of_other_releases_are_refused_or_listed(tmp_path: Path) -> None:
    less = archive(tmp_path / "less.tar", without(SAMPLES, "/fog/"))
    said = run("evaluate", "--ground-truth", TRUTH, "--samples", less, "--submission", SUBMISSION).refusal()
    assert said.startswith(f"{less}: has no samples of 1 of the 11 images that have ground truth ({FOG}); ")
    less = archive(tmp_path / "sub.tar", without(SUBMISSION, "/fog/"))
    said = run("evaluate", "--ground-truth", TRUTH, "--samples", SAMPLES, "--submission", less).refusal()
    assert said.startswith(f"{less}: has no prediction of 1 of the 11 images")
    contents = members(SAMPLES)
    contents[f"{FOG}_samples.bin"] = encode_samples(np.arange(0, 4000, 5))
    other = archive(tmp_path / "other.tar", contents)
    result = run("evaluate", "--ground-truth", TRUTH, "--samples", other, "--submission", SUBMISSION)
    assert result.code == 1
    assert "holds 1500 confidences, 800 pixels are sampled" in result.err
    contents = members(TRUTH)
    del contents[f"{FOG}_gt_invIds.png"]
    truth = archive(tmp_path / "gt.tar", contents)
    result = run("evaluate", "--ground-truth", truth, "--samples", SAMPLES, "--submission", SUBMISSION)
    assert f"lacks {FOG}_gt_invIds.png" in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ground-truth", TRUTH), "--ground-truth and --samples"),
        (("--submission", SUBMISSION), "--ground-truth and --samples"),
        (("--samples", SAMPLES), "--samples: belongs to --ground-truth"),
        (("--ground-truth", TRUTH, "--samples", SAMPLES, "--limit", "1"), "--limit: does not go with BRAVO"),
        (
            ("--ground-truth", TRUTH, "--samples", SAMPLES, "--submission", SUBMISSION, "--per-model"),
            "--submission: holds no members",
        ),
        (("--ground-truth", TRUTH, "--samples", SAMPLES, "--processes", "2"), "--processes: does not go with BRAVO"),
        (
            ("--ground-truth", TRUTH, "--samples", SAMPLES, "--submission", SUBMISSION, "--predictions", "x"),
            "--submission, --predictions: name one of them",
        ),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], said: str) -> None:
    assert run("evaluate", *options).refusal().startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--check", SUBMISSION, "--output", "x.tar"), "--check: nothing is written"),
        (("--output", "x.tar"), "--samples, --output: name"),
        (("--samples", SAMPLES), "--samples, --output: name"),
    ],
)
def test_options_of_submit_that_do_not_go_together(options: tuple[str, ...], said: str) -> None:
    assert run("submit", *options).refusal().startswith(said)


def test_the_means_are_those_of_the_definition() -> None:
    """48 figures of classes, 6 of what is out of distribution; ECE and FPR turned round."""
    upward = {
        name: 1 - value if "_ece_" in name or "_fpr95_" in name else value
        for name, value in METRICS.items()
        if not isinstance(value, list) and "hmean" not in name and name != "bravo_index"
    }
    semantic = [value for name, value in upward.items() if name.endswith("_valid")]
    ood = [value for name, value in upward.items() if name.endswith("_ood")]
    assert (len(semantic), len(ood), len(SUBSETS)) == (48, 6, 9)
    means = [len(values) / math.fsum(1 / value for value in values) for values in (semantic, ood)]
    found = score("--submission", SUBMISSION).figures
    assert found["semantic_hmean"] == pytest.approx(means[0], abs=1e-12)
    assert found["ood_hmean"] == pytest.approx(means[1], abs=1e-12)
    assert found["bravo_index"] == pytest.approx(2 / (1 / means[0] + 1 / means[1]), abs=1e-12)


# ------------------------------------------------------------------ report


def test_the_report_of_bravo_takes_the_ground_truth(challenge: Bench, tmp_path: Path) -> None:
    result = challenge.run("report", "--write", str(tmp_path / "r"), "--ground-truth", TRUTH, "--json", "-")
    assert result.code == 0
    found = {one["dataset"]: one for one in result.figures}
    contents = members(TRUTH)

    def mask(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(contents[name])))

    synobjs = found["bravo_synobjs"]["by_image"]
    assert len(synobjs) == 2
    for image, said in synobjs.items():
        stem = image.removesuffix(".png")
        ids, invalid = mask(f"bravo_synobjs/{stem}_gt.png"), mask(f"bravo_synobjs/{stem}_mask.png") != 0
        label = np.asarray(Image.open(challenge.predictions / "bravo_synobjs" / f"{stem}_pred.png"))
        known = (ids != 255) & ~invalid
        assert said["wrong"] == pytest.approx((label != ids)[known].mean(), abs=1e-12)
    smiyc = found["bravo_SMIYC"]["scores"]
    assert set(smiyc["bee"]) == {"images", "pixels", "auroc", "auprc", "fpr95"}
    name = "bravo_SMIYC/RoadAnomaly21/images/validation0000"
    other = "bravo_SMIYC/RoadObsticle21/images/validation_1"
    foreign = np.concatenate([mask(f"{base}_labels_semantic.png").ravel() for base in (name, other)])
    known = np.concatenate([mask(f"{base}_labels_semantic_fake.png").ravel() for base in (name, other)]) != 255
    doubt = -np.concatenate(
        [
            np.asarray(Image.open(challenge.predictions / f"{base}_conf.png"), np.int64).ravel()
            for base in (name, other)
        ]
    )
    expected = sklearn.metrics.roc_auc_score(foreign[known] != 0, doubt[known])
    assert smiyc["ensemble"]["auroc"] == pytest.approx(expected, abs=1e-9)

    file = io.BytesIO()
    Image.fromarray(np.full((48, 80), 26, np.uint8)).save(file, "PNG")
    raw = archive(tmp_path / "raw.tar", {**contents, f"{FOG}_gt_labelTrainIds.png": file.getvalue()})
    labelled = challenge.run("report", "--write", str(tmp_path / "r"), "--ground-truth", raw)
    assert labelled.code == 1
    assert f"{FOG}_gt_labelTrainIds.png holds ids that are neither train ids nor 255: label ids?" in labelled.err

    less = archive(tmp_path / "less.tar", without(TRUTH, "bravo_SMIYC"))
    said = challenge.run("report", "--write", str(tmp_path / "s"), "--ground-truth", less).refusal()
    assert said.startswith(f"{less}: knows no image of bravo_SMIYC; ")
    small = dict(members(TRUTH))
    small[f"{FOG}_gt_invIds.png"] = small["bravo_synobjs/armchair/1_mask.png"][:60]
    other_tar = archive(tmp_path / "damaged.tar", small)
    result = challenge.run("report", "--write", str(tmp_path / "s"), "--ground-truth", other_tar)
    assert result.code == 1
    assert f"{FOG.partition('/')[2]}" in result.err
