"""`submit --format`: what benchmarks other than BRAVO take, read by their own tools where these can be installed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import sklearn.metrics
import yaml
from cityscapesscripts.helpers.labels import trainId2label
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.submission.benchmark_formats import FORMATS
from PIL import Image

from .bench import Bench, Result, files, run

SIZE = (48, 80)
CITY = ("lindau/lindau_000000_000019_leftImg8bit.png", "ulm/ulm_000001_000019_leftImg8bit.png")
FOG = "rgb_anon/fog/test/GOPR0475/GOPR0475_frame_000041_rgb_anon.png"
NIGHT = "rgb_anon/night/test/GP010376/GP010376_frame_000012_rgb_anon.png"


def project(root: Path, kind: str, folder: str, images: Iterable[str], split: str | None = None) -> Bench:
    """A manifest with one dataset ``set`` in ``<root>/photos/<folder>``; predictions drawn, nothing computed."""
    bench = Bench(
        root,
        {
            "version": 1,
            "models": [{"name": "one", "arch": "external"}],
            "datasets": [{"name": "set", "type": kind, "root": f"photos/{folder}", "split": split}],
        },
    )
    for seed, image in enumerate(images):
        bench.photo(f"{folder}/{image}", *SIZE, seed=seed)
        predict(bench, image, np.random.default_rng(seed).integers(0, 19, SIZE).astype(np.uint8), seed)
    return bench.save()


def predict(bench: Bench, image: str, label: np.ndarray, seed: int = 0) -> None:
    stem = bench.predictions / "set" / image.rpartition(".")[0]
    stem.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(f"{stem}_pred.png")
    confidence = np.random.default_rng(seed).integers(3000, 65536, label.shape).astype(np.uint16)
    Image.fromarray(confidence).save(f"{stem}_conf.png")


def predicted(bench: Bench, image: str, what: str) -> np.ndarray:
    return np.array(Image.open(bench.predictions / "set" / f"{image.rpartition('.')[0]}_{what}.png"))


@pytest.fixture
def city(tmp_path: Path) -> Bench:
    return project(tmp_path, "cityscapes", "Cityscapes", [f"leftImg8bit/val/{name}" for name in CITY])


@pytest.fixture
def acdc(tmp_path: Path) -> Bench:
    return project(tmp_path, "folder", "ACDC", [FOG, NIGHT])


@pytest.fixture
def wild(tmp_path: Path) -> Bench:
    return project(tmp_path, "folder", "wd_both_02/images", ["wd0001_100000.jpg", "wd0002_100000.jpg"])


@pytest.fixture
def odd(tmp_path: Path) -> Bench:
    names = ["dataset_AnomalyTrack/images/validation0.jpg", "dataset_ObstacleTrack/images/validation_1.webp"]
    return project(tmp_path, "smiyc", "smiyc", names)


def submit(bench: Bench, form: str, target: Path, *options: str) -> Result:
    return bench.run("submit", "--format", form, "--output", str(target), *options)


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


def zipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


# ------------------------------------------------------------------ Cityscapes


# Scores by instance call np.in1d, which NumPy 2.4 no longer has; no figure of ours needs them.
SCRIPT = """
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script
script.args.evalInstLevelScore = False
script.main()
"""


def scored_by_cityscapes(dataset: Path, results: Path, into: Path) -> dict[str, Any]:
    """What the authors' script makes of ``results``, found by its own variables."""
    into.mkdir()
    variables = {"CITYSCAPES_DATASET": dataset, "CITYSCAPES_RESULTS": results, "CITYSCAPES_EXPORT_DIR": into}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        env=os.environ | {name: str(path) for name, path in variables.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((into / "resultPixelLevelSemanticLabeling.json").read_text())


def test_the_script_of_cityscapes_finds_our_files_and_gives_our_figures(tmp_path: Path) -> None:
    drawn = tmp_path / "photos"
    words = ("--train", "1", "--val", "3", "--size", "64x128")
    assert run("datasets", "draw", "cityscapes", "--output", str(drawn), *words).code == 0
    bench = project(tmp_path, "cityscapes", "Cityscapes-nvidia", [], "val")
    root = drawn / "Cityscapes-nvidia"
    reader = LabelReader(root, dataset_spec("cityscapes"))
    for seed, pair in enumerate(list_pairs(root, "cityscapes", "val")):
        truth = reader.read(pair)
        draw = np.random.default_rng(seed)
        guess = np.where((draw.random(truth.shape) < 0.6) & (truth != 255), truth, draw.integers(0, 19, truth.shape))
        predict(bench, pair.image, guess.astype(np.uint8))
    assert submit(bench, "cityscapes", tmp_path / "results").code == 0

    evaluated = bench.run("evaluate", "--json", "-").figures[0]
    ours = dict(zip(evaluated["classes"], evaluated["scores"]["ensemble"]["iou"], strict=True))
    dataset = next(root.rglob("gtFine")).parent
    theirs = scored_by_cityscapes(dataset, tmp_path / "results", tmp_path / "export")["classScores"]
    compared = {name: theirs[name] for name in CLASS_NAMES}
    assert {name: None if value != value else value for name, value in compared.items()} == ours
    assert len([value for value in ours.values() if value]) > 10

    # Class maps as they lie in the run: train ids, which the script takes for label ids without an error.
    wrong = tmp_path / "wrong"
    shutil.copytree(bench.predictions / "set", wrong, ignore=shutil.ignore_patterns("*_conf.png"))
    mistaken = scored_by_cityscapes(dataset, wrong, tmp_path / "export2")
    assert mistaken["averageScoreClasses"] < 0.1 * np.nanmean(list(compared.values()))


def test_label_ids_are_those_of_the_authors_table(city: Bench, tmp_path: Path) -> None:
    table = np.array([trainId2label[train].id for train in range(19)], np.uint8)
    result = submit(city, "cityscapes", tmp_path / "sub.zip")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("2 images, ")
    content = zipped(tmp_path / "sub.zip")
    assert list(content) == ["lindau_000000_000019_labelIds.png", "ulm_000001_000019_labelIds.png"]
    for name, image in zip(content, CITY, strict=True):
        assert np.array_equal(pixels(content[name]), table[predicted(city, f"leftImg8bit/val/{image}", "pred")])


# ------------------------------------------------------------------ ACDC, WildDash


def test_acdc_takes_train_ids_under_the_photographs_names(acdc: Bench, tmp_path: Path) -> None:
    assert submit(acdc, "acdc", tmp_path / "sub.zip").code == 0
    content = zipped(tmp_path / "sub.zip")
    assert list(content) == [
        "labelTrainIds/GOPR0475_frame_000041_rgb_anon.png",
        "labelTrainIds/GP010376_frame_000012_rgb_anon.png",
    ]
    assert np.array_equal(pixels(next(iter(content.values()))), predicted(acdc, FOG, "pred"))


def test_wilddash_takes_the_ids_of_its_label_policy(wild: Bench, tmp_path: Path) -> None:
    # wd2_unified_label_policy.json of wilddash_scripts, the ids of: road sidewalk building wall fence pole
    # trafficlight trafficsign vegetation terrain sky person rider car truck bus onrails motorcycle bicycle
    policy = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
    assert submit(wild, "wilddash", tmp_path / "sub").code == 0
    content = files(tmp_path / "sub")
    assert list(content) == ["wd0001_100000.png", "wd0002_100000.png"]
    for name in content:
        label = predicted(wild, name.replace(".png", ".jpg"), "pred")
        assert np.array_equal(pixels(content[name]), policy[label])


def test_reference_photographs_of_acdc_are_no_part_of_its_benchmark(acdc: Bench, tmp_path: Path) -> None:
    reference = FOG.replace("test/", "test_ref/").replace("rgb_anon.png", "rgb_ref_anon.png")
    acdc.photo(f"ACDC/{reference}", *SIZE)
    said = submit(acdc, "acdc", tmp_path / "sub.zip").refusal()
    assert "1 of 3 photographs are not called as acdc calls its own" in said
    assert reference in said


# ------------------------------------------------------------------ SegmentMeIfYouCan


def test_scores_lie_where_the_toolkit_reads_them_and_rank_pixels_as_evaluate_does(odd: Bench, tmp_path: Path) -> None:
    masks = {}
    for seed, (track, name) in enumerate((("Anomaly", "validation0"), ("Obstacle", "validation_1"))):
        mask = odd.root / f"photos/smiyc/dataset_{track}Track/labels_masks/{name}_labels_semantic.png"
        mask.parent.mkdir(parents=True)
        masks[f"{track}Track-all/{name}"] = np.random.default_rng(seed).choice([0, 1, 255], SIZE).astype(np.uint8)
        Image.fromarray(masks[f"{track}Track-all/{name}"]).save(mask)
    assert submit(odd, "smiyc", tmp_path / "outputs", "--method", "seven").code == 0
    names = [f"anomaly_p/seven/{key}.hdf5" for key in masks]
    assert list(files(tmp_path / "outputs")) == names

    confidence = predicted(odd, "dataset_AnomalyTrack/images/validation0.jpg", "conf")
    with h5py.File(tmp_path / "outputs" / names[0], "r") as file:
        score = file["value"][:]  # type: ignore[index]
    assert score.dtype == np.float32
    assert np.array_equal(score.astype(np.float64), 1 - (confidence + 0.5) / 65536)
    odd.tree["datasets"][0]["split"] = "anomaly"
    figures = odd.save().run("evaluate", "--json", "-").figures[0]["scores"]["ensemble"]
    known = masks["AnomalyTrack-all/validation0"] != 255
    expected = sklearn.metrics.roc_auc_score(masks["AnomalyTrack-all/validation0"][known], score[known])
    assert figures["auroc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("folder", "image", "expected"),
    [
        ("bravo_SMIYC", "RoadObsticle21/images/validation_1.webp", "ObstacleTrack-all/validation_1"),
        ("bravo_SMIYC", "RoadAnomaly21/images/validation0000.jpg", "AnomalyTrack-all/validation0000"),
        ("dataset_AnomalyTrack", "images/airplane0000.jpg", "AnomalyTrack-all/airplane0000"),
        (
            "dataset_LostAndFound",
            "leftImg8bit/test/02_Hanns_Klemm_Str_44/02_Hanns_Klemm_Str_44_000000_000020_leftImg8bit.png",
            "LostAndFound-test/02_Hanns_Klemm_Str_44_000000_000020",
        ),
    ],
)
def test_tracks_are_told_by_their_folders(tmp_path: Path, folder: str, image: str, expected: str) -> None:
    bench = project(tmp_path, "folder", folder, [image])
    assert submit(bench, "smiyc", tmp_path / "sub.zip").code == 0
    assert list(zipped(tmp_path / "sub.zip")) == [f"anomaly_p/hmsa-pipeline/{expected}.hdf5"]


def test_a_missing_package_is_named_with_its_extra(
    odd: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    said = submit(odd, "smiyc", tmp_path / "sub").refusal()
    assert said == "--format smiyc: needs the package h5py; install hmsa-pipeline[smiyc]"
    assert not (tmp_path / "sub").exists()


# ------------------------------------------------------------------ all or nothing, the same bytes


BENCHES = {"cityscapes": "city", "acdc": "acdc", "wilddash": "wild", "smiyc": "odd"}


@pytest.fixture(params=BENCHES)
def each(request: pytest.FixtureRequest) -> tuple[str, Bench]:
    """Every format with predictions for it."""
    return request.param, request.getfixturevalue(BENCHES[request.param])


def test_no_format_is_left_out() -> None:
    assert ("bravo", *BENCHES) == FORMATS


def test_the_same_predictions_give_the_same_bytes_and_the_check_finds_them_sound(
    each: tuple[str, Bench], tmp_path: Path
) -> None:
    form, bench = each
    for target in ("a.zip", "b.zip", "folder"):
        assert submit(bench, form, tmp_path / target).code == 0
        result = bench.run("submit", "--format", form, "--check", str(tmp_path / target))
        assert (result.code, result.err) == (0, "")
        assert result.out == "2 images are sound, 0 wrong, 0 missing; set has 2\n"
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipped(tmp_path / "a.zip") == files(tmp_path / "folder")


def test_predictions_that_are_missing_are_counted_and_nothing_is_written(
    each: tuple[str, Bench], tmp_path: Path
) -> None:
    form, bench = each
    ending = "_conf.png" if form == "smiyc" else "_pred.png"
    sorted(bench.predictions.rglob(f"*{ending}"))[0].unlink()
    said = submit(bench, form, tmp_path / "out" / "sub").refusal()
    assert said.startswith(f"{bench.predictions}/set: lacks 1 of the 2 files that --format {form} is made of (")
    assert not (tmp_path / "out").exists()


def test_predictions_that_cannot_be_used_are_listed_and_the_old_submission_stays(
    each: tuple[str, Bench], tmp_path: Path
) -> None:
    form, bench = each
    for target in (tmp_path / "sub.zip", tmp_path / "sub"):
        assert submit(bench, form, target).code == 0
    before = files(tmp_path / "sub"), (tmp_path / "sub.zip").read_bytes()
    for path in sorted(bench.predictions.rglob("*.png"))[:2]:  # both files of the first image
        Image.fromarray(np.array(Image.open(path))[:20]).save(path)
    for target in (tmp_path / "sub.zip", tmp_path / "sub"):
        result = submit(bench, form, target)
        assert result.code == 1
        assert result.out == "1 image cannot be used, and nothing was written\n"
        assert result.err.startswith("failed: set: ")
        assert "is 20x80, its photograph 48x80" in result.err
    assert (files(tmp_path / "sub"), (tmp_path / "sub.zip").read_bytes()) == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_replaced_by_the_next_submission_only_if_it_holds_nothing_else(
    city: Bench, tmp_path: Path
) -> None:
    target = tmp_path / "results"
    target.mkdir()
    assert submit(city, "cityscapes", target).code == 0
    predict(city, f"leftImg8bit/val/{CITY[0]}", np.zeros(SIZE, np.uint8))
    assert submit(city, "cityscapes", target).code == 0
    assert set(np.unique(pixels(files(target)["lindau_000000_000019_labelIds.png"]))) == {7}
    (target / "notes.txt").write_text("mine")
    said = submit(city, "cityscapes", target).refusal()
    assert said == (
        f"--output: {target} holds 1 files that are no part of this submission (notes.txt); name another folder"
    )
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "place", ["run/predictions/set", "run/predictions", "photos/Cityscapes", "photos", "run/predictions/set/x"]
)
def test_photographs_and_predictions_are_never_replaced(city: Bench, place: str) -> None:
    before = files(city.root)
    said = submit(city, "cityscapes", city.root / place).refusal()
    assert "lie in one another; name another folder" in said
    assert files(city.root) == before


def test_predictions_of_another_run_are_never_replaced(city: Bench, tmp_path: Path) -> None:
    shutil.copytree(city.predictions / "set", tmp_path / "other")
    before = files(tmp_path / "other")
    said = submit(city, "cityscapes", tmp_path / "other").refusal()
    assert "holds 4 files that are no part of this submission" in said
    assert files(tmp_path / "other") == before


def test_a_photograph_may_be_called_like_its_file(tmp_path: Path) -> None:
    bench = project(tmp_path, "folder", "wild", ["a.png", "b.png"])
    before = files(tmp_path)
    said = submit(bench, "wilddash", tmp_path / "photos/wild").refusal()
    assert "and the photographs" in said
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["sub.zip", "sub"])
def test_an_interruption_leaves_nothing_and_the_next_run_writes_all(
    city: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = tmp_path / "out" / name
    with monkeypatch.context() as patch:
        patch.setattr("hmsa_pipeline.pipeline.submission.benchmark_formats.read_label", _interrupt)
        result = submit(city, "cityscapes", target)
    assert result.code == 130
    assert list(target.parent.iterdir()) == []
    assert submit(city, "cityscapes", target).code == 0
    assert [path.name for path in target.parent.iterdir()] == [name]


def _interrupt(*_: object) -> np.ndarray:
    raise KeyboardInterrupt


def test_what_a_killed_run_has_left_is_removed_or_put_back(city: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert submit(city, "cityscapes", out / "sub").code == 0
    first = files(out / "sub")
    (out / "sub").rename(out / ".sub.old.partial")  # killed between the two renames
    (out / ".sub.new.partial").mkdir()
    (out / ".sub.new.partial" / "half.png").write_bytes(b"x")
    predict(city, f"leftImg8bit/val/{CITY[0]}", np.zeros((5, 5), np.uint8))
    assert submit(city, "cityscapes", out / "sub").code == 1
    assert files(out / "sub") == first
    assert [path.name for path in out.iterdir()] == ["sub"]


def test_half_a_zip_of_a_killed_run_is_removed(city: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".sub.zip.new.partial").write_bytes(b"half")
    assert submit(city, "cityscapes", tmp_path / "out" / "sub.zip").code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub.zip"]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--format", "citiscapes", "--output", "x"),
            "--format: there is no 'citiscapes'; did you mean 'cityscapes'?",
        ),
        (("--format", "cityscapes"), "--output: name the .zip file or the folder to write"),
        (("--format", "acdc", "--samples", "s.tar", "--output", "x"), "--samples: belongs to BRAVO, not to --format"),
        (("--format", "cityscapes", "--method", "m", "--output", "x"), "--method: belongs to --format smiyc"),
        (("--method", "m", "--output", "x", "--samples", "s.tar"), "--method: belongs to --format smiyc"),
        (
            ("--datasets", "set", "--samples", "s.tar", "--output", "x"),
            "--datasets: the sampling file says what BRAVO",
        ),
        (("--format", "acdc", "--check", "x", "--output", "y"), "--check: nothing is written"),
        (("--format", "acdc", "--check", "x", "--predictions", "y"), "--check: nothing is written"),
        (("--format", "cityscapes", "--output", "x.tar"), "--output: x.tar would be a folder; --format cityscapes"),
        (("--format", "cityscapes", "--output", "manifest.yaml"), "--output: manifest.yaml is a file; name a folder"),
        (("--format", "cityscapes", "--output", "s3://b/x.zip"), "--output: s3://b/x.zip is a URL; name a folder or"),
        (("--samples", "s.tar", "--output", "s3://b/x.tar"), "--output: s3://b/x.tar is a URL; name a tar file"),
        (("--format", "smiyc", "--method", "a,b", "--output", "x"), "--method: 'a,b' cannot name a folder"),
        (("--format", "smiyc", "--method", "", "--output", "x"), "--method: '' cannot name a folder"),
        (("--format", "cityscapes", "--datasets", "sett", "--output", "x"), "no dataset 'sett' in the manifest"),
        (
            ("--format", "cityscapes", "--output", "x", "--predictions", "no/where"),
            "--predictions no/where: there is no such folder",
        ),
        (
            ("--samples", "s.tar", "--output", "x.tar", "--predictions", "no/where"),
            "--predictions no/where: there is no such folder",
        ),
        (
            ("--format", "cityscapes", "--check", "nothing.zip"),
            "nothing.zip: cannot be read as a submission (No such",
        ),
        (("--format", "cityscapes", "--check", "manifest.yaml"), "manifest.yaml: cannot be read as a submission (it"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    city: Bench, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(city.root)
    before = sorted(path.name for path in city.root.iterdir())
    assert city.run("submit", *options).refusal().startswith(said)
    assert sorted(path.name for path in city.root.iterdir()) == before


def test_a_format_holds_one_dataset(city: Bench, tmp_path: Path) -> None:
    city.tree["datasets"].append({"name": "other", "type": "folder", "root": "photos"})
    city.save()
    said = submit(city, "cityscapes", tmp_path / "sub").refusal()
    assert said == "--format cityscapes: holds one dataset; name it with --datasets, one of set, other"
    assert submit(city, "cityscapes", tmp_path / "sub", "--datasets", "set").code == 0


def test_photographs_of_another_dataset_are_refused(each: tuple[str, Bench], tmp_path: Path) -> None:
    _, bench = each
    for other in set(FORMATS) - {"bravo", "wilddash", each[0]}:
        said = submit(bench, other, tmp_path / "sub").refusal()
        assert f"2 of 2 photographs are not called as {other} calls its own" in said


def test_two_photographs_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    foggy = [f"b/ulm_000001_000019_leftImg8bit_foggy_beta_{beta}.png" for beta in ("0.01", "0.02")]
    bench = project(tmp_path, "folder", "foggy", foggy)
    said = submit(bench, "cityscapes", tmp_path / "sub").refusal()
    assert f"{foggy[0]} and {foggy[1]} would both be ulm_000001_000019_labelIds.png" in said


# ------------------------------------------------------------------ what a check finds


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _hdf5(name: str, values: np.ndarray) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as group:
        group[name] = values
    return file.getvalue()


WRONG: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "train ids": ("cityscapes", lambda _: _png(np.full(SIZE, 13, np.uint8) * np.eye(*SIZE, dtype=np.uint8)), "train"),
    "no label id": ("cityscapes", lambda _: _png(np.full(SIZE, 40, np.uint8)), "40, which are no label ids of"),
    "another size": ("wilddash", lambda _: _png(np.full((9, 9), 7, np.uint8)), "is 9x9, its photograph 48x80"),
    "colours": ("wilddash", lambda _: _png(np.zeros((*SIZE, 3), np.uint8)), "8 or 16 bits of grey are expected"),
    "label ids": ("acdc", lambda _: _png(np.full(SIZE, 33, np.uint8)), "33, but acdc takes train ids, 0 to 18"),
    "16 bits": ("acdc", lambda _: _png(np.zeros(SIZE, np.uint16)), "holds 16 bits a pixel; ids take 8"),
    "cut short": ("acdc", lambda content: content[:60], "GOPR0475_frame_000041_rgb_anon.png"),
    "no HDF5": ("smiyc", lambda _: b"anything", "is no HDF5 file, or damaged"),
    "another array": ("smiyc", lambda _: _hdf5("score", np.zeros(SIZE)), "holds no array 'value'"),
    "whole numbers": ("smiyc", lambda _: _hdf5("value", np.zeros(SIZE, int)), "a float (H, W) is expected"),
    "not finite": ("smiyc", lambda _: _hdf5("value", np.full(SIZE, np.nan)), "numbers that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_file_is_said(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    form, damage, reason = WRONG[kind]
    bench: Bench = request.getfixturevalue(BENCHES[form])
    assert submit(bench, form, tmp_path / "sub").code == 0
    first = sorted(path for path in (tmp_path / "sub").rglob("*") if path.is_file())[0]
    first.write_bytes(damage(first.read_bytes()))
    result = bench.run("submit", "--format", form, "--check", str(tmp_path / "sub"))
    assert result.code == 1
    assert result.out == "1 image is sound, 1 wrong, 0 missing; set has 2\n"
    (line,) = result.err.splitlines()
    assert line.startswith("failed: sub: ")
    assert reason in line


def test_files_that_are_missing_or_too_many_are_listed(city: Bench, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sub.zip", "w") as file:
        file.writestr("deep/in/ulm_000001_000019_anything.png", _png(np.full(SIZE, 7, np.uint8)))
        file.writestr("ulm_000001_000019_conf.png", _png(np.zeros(SIZE, np.uint16)))
        file.writestr("__MACOSX/._ulm_000001_000019.png", b"x")
    result = city.run("submit", "--format", "cityscapes", "--check", str(tmp_path / "sub.zip"), "--json", "-")
    assert result.code == 1
    ulm, lindau = (f"leftImg8bit/val/{name}" for name in reversed(CITY))
    assert result.figures == {
        "images": 1,
        "wrong": {
            "__MACOSX/._ulm_000001_000019.png": "belongs to no photograph of set",
            "ulm_000001_000019_conf.png": f"is a second file of {ulm}",
        },
        "missing": [lindau],
    }


def test_the_check_needs_no_predictions(city: Bench, tmp_path: Path) -> None:
    assert submit(city, "cityscapes", tmp_path / "sub").code == 0
    shutil.rmtree(city.predictions)
    assert city.run("submit", "--format", "cityscapes", "--check", str(tmp_path / "sub")).code == 0


def test_predictions_of_elsewhere_are_taken(city: Bench, tmp_path: Path) -> None:
    elsewhere = city.predictions.rename(tmp_path / "elsewhere") / "set"
    assert submit(city, "cityscapes", tmp_path / "sub", "--predictions", str(elsewhere)).code == 0
    assert len(files(tmp_path / "sub")) == 2
    assert yaml.safe_load(city.manifest.read_text())["output"] == str(city.output)
