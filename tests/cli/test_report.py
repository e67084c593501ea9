"""`report`: one folder that shows what the ensemble is worth."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, PALETTE
from hmsa_pipeline.pipeline.scoring.figures.names import NUMBERS
from hmsa_pipeline.pipeline.scoring.store_answers import FIGURES as PROBABILITIES
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

from .bench import Bench, files, run
from .test_evaluate import ROOT, both_tracks, odd, predicted, scored, truth

__all__ = ["odd", "scored"]


@pytest.fixture(scope="module")
def told(scored: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """A labelled dataset with its report, beside the folder of the bench; tests leave both as they are."""
    folder = tmp_path_factory.mktemp("told") / "report"
    result = scored.run("report", "--write", str(folder))
    assert (result.code, result.err) == (0, "")
    assert result.out == f"3 images, 0 failed; {folder}/index.html\n"
    return scored, folder


class Page(HTMLParser):
    """What a page holds: texts, files it needs, and embedded JSON by id."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.files: list[str] = []
        self.words: list[str] = []
        self.data: dict[str, Any] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._script: str | None = None
        self.html = (folder / "index.html").read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.files += [
            v for k, v in values.items() if v and k in ("src", "href") and not v.startswith(("#", "data:"))
        ]
        if tag == "script" and values.get("type") == "application/json":
            self._script = values["id"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.data[self._script] = json.loads(data)
        elif data.strip():
            self.words.append(" ".join(data.split()))


def figures(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "report.json").read_text())["datasets"]


def values(folder: Path, key: str) -> dict[str, Any]:
    """The grids of a picture as the page's script gets them, (H, W) uint8 each."""
    text = (folder / "pictures" / key / "values.js").read_text()
    found = re.fullmatch(r'hmsaValues\("([0-9a-f]{20})", (\{.*\})\);\n', text)
    assert found and found[1] == key
    said = json.loads(found[2])
    shape = (said.pop("height"), said.pop("width"))
    return {name: np.frombuffer(base64.b64decode(grid), np.uint8).reshape(shape) for name, grid in said.items()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(0))
    return e / e.sum(0)


def test_the_figures_are_those_of_evaluate(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    evaluated = bench.run("evaluate", "--per-model", "--json", "-").figures[0]
    (mine,) = figures(folder)
    said = json.loads(json.dumps(mine))  # other tests read it, too
    for subject, scores in evaluated["scores"].items():
        for name in PROBABILITIES:  # sums of other strips, whose last digits differ
            assert said["scores"][subject].pop(name) == pytest.approx(scores.pop(name), rel=1e-6)
    assert said["scores"] == evaluated["scores"]
    assert said["left_out"] == evaluated["left_out"]
    resampled = bench.run("evaluate", "--bootstrap", "200", "--json", "-").figures[0]
    assert mine["bootstrap"] == resampled["bootstrap"]
    probable = {name: said["intervals"].pop(name) for name in PROBABILITIES}
    assert said["intervals"] == resampled["intervals"]["ensemble"]
    for name, (low, high) in probable.items():
        assert low <= mine["scores"]["ensemble"][name] <= high
        assert low < high
    page = Page(folder)
    for name in (*NUMBERS, "iou"):
        if name in mine["intervals"]:
            low, high = mine["intervals"][name][0] if name == "iou" else mine["intervals"][name]
            assert f"{low:.4f} to {high:.4f}" in page.words, name
    for name in NUMBERS:
        for scores in mine["scores"].values():
            if name in scores and name != "miou_classes":
                assert f"{scores[name]:.4f}" in page.words, name
    for name in ("precision", "recall", "boundary_iou", "category_iou"):
        for value in mine["scores"]["ensemble"][name]:
            assert value is None or f"{value:.4f}" in page.words, name
    for subject in ("ensemble", "ant", "bee"):
        assert subject in page.words
        assert f"{evaluated['scores'][subject]['miou']:.4f}" in page.words
    right = {
        image: np.mean(pixels(predicted(bench, image, "_pred.png"))[labels != 255] == labels[labels != 255])
        for image, labels in truth(bench).items()
    }
    for image, said in mine["by_image"].items():
        assert said["wrong"] == pytest.approx(1 - right[image], abs=1e-12)


def test_disagreement_as_a_slow_computation_finds_it(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    (mine,) = figures(folder)
    stores = [LogitStore.open(bench.store("city", name)) for name in ("ant", "bee")]
    weights = np.array([1 / 3, 2 / 3])
    disputed, total, summed = 0, 0, 0.0
    for image, said in mine["by_image"].items():
        p = [softmax(store.read(store.index[image]).astype(np.float64)) for store in stores]
        entropies = [-(one * np.log(one + 1e-300)).sum(0) for one in p]
        mixed = weights[0] * p[0] + weights[1] * p[1]
        information = -(mixed * np.log(mixed)).sum(0) - weights[0] * entropies[0] - weights[1] * entropies[1]
        differ = p[0].argmax(0) != p[1].argmax(0)
        assert said["information"] == pytest.approx(information.mean(), abs=1e-6)
        assert said["disagreement"] == pytest.approx(differ.mean(), abs=1e-12)
        disputed, total, summed = disputed + differ.sum(), total + differ.size, summed + information.sum()
    assert mine["disagreement"] == pytest.approx(disputed / total, abs=1e-12)
    assert mine["information"] == pytest.approx(summed / total, abs=1e-6)
    assert mine["disputes"] == [[0.0, pytest.approx(disputed / total)], [pytest.approx(disputed / total), 0.0]]


def test_three_members_disagree_pair_by_pair(finished: Bench, tmp_path: Path) -> None:
    result = finished.run("report", "--write", str(tmp_path / "r"), "--json", "-")
    assert result.code == 0
    assert figures(tmp_path / "r") == result.figures
    assert [one["scores"] for one in result.figures] == [{}, {}]  # there are no labels
    garden = result.figures[1]
    labels = {}
    for name in garden["members"]:
        store = LogitStore.open(finished.store("garden", name))
        labels[name] = np.concatenate([store.read(store.index[i]).argmax(0).ravel() for i in garden["by_image"]])
    for i, j in combinations(range(3), 2):
        one, other = (labels[garden["members"][k]] for k in (i, j))
        assert garden["disputes"][i][j] == garden["disputes"][j][i] == pytest.approx(np.mean(one != other))
    assert "No labels: nobody knows what is right." in Page(tmp_path / "r").words


def test_everything_lies_in_the_folder(told: tuple[Bench, Path]) -> None:
    _, folder = told
    page = Page(folder)
    assert page.files
    for name in page.files:
        assert (folder / name).is_file(), name
    style = (folder / "report.css").read_text() + (folder / "report.js").read_text()
    assert not re.search(r"https?://|url\(|@import|fetch\(", style + page.html)
    for card in page.data["images"]:
        there = sorted(path.name for path in (folder / "pictures" / card["key"]).iterdir())
        assert there == [
            "confidence.jpg",
            "disagreement.jpg",
            "errors.png",
            "exhibit.npz",
            "labels.png",
            "photograph.jpg",
            "prediction.png",
            "thumb.jpg",
            "values.js",
        ]
        assert card["layers"] == ["prediction", "confidence", "disagreement", "errors", "labels"]
    nameless = [attributes for tag, attributes in page.tags if tag == "img" and not attributes.get("alt")]
    # Thumbnails stand in links with words; the gallery's script names its layer.
    assert {one.get("id") or Path(one["src"] or "").name for one in nameless} == {"layer", "thumb.jpg", "errors.png"}
    for plot in folder.glob("plots/*"):
        assert plot.read_text().rstrip().endswith("</svg>")
    kinds = ("confusion", "curves", "disputes", "iou", "reliability", "reliability-classes", "risk")
    assert {plot.name for plot in folder.glob("plots/*")} == {f"0-{kind}.svg" for kind in kinds}


def test_each_predicted_class_has_its_calibration_error(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    labels = truth(bench)
    known = np.concatenate([one.ravel() for one in labels.values()])
    said, levels = (
        np.concatenate([pixels(predicted(bench, image, ending)).ravel() for image in labels])
        for ending in ("_pred.png", "_conf.png")
    )
    said, levels, known = (values[known != 255] for values in (said, levels, known))
    sure = (levels.astype(np.float64) + 0.5) / 65536
    found = figures(folder)[0]["predicted_class_ece"]
    assert list(found) == list(CLASS_NAMES)
    for number, name in enumerate(CLASS_NAMES):
        own = said == number
        bins = (sure * 15).astype(int)
        gaps = [abs((known == said)[own & (bins == b)].sum() - sure[own & (bins == b)].sum()) for b in range(15)]
        wanted = sum(gaps) / own.sum() if own.any() else None
        assert found[name] == (None if wanted is None else pytest.approx(wanted)), name
    assert len([one for one in found.values() if one]) > 2
    svg = (folder / "plots" / "0-reliability-classes.svg").read_text()
    assert all(name in svg for name, value in found.items() if value is not None)


def test_pictures_show_what_they_should(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    labels = truth(bench)
    for card in Page(folder).data["images"]:
        own = folder / "pictures" / card["key"]
        label, known = pixels(predicted(bench, card["name"], "_pred.png")), labels[card["name"]]
        confidence = pixels(predicted(bench, card["name"], "_conf.png"))
        assert np.array_equal(pixels(own / "prediction.png"), label)  # not wider than asked for
        with Image.open(own / "prediction.png") as image:
            assert np.array_equal(np.array(image.convert("RGB")), np.array(PALETTE, np.uint8)[label])
        errors = pixels(own / "errors.png")
        assert np.array_equal(errors == 0, (known != 255) & (label != known))
        assert np.array_equal(errors == 1, known == 255)
        with Image.open(own / "errors.png") as image:
            assert np.array_equal(np.array(image.convert("RGBA"))[..., 3] == 0, errors == 2)
        there = set(np.flatnonzero(np.bincount(label.ravel(), minlength=19) >= 0.0005 * label.size)) | set(
            np.flatnonzero(np.bincount(known.ravel(), minlength=256)[:19] >= 0.0005 * label.size)
        )
        assert set(card["classes"]) == there

        grids = values(folder, card["key"])
        height, width = label.shape
        assert grids["prediction"].shape == (height, width)  # not wider than 160
        assert np.array_equal(grids["prediction"], label)
        assert np.array_equal(grids["truth"], known)
        assert np.abs(grids["confidence"] / 255 - confidence / 65536).max() < 0.0025


def test_the_overview_of_several_datasets(scored: Bench, tmp_path: Path) -> None:
    bench = scored.copy(tmp_path / "bench")
    root = f"photos/{ROOT}"
    bench.tree["datasets"].append({"name": "again", "type": "cityscapes", "root": root, "split": "train"})
    bench.save()
    assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
    assert bench.run("report", "--write", str(tmp_path / "r")).code == 0
    words = Page(tmp_path / "r").words
    begin = words.index("dataset", words.index("Datasets (2): mIoU of ensemble and members"))
    assert words[begin : begin + 5] == ["dataset", "images", "ensemble", "ant", "bee"]
    for one in figures(tmp_path / "r"):
        row = words[words.index(one["dataset"], begin) :]
        scores = [f"{one['scores'][who]['miou']:.4f}" for who in ("ensemble", "ant", "bee")]
        assert row[:6] == [one["dataset"], str(one["images"]), *scores, f"{one['confidence']:.4f}"]


def test_large_pictures_are_reduced(finished: Bench, tmp_path: Path) -> None:
    assert finished.run("report", "--write", str(tmp_path / "r"), "--width", "64").code == 0
    for card in Page(tmp_path / "r").data["images"]:
        own = tmp_path / "r" / "pictures" / card["key"]
        width, height = card["size"]
        reduced = min(64, width)
        for name in ("photograph.jpg", "prediction.png", "confidence.jpg", "disagreement.jpg"):
            with Image.open(own / name) as image:
                assert image.size == (reduced, round(height * reduced / width)), name
        assert set(np.unique(pixels(own / "prediction.png"))) <= set(range(19)), "ids are not mixed"


def test_without_members(scored: Bench, tmp_path: Path) -> None:
    bench = scored.copy(tmp_path / "bench")
    shutil.rmtree(bench.logits)
    said = bench.run("report", "--write", str(tmp_path / "r")).refusal()
    assert f"{bench.store('city', 'ant')}: " in said
    result = bench.run("report", "--write", str(tmp_path / "r"), "--no-members", "--json", "-")
    assert result.code == 0
    (mine,) = result.figures
    assert list(mine["scores"]) == ["ensemble"]
    assert not {*PROBABILITIES} & mine["scores"]["ensemble"].keys()
    reason = "probabilities are read from the members' stores, which --no-members leaves out"
    assert mine["left_out"] == dict.fromkeys(PROBABILITIES, reason)
    assert any(f"No NLL, Brier score, classwise ECE: {reason}." in words for words in Page(tmp_path / "r").words)
    assert (mine["disagreement"], mine["information"], mine["disputes"]) == (None, None, None)
    assert Page(tmp_path / "r").data["images"][0]["layers"] == ["prediction", "confidence", "errors", "labels"]


def test_one_member_has_nobody_to_contradict(scored: Bench, tmp_path: Path) -> None:
    result = scored.run("report", "--write", str(tmp_path / "r"), "--models", "ant", "--json", "-")
    assert result.code == 0
    (mine,) = result.figures
    assert list(mine["scores"]) == ["ensemble", "ant"]
    assert (mine["disagreement"], mine["information"], mine["disputes"]) == (None, None, None)


def test_masks_of_what_is_out_of_distribution(odd: Bench, tmp_path: Path) -> None:
    result = odd.run("report", "--write", str(tmp_path / "r"), "--no-members", "--json", "-")
    assert result.code == 0
    (mine,) = result.figures
    assert mine["scores"] == odd.run("evaluate", "--json", "-").figures[0]["scores"]
    assert mine["images"] == 3
    cards = {Path(card["name"]).stem: card for card in Page(tmp_path / "r").data["images"]}
    assert cards["test0"]["wrong"] is None
    assert cards["test0"]["layers"] == ["prediction", "confidence"]
    assert cards["validation0"]["layers"] == ["prediction", "confidence", "foreign"]
    mask = pixels(odd.root / "photos/smiyc/dataset_AnomalyTrack/labels_masks/validation0_labels_semantic.png")
    shown = pixels(tmp_path / "r" / "pictures" / cards["validation0"]["key"] / "foreign.png")
    assert np.array_equal(shown == 0, mask == 1)
    assert np.array_equal(shown == 1, mask == 255)


def test_sets_that_are_not_pooled_have_a_section_each(fresh: Bench, tmp_path: Path) -> None:
    bench = both_tracks(fresh.copy(tmp_path / "tracks"))
    result = bench.run("report", "--write", str(tmp_path / "r"), "--no-members", "--json", "-")
    assert result.code == 0
    assert [(one["dataset"], one["images"]) for one in result.figures] == [("odd/anomaly", 1), ("odd/obstacle", 1)]
    assert [one["scores"]["ensemble"]["auroc"] for one in result.figures] == [1.0, 1.0]


# ------------------------------------------------------------------ again


def times(folder: Path) -> dict[tuple[str, str], int]:
    return {(path.parent.name, path.name): path.stat().st_mtime_ns for path in folder.glob("pictures/*/*")}


def test_only_what_changed_is_made_again(scored: Bench, tmp_path: Path) -> None:
    bench, folder = scored.copy(tmp_path / "bench"), tmp_path / "r"
    assert bench.run("report", "--write", str(folder)).code == 0
    before, pages = times(folder), files(folder)
    assert bench.run("report", "--write", str(folder)).code == 0
    assert times(folder) == before
    assert files(folder) == pages, "the same work gives the same bytes"

    image = next(iter(truth(bench)))
    Image.fromarray(np.zeros_like(truth(bench)[image])).save(predicted(bench, image, "_pred.png"))
    assert bench.run("report", "--write", str(folder)).code == 0
    keys = {card["name"]: card["key"] for card in Page(folder).data["images"]}
    assert len(set(keys.values()) & {key for key, _ in before}) == 2
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == sorted(keys.values())
    assert set(np.unique(values(folder, keys[image])["prediction"])) == {0}

    # Another temperature changes what members say, and so every image.
    bench.tree["models"][0]["temperature"] = 3.0
    bench.save()
    assert bench.run("report", "--write", str(folder)).code == 0
    assert not set(keys.values()) & {card["key"] for card in Page(folder).data["images"]}


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_record_that_was_cut_short_is_made_again(told: tuple[Bench, Path], tmp_path: Path, content: Any) -> None:
    bench, folder = told
    shutil.copytree(folder, tmp_path / "r")
    record = next((tmp_path / "r" / "pictures").glob("*/exhibit.npz"))
    whole = record.read_bytes()
    record.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert bench.run("report", "--write", str(tmp_path / "r")).code == 0
    assert files(tmp_path / "r") == files(folder)


def test_the_next_run_removes_what_a_dead_one_has_left_and_two_at_once_are_refused(
    told: tuple[Bench, Path], tmp_path: Path
) -> None:
    bench, folder = told
    shutil.copytree(folder, tmp_path / "r")
    left = next((tmp_path / "r" / "pictures").iterdir()) / f".{'0' * 32}.partial"
    left.write_bytes(b"half a picture")
    with writer_lock(tmp_path / "r"):
        message = bench.run("report", "--write", str(tmp_path / "r")).refusal()
    assert message.startswith(f"{tmp_path / 'r'}.lock: held by process ")
    assert left.exists()
    assert bench.run("report", "--write", str(tmp_path / "r")).code == 0
    assert files(tmp_path / "r") == files(folder)
    assert not left.exists()


def test_several_processes_make_the_same(scored: Bench, tmp_path: Path) -> None:
    bench = scored.copy(tmp_path / "bench")
    for number in range(6):
        bench.photo(f"many/{number}.png", seed=number)
    bench.tree["datasets"] = [{"name": "many", "type": "folder", "root": "photos/many"}]
    bench.save()
    assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
    for count in "12":
        assert bench.run("report", "--write", str(tmp_path / count), "--processes", count).code == 0
    assert files(tmp_path / "1") == files(tmp_path / "2")


# ------------------------------------------------------------------ wrong input


NAME = "a#b %41 \"<script>alert(1)</script>' é.png".replace("/", "_")


def test_names_are_texts_wherever_they_stand(fresh: Bench, tmp_path: Path) -> None:
    bench = fresh.copy(tmp_path / "bench")
    shutil.rmtree(bench.root / "photos" / "garden")
    bench.photo(f"garden/{NAME}", seed=1)
    bench.photo("garden/broken.png", seed=2)
    bench.tree["datasets"] = bench.tree["datasets"][1:]
    bench.tree["models"] = bench.tree["models"][:2]
    bench.save()
    assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
    (bench.root / "photos" / "garden" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    result = bench.run("report", "--write", str(tmp_path / "r"))
    assert result.code == 1
    assert result.err.startswith("failed: garden: broken.png: ")
    page = Page(tmp_path / "r")
    assert [card["name"] for card in page.data["images"]] == [NAME]
    assert "<script>alert" not in page.html
    assert "garden: broken.png" in page.words
    for name in page.files:
        assert (tmp_path / "r" / name).is_file()


def test_a_photograph_of_another_size_is_listed(scored: Bench, tmp_path: Path) -> None:
    bench = scored.copy(tmp_path / "bench")
    image = next(iter(truth(bench)))
    for ending in ("_pred.png", "_conf.png"):
        Image.fromarray(pixels(predicted(bench, image, ending))[:40]).save(predicted(bench, image, ending))
    result = bench.run("report", "--write", str(tmp_path / "r"))
    assert result.code == 1
    assert "is 64x128, its prediction 40x128; predict it again" in result.err
    assert len(figures(tmp_path / "r")[0]["by_image"]) == 2


def test_a_folder_of_other_things_is_left_alone(scored: Bench, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    said = scored.run("report", "--write", str(tmp_path / "thesis")).refusal()
    assert said == f"--write {tmp_path}/thesis: holds other things than a report; name another folder"
    assert files(tmp_path / "thesis") == {"index.html": b"mine"}
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in scored.run("report", "--write", str(tmp_path / "file")).refusal()


def test_what_is_missing_is_said_before_the_work(scored: Bench, tmp_path: Path) -> None:
    bench = scored.copy(tmp_path / "bench")
    image = next(iter(truth(bench)))
    predicted(bench, image, "_conf.png").unlink()
    said = bench.run("report", "--write", str(tmp_path / "r")).refusal()
    assert said.startswith(f"{bench.predictions}/city: lacks 1 of 6 predictions (")
    assert "ensemble" in said
    assert not (tmp_path / "r").exists()
    assert (
        run("report", "--write", "")
        .refusal()
        .endswith("--write: an empty name names nothing; give one, or leave the option out")
    )


def test_the_thumbnails_are_small(told: tuple[Bench, Path]) -> None:
    for thumb in told[1].glob("pictures/*/thumb.jpg"):
        assert len(thumb.read_bytes()) < 30_000
        with Image.open(io.BytesIO(thumb.read_bytes())) as image:
            assert image.width <= 320


def test_uncertainty_by_the_chosen_functions_lies_over_the_photographs(scored: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    assert scored.run("report", "--write", str(folder)).code == 0
    before = {image["key"] for image in Page(folder).data["images"]}
    assert scored.run("report", "--write", str(folder), "--confidences", "entropy,mutual-information").code == 0
    pictures = tmp_path / "pictures"
    kinds = ("--kinds", "entropy,mutual-information")
    assert scored.run("render", "--write", str(pictures), *kinds, "--width", "1024").code == 0
    images = Page(folder).data["images"]
    assert not before & {image["key"] for image in images}, "they are drawn again"
    for image in images:
        assert image["layers"][-2:] == ["uncertainty-entropy", "uncertainty-mutual-information"]
        for layer in image["layers"][-2:]:
            found = pixels(folder / "pictures" / image["key"] / f"{layer}.jpg").astype(int)
            stem = image["name"].rpartition(".")[0]
            wanted = pixels(pictures / "city" / f"{stem}_{layer.removeprefix('uncertainty-')}.png").astype(int)
            assert np.abs(found - wanted).mean() < 8, "a JPEG of the same"
    said = scored.run("report", "--write", str(folder), "--confidences", "entropy", "--no-members").refusal()
    assert said == "--confidences: changes nothing beside --no-members; leave it out"
    said = scored.run("report", "--write", str(folder), "--confidences", "margins").refusal()
    assert said == "--confidences margins: is no confidence; did you mean 'margin'?"
