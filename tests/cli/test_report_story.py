"""What a report opens with: one photograph as all members see it, the summary, and the worst images of each class."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, PALETTE
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

from .bench import Bench, files, run
from .conftest import plain_cpu
from .test_evaluate import ROOT, odd, predicted, scored, truth
from .test_report import Page, figures, pixels

__all__ = ["odd", "scored"]


@pytest.fixture(scope="module")
def told(scored: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """A report of two datasets with labels, beside its bench; tests leave both as they are."""
    bench = scored.copy(tmp_path_factory.mktemp("told") / "bench")
    root = f"photos/{ROOT}"
    bench.tree["datasets"].append({"name": "again", "type": "cityscapes", "root": root, "split": "train"})
    bench.save()
    with plain_cpu():
        assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
        assert bench.run("report", "--write", str(bench.root / "report"), "--processes", "1").code == 0
    return bench, bench.root / "report"


def story(folder: Path) -> dict[str, str]:
    return json.loads((folder / "report.json").read_text())["story"]


def labels_of(bench: Bench, member: str, image: str, dataset: str = "city") -> np.ndarray:
    """The member's classes, from its logits alone."""
    store = LogitStore.open(bench.store(dataset, member))
    return store.read(store.index[image]).argmax(0)


def tiles(page: Page) -> list[str]:
    """The pictures of the story, in their order."""
    end = page.tags.index(("section", {"id": "summary"}))
    return [values["src"] or "" for tag, values in page.tags[:end] if tag == "img"]


def key_of(page: Page, image: str) -> str:
    return next(card["key"] for card in page.data["images"] if card["name"] == image)


def test_the_photograph_on_top_is_that_with_the_largest_gain(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    known = truth(bench)
    gains, wrong = {}, {}
    for image, labels in known.items():
        answers = {"ensemble": pixels(predicted(bench, image, "_pred.png"))}
        answers |= {name: labels_of(bench, name, image) for name in ("ant", "bee")}
        right = {who: int(((answer == labels) & (labels != 255)).sum()) for who, answer in answers.items()}
        gains[image] = (right["ensemble"] - max(right["ant"], right["bee"])) / labels.size
        wrong[image] = {who: 1 - count / (labels != 255).sum() for who, count in right.items()}
    city, again = figures(folder)
    assert {image: one["gain"] for image, one in city["by_image"].items()} == pytest.approx(gains)
    every = {**gains, **{image: one["gain"] for image, one in again["by_image"].items()}}
    chosen = story(folder)
    assert every[chosen["image"]] == max(every.values())
    assert f"{100 * max(every.values()):+.1f} % of the pixels" in chosen["rule"]
    assert f"the lowest {100 * min(every.values()):+.1f} %" in chosen["rule"]
    ahead = sum(gain > 0 for gain in every.values())
    assert f"ahead of all its members on {ahead} of 4" in chosen["rule"]

    page = Page(folder)
    assert any(chosen["rule"] in words for words in page.words)
    own = f"pictures/{key_of(page, chosen['image'])}"
    assert tiles(page) == [
        f"{own}/photograph.jpg",
        f"{own}/prediction.png",
        f"{own}/confidence.jpg",
        "story/errors.jpg",
        f"{own}/labels.png",
        "story/member-0.png",
        "story/member-1.png",
    ]
    if chosen["dataset"] == "city":
        for who, share in wrong[chosen["image"]].items():
            begin = page.words.index(who, page.words.index("photograph"))
            assert float(page.words[begin + 1].removesuffix(" % wrong")) == pytest.approx(100 * share, rel=6e-3)


def test_its_pictures_are_the_answers_of_the_members(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    chosen = story(folder)
    for number, name in enumerate(("ant", "bee")):
        answer = labels_of(bench, name, chosen["image"], chosen["dataset"])
        with Image.open(folder / "story" / f"member-{number}.png") as image:
            assert np.array_equal(np.array(image.convert("RGB")), np.array(PALETTE, np.uint8)[answer])
    errors = pixels(folder / "pictures" / key_of(Page(folder), chosen["image"]) / "errors.png")
    shown = pixels(folder / "story" / "errors.jpg").astype(int)
    orange = shown[..., 0] - shown[..., 2]
    assert orange[errors == 0].mean() > 150
    assert abs(orange[errors == 2].mean()) < 40
    assert shown[errors == 1].mean() < 60
    with Image.open(folder / "story" / "sheet.png") as sheet:
        assert sheet.width == 16 + 4 * (128 + 16)  # seven pictures in two rows


def test_the_same_photograph_is_not_drawn_again_and_another_one_is(told: tuple[Bench, Path], tmp_path: Path) -> None:
    bench, folder = told
    shutil.copytree(folder, tmp_path / "r")
    whole, again = files(folder), ("--write", str(tmp_path / "r"), "--processes", "1")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "r" / "story").iterdir()}
    assert bench.run("report", *again).code == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "r" / "story").iterdir()} == before
    assert files(tmp_path / "r") == whole
    (tmp_path / "r" / "story" / "member-1.png").unlink()
    assert bench.run("report", *again).code == 0
    assert files(tmp_path / "r") == whole

    assert "calibrated" not in Page(folder).words
    other = tmp_path / "other.yaml"
    other.write_text(bench.manifest.read_text().replace("name: ant\n", "name: ant\n  temperature: 3.0\n"))
    shutil.copytree(bench.root / "weights", tmp_path / "weights")
    shutil.copytree(bench.root / "photos", tmp_path / "photos")
    assert run("report", "--manifest", str(other), "--datasets", "city", *again).code == 0
    assert files(tmp_path / "r")["story/story.json"] != whole["story/story.json"]
    assert "calibrated" in Page(tmp_path / "r").words


def test_without_labels_it_is_the_one_that_members_disagree_most_about(finished: Bench, tmp_path: Path) -> None:
    result = finished.run("report", "--write", str(tmp_path / "r"), "--processes", "1", "--json", "-")
    assert result.code == 0
    disputed = {
        (one["dataset"], image): found["information"]
        for one in result.figures
        for image, found in one["by_image"].items()
    }
    chosen = story(tmp_path / "r")
    assert (chosen["dataset"], chosen["image"]) == max(disputed, key=lambda which: disputed[which])
    page = Page(tmp_path / "r")
    own = f"pictures/{key_of(page, chosen['image'])}"
    assert tiles(page)[3:] == [f"{own}/disagreement.jpg", *(f"story/member-{i}.png" for i in range(3))]
    assert "Worst images per class" not in page.words


def test_with_nothing_but_predictions(scored: Bench, finished: Bench, tmp_path: Path) -> None:
    result = scored.run(
        "report", "--write", str(tmp_path / "labelled"), "--no-members", "--processes", "1", "--json", "-"
    )
    assert result.code == 0
    wrong = {image: one["wrong"] for image, one in result.figures[0]["by_image"].items()}
    assert wrong[story(tmp_path / "labelled")["image"]] == sorted(wrong.values())[1]
    page = Page(tmp_path / "labelled")
    own = f"pictures/{key_of(page, story(tmp_path / 'labelled')['image'])}"
    assert tiles(page)[3:] == ["story/errors.jpg", f"{own}/labels.png"]

    result = finished.run(
        "report", "--write", str(tmp_path / "plain"), "--no-members", "--processes", "1", "--json", "-"
    )
    sure = {image: one["confidence"] for each in result.figures for image, one in each["by_image"].items()}
    assert sure[story(tmp_path / "plain")["image"]] == min(sure.values())
    assert not list((tmp_path / "plain" / "story").glob("member-*"))


def test_what_is_out_of_distribution_is_shown(odd: Bench, tmp_path: Path) -> None:
    assert odd.run("report", "--write", str(tmp_path / "r"), "--no-members", "--processes", "1").code == 0
    page = Page(tmp_path / "r")
    stems = {Path(card["name"]).stem: f"pictures/{card['key']}" for card in page.data["images"]}
    chosen = stems[Path(story(tmp_path / "r")["image"]).stem]
    assert tiles(page)[3:] == ([] if chosen == stems["test0"] else [f"{chosen}/foreign.png"])
    words = page.words
    (row,) = [one["scores"]["ensemble"] for one in figures(tmp_path / "r")]
    begin = words.index("Out of distribution")
    for name, title in (("auroc", "AUROC"), ("auprc", "AUPRC"), ("fpr95", "FPR 95")):
        assert words[words.index(title, begin) + 2] == f"{row[name]:.4f}"


def cells(page: Page, title: str) -> list[str]:
    """The words of a row of the summary table, its title left out."""
    begin = page.words.index(title, page.words.index("mean member"))
    return page.words[begin + 2 : begin + 7]


def test_the_summary_is_the_mean_over_datasets(told: tuple[Bench, Path]) -> None:
    _, folder = told
    page = Page(folder)
    rows = [one["scores"] for one in figures(folder)]
    for name, title, best_of in (("miou", "mIoU", max), ("accuracy", "accuracy", max), ("ece", "ECE", min)):
        mean = {who: float(np.mean([row[who][name] for row in rows])) for who in ("ensemble", "ant", "bee")}
        best = best_of(("ant", "bee"), key=lambda who: mean[who])
        ahead = mean["ensemble"] - mean[best] if best_of is max else mean[best] - mean["ensemble"]
        assert cells(page, title) == [
            f"{mean['ensemble']:.4f}",
            f"{mean[best]:.4f}",
            best,
            f"{ahead:+.4f}",
            f"{(mean['ant'] + mean['bee']) / 2:.4f}",
        ]
    order = [page.words.index(word) for word in ("Summary", "Plots", "Worst images per class", "Gallery")]
    parts = [values["id"] for tag, values in page.tags if tag == "section"]
    assert parts == ["story", "summary", "plots", "worst", "gallery", "made"]
    assert order
    assert [values for tag, values in page.tags if tag == "details" and "open" in values] == []


def test_the_worst_images_of_each_class_as_a_slow_search_finds_them(told: tuple[Bench, Path]) -> None:
    bench, folder = told
    found = figures(folder)[0]["worst_by_class"]
    answers = {
        image: (pixels(predicted(bench, image, "_pred.png")), labels) for image, labels in truth(bench).items()
    }
    for number, name in enumerate(CLASS_NAMES):
        for kind in ("false_positives", "false_negatives"):
            most: dict[str, Any] | None = None
            for image, (answer, labels) in sorted(answers.items()):
                said, other = (answer, labels) if kind == "false_positives" else (labels, answer)
                wrong = (said == number) & (answer != labels) & (labels != 255)
                count = int(wrong.sum())
                if count and (most is None or count > most["pixels"]):
                    common = CLASS_NAMES[int(np.bincount(other[wrong]).argmax())]
                    share = pytest.approx(count / (labels != 255).sum())
                    most = {"image": image, "pixels": count, "share": share, "other": common}
            assert found.get(name, {}).get(kind) == most, (name, kind)
    page = Page(folder)
    shown = [(values["title"], values["href"]) for tag, values in page.tags if tag == "a" and "data-layer" in values]
    assert shown
    for title, target in shown:
        assert title and target == f"pictures/{key_of(page, title.partition(': ')[2])}/errors.png"


def test_a_member_that_is_damaged_afterwards_takes_the_picture_away_and_nothing_else(
    told: tuple[Bench, Path], tmp_path: Path
) -> None:
    bench, folder = told
    shutil.copytree(folder, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "story")
    chosen = story(folder)
    shard = bench.shard(chosen["dataset"], "ant", chosen["image"])
    when, content = shard.stat(), shard.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 16
    try:
        shard.write_bytes(damaged)
        os.utime(shard, ns=(when.st_atime_ns, when.st_mtime_ns))
        result = bench.run("report", "--write", str(tmp_path / "r"), "--processes", "1")
    finally:
        shard.write_bytes(content)
        os.utime(shard, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert result.code == 1
    assert result.err.startswith(f"failed: {chosen['dataset']}: {chosen['image']}: {shard}: ")
    assert story(tmp_path / "r") is None
    assert len(Page(tmp_path / "r").data["images"]) == 4
