"""Logs of a training run: TensorBoard, a table on the terminal, ``history.json``, ``progress.png``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datasets.class_set import ClassSet
from ...errors import ManifestError
from ...files import atomic_path, write_json
from ..pictures.colours import class_colours

EXTRA = "training needs the extra 'train'; pip install 'hmsa-pipeline[train]'"
HISTORY = "history.json"
CHART = "progress.png"
_PICTURE_WIDTH = 480
_COLUMNS = 3


def require_extra() -> None:
    """Raise ManifestError where a package that logs a run is not installed."""
    try:
        importlib.import_module("tensorboard")
    except ImportError as error:
        raise ManifestError(f"{error.name} is not installed: {EXTRA}") from error


class TrainingLog:
    """Writes below a run's output folder, from one process only.

    Args:
        output: the run's folder.
        step: steps that are done; what an earlier run wrote of later ones is hidden.
    """

    def __init__(self, output: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._output = output
        self._board = SummaryWriter(str(output / "tensorboard"), purge_step=step or None)

    def close(self) -> None:
        """Write what is not written yet."""
        self._board.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Figures of one step, by name."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def gallery(self, step: int, pictures: Sequence[Tensor]) -> None:
        """Pictures as `gallery_picture` makes them: the same images at every validation."""
        for number, picture in enumerate(pictures):
            self._board.add_image(f"gallery/{number}", picture, step)

    def epoch(self, history: list[dict[str, Any]]) -> None:
        """Write the whole history once more, with its chart; OSError if the folder cannot be written."""
        self._board.flush()
        write_json(self._output / HISTORY, history)
        _draw_chart(self._output / CHART, history)


def side_by_side(image: Tensor, labels: Tensor, predicted: Tensor, classes: ClassSet) -> Tensor:
    """An image, its labels and its prediction side by side.

    Args:
        image: (3, H, W) uint8, RGB.
        labels: (H, W) uint8 train ids, 255 is shown black.
        predicted: (H, W) uint8 train ids.
        classes: whose colours are shown.

    Returns:
        (3, h, w) uint8, at most 1440 pixels wide.
    """
    step = max(1, math.ceil(image.shape[-1] / _PICTURE_WIDTH))
    maps = [
        torch.from_numpy(class_colours(ids.cpu().numpy(), classes)).permute(2, 0, 1) for ids in (labels, predicted)
    ]
    return torch.cat([picture[:, ::step, ::step].cpu() for picture in (image, *maps)], dim=2)


def iou_table(iou: Mapping[str, float], mean: float, classes: int) -> str:
    """Format the IoU of every class in per cent, in columns, with the mean; a dash for a class without IoU.

    Args:
        iou: of each class by name, 0 to 1, NaN without IoU.
        mean: 0 to 1.
        classes: how many the mean runs over.
    """
    wide = max(13, *map(len, iou))
    cells = [f"{name:{wide}} {_percent(value):>5}" for name, value in iou.items()]
    cells.append(f"{f'mean of {classes}':{wide}} {_percent(mean):>5}")
    rows = math.ceil(len(cells) / _COLUMNS)
    return "\n".join(f"  {'   '.join(cells[row::rows])}" for row in range(rows))


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _draw_chart(path: Path, history: list[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, rate = figure.subplots(3, sharex=True)
    epochs = [row["epoch"] for row in history]
    for name in history[-1]["loss"]:
        values = [row["loss"].get(name, np.nan) for row in history]
        loss.plot(epochs, values, label=name, marker=".", linewidth=2 if name == "total" else 1)
    loss.set_ylabel("loss")
    loss.legend(fontsize="small")
    scored = [row for row in history if row.get("mean_iou") is not None]
    if scored:
        where = [row["epoch"] for row in scored]
        for name in scored[0]["iou"]:
            values = [np.nan if row["iou"][name] is None else 100 * row["iou"][name] for row in scored]
            score.plot(where, values, color="0.8", linewidth=0.8)
        score.plot(where, [100 * row["mean_iou"] for row in scored], color="C3", marker=".", label="mean IoU")
        best = max(scored, key=lambda row: row["mean_iou"])
        top = 100 * best["mean_iou"]
        score.annotate(f"{top:.1f}", (best["epoch"], top), ha="center", va="bottom")
        score.legend(fontsize="small")
    score.set_ylabel("IoU, % (grey: classes)")
    score.set_ylim(0, 100)
    rate.plot(epochs, [row["lr"] for row in history], marker=".")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (loss, score, rate):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
