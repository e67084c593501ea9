from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hmsa_pipeline.datasets.class_set import CITYSCAPES19
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, PALETTE
from hmsa_pipeline.pipeline.training.log import TrainingLog, iou_table, side_by_side
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def row(epoch: int, mean: float | None) -> dict[str, Any]:
    scores = {} if mean is None else {"iou": dict.fromkeys(CLASS_NAMES, mean) | {"train": None}}
    return {"epoch": epoch, "lr": 0.1 / epoch, "loss": {"total": 2.0, "main": 1.0}, "mean_iou": mean, **scores}


def board(output: Path) -> EventAccumulator:
    return EventAccumulator(str(output / "tensorboard")).Reload()


def test_the_table_shows_every_class_once_and_a_dash_where_there_is_none() -> None:
    iou = dict(zip(CLASS_NAMES, [0.5] * 18 + [math.nan], strict=True))
    table = iou_table(iou, 0.25, 18)
    for name in CLASS_NAMES:
        assert table.count(f" {name} ") == 1, name
    assert table.count("50.0") == 18
    assert "bicycle           -" in table
    assert "mean of 18     25.0" in table
    assert max(map(len, table.splitlines())) < 80


def test_a_gallery_picture_is_image_labels_and_prediction_side_by_side() -> None:
    image = torch.full((3, 4, 6), 7, dtype=torch.uint8)
    labels = torch.full((4, 6), 255, dtype=torch.uint8)
    labels[0] = 10
    picture = side_by_side(image, labels, torch.full((4, 6), 13), CITYSCAPES19)
    assert (picture.shape, picture.dtype) == ((3, 4, 18), torch.uint8)
    assert picture[:, 2, 5].tolist() == [7, 7, 7]
    assert picture[:, 0, 6].tolist() == list(PALETTE[10])
    assert picture[:, 1, 11].tolist() == [0, 0, 0]
    assert picture[:, 3, 17].tolist() == list(PALETTE[13])


def test_a_large_picture_is_made_smaller() -> None:
    labels = torch.zeros(1052, 1914, dtype=torch.uint8)
    picture = side_by_side(torch.zeros(3, 1052, 1914, dtype=torch.uint8), labels, labels, CITYSCAPES19)
    assert picture.shape == (3, 263, 3 * 479)


def test_what_an_interrupted_run_wrote_of_later_steps_is_hidden(tmp_path: Path) -> None:
    first = TrainingLog(tmp_path, 0)
    for step in (10, 20, 30):
        first.scalars(step, {"loss/total": float(step)})
    first.close()
    # TensorBoard reads files by name: of one second, a process' tenth stands before its ninth.
    time.sleep(1.1)
    second = TrainingLog(tmp_path, 20)
    second.scalars(25, {"loss/total": -1.0})
    second.close()
    events = board(tmp_path).Scalars("loss/total")
    assert [(event.step, event.value) for event in events] == [(10, 10.0), (25, -1.0)]


def test_history_and_chart_are_there_before_any_validation_and_after(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, 0)
    pictures = []
    for history in ([row(1, None)], [row(1, None), row(2, 0.4)]):
        log.epoch(history)
        assert json.loads((tmp_path / "history.json").read_text()) == history
        with Image.open(tmp_path / "progress.png") as chart:
            pictures.append(np.asarray(chart.convert("RGB")))
    log.close()
    assert not np.array_equal(*pictures)
