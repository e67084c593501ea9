"""The folder of auto-labels: names, thresholds on 8 bits, and what a reader refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hmsa_pipeline.datasets import auto_labels
from hmsa_pipeline.datasets.auto_labels import confidence_level, label_name, read_auto_labels
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import DatasetError
from PIL import Image

PHOTO = "day/a.jpg"
RECORD: dict[str, Any] = {
    "format_version": 1,
    "complete": True,
    "dataset": "street",
    "format": "train-ids",
    "classes": [{"name": name, "threshold": 0.5 if place else None} for place, name in enumerate(CLASS_NAMES)],
}


def write(folder: Path, labels: Any, confidence: Any, **changes: Any) -> Path:
    """A folder with one photograph's labels, its record changed."""
    record = RECORD | changes
    for name, pixels in (
        (label_name(PHOTO, record["format"]), labels),
        (auto_labels.confidence_name(PHOTO), confidence),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / name)
    (folder / "labels.json").write_text(json.dumps(record))
    (folder / "photographs.json").write_text(json.dumps({PHOTO: [1000, 1, 4]}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_auto_labels(folder)
    return str(caught.value)


def test_train_ids_are_read_with_and_without_a_further_threshold(tmp_path: Path) -> None:
    found = read_auto_labels(write(tmp_path, [[1, 2, 18, 255]], [[127, 192, 255, 255]]))
    assert (found.dataset, found.format, found.classes) == ("street", "train-ids", CLASS_NAMES)
    assert found.thresholds == (None, *[0.5] * 18)
    assert found.read(PHOTO).tolist() == [[1, 2, 18, 255]]
    assert found.read(PHOTO, 0.75).tolist() == [[255, 2, 18, 255]]  # 0.75 is level 192
    assert found.read(PHOTO, 0.751).tolist() == [[255, 255, 18, 255]]
    assert found.read_confidence(PHOTO).tolist() == [[127, 192, 255, 255]]


def test_label_ids_of_cityscapes_become_train_ids(tmp_path: Path) -> None:
    found = read_auto_labels(write(tmp_path, [[7, 26, 33, 0]], [[255] * 4], format="cityscapes"))
    assert found.label_path(PHOTO) == tmp_path / "labels/day/a_gtFine_labelIds.png"
    assert found.read(PHOTO).tolist() == [[0, 13, 18, 255]]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9, 0.95, 255 / 256])
def test_a_threshold_on_levels_keeps_no_pixel_below_it_and_loses_at_most_one_level(threshold: float) -> None:
    confidence = np.linspace(0, 1, 100_001)
    kept = np.minimum(np.floor(256 * confidence), 255) >= confidence_level(threshold)
    assert not kept[confidence < threshold].any()
    assert kept[(confidence >= threshold + 1 / 256) | (confidence >= 255 / 256)].all()


def test_a_folder_of_one_dataset_is_found_below(tmp_path: Path) -> None:
    write(tmp_path / "street", [[0] * 4], [[0] * 4])
    assert read_auto_labels(tmp_path).folder == tmp_path / "street"
    write(tmp_path / "garden", [[0] * 4], [[0] * 4])
    assert "of 2 datasets; name one of garden, street" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("photograph", "name"),
    [
        ("leftImg8bit/train_extra/ulm/ulm_1_leftImg8bit.png", "gtFine/train_extra/ulm/ulm_1_gtFine_labelIds.png"),
        ("a.b/c.jpg", "a.b/c_gtFine_labelIds.png"),
    ],
)
def test_names_in_the_format_of_cityscapes(photograph: str, name: str) -> None:
    assert label_name(photograph, "cityscapes") == f"labels/{name}"


def test_other_photographs_classes_and_thresholds_are_refused(tmp_path: Path) -> None:
    found = read_auto_labels(write(tmp_path, [[0] * 4], [[0] * 4]))
    found.require_photographs({PHOTO: 1000})
    with pytest.raises(DatasetError, match=r"has no labels of 1 of 2 photographs \(b\.png\)"):
        found.require_photographs({PHOTO: 1000, "b.png": 1})
    with pytest.raises(DatasetError, match=r"1 photographs have another size in bytes .*\(day/a\.jpg\)"):
        found.require_photographs({PHOTO: 999})
    found.require_classes(CLASS_NAMES)
    with pytest.raises(DatasetError, match="has labels of 19 classes"):
        found.require_classes(CLASS_NAMES[:5])
    found.require_threshold(0.5)
    with pytest.raises(DatasetError, match=r"a threshold of 0\.4 brings nothing back: pixels below 0\.5 are 255"):
        found.require_threshold(0.4)
    for wrong in (0.0, 0.999):
        with pytest.raises(DatasetError, match="cannot be applied to a confidence of 8 bits"):
            found.require_threshold(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "is of format version 2, and this release reads 1"),
        ({"complete": False}, "has not ended; run the same 'hmsa-pipeline autolabel' again"),
        ({"format": "colours"}, "labels.json or photographs.json is damaged"),
        ({"classes": None}, "labels.json or photographs.json is damaged"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, [[0] * 4], [[0] * 4])
    (folder / "labels.json").write_text(json.dumps(RECORD | changes))
    assert message in refusal(folder)


def test_missing_and_damaged_records_are_refused(tmp_path: Path) -> None:
    assert "holds no auto-labels (labels.json is not there)" in refusal(tmp_path)
    write(tmp_path, [[0] * 4], [[0] * 4])
    (tmp_path / "photographs.json").unlink()
    assert f"{tmp_path / 'photographs.json'}: cannot be read" in refusal(tmp_path)
    (tmp_path / "labels.json").write_text("[]")
    assert "it is no mapping" in refusal(tmp_path)


def test_pixels_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds ids that are none of train-ids"):
        read_auto_labels(write(tmp_path, [[0, 0, 19, 0]], [[0] * 4])).read(PHOTO)
    with pytest.raises(DatasetError, match="holds ids that are none of cityscapes"):
        read_auto_labels(write(tmp_path, [[0, 0, 34, 0]], [[0] * 4], format="cityscapes")).read(PHOTO)
    found = read_auto_labels(write(tmp_path, [[0] * 3], [[0] * 5]))
    with pytest.raises(DatasetError, match="has 1 x 3 pixels, its photograph 1 x 4"):
        found.read(PHOTO)
    with pytest.raises(DatasetError, match="has 1 x 5 pixels"):
        found.read_confidence(PHOTO)
    found.label_path(PHOTO).unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        found.read(PHOTO)
