"""Draws the pictures of one image of a report."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...datasets.class_set import ClassSet, Colour
from ...datasets.taxonomy import IGNORE
from ...files import write_bytes, write_text
from ..fusion.uncertainty import as_brightness
from ..pictures.colours import WRONG, confidence_as_float, heat_map
from ..pictures.sheet import reduced
from .records import DatasetSetup, ImageSummary

TWO_CAMPS = math.log(2)
"""Mutual information from which on a pixel is painted as bright as can be."""
_THUMB = 320
_VALUES = 160
FOREIGN, UNKNOWN = (0, 114, 178), (0, 0, 0)
"""Colours of what is out of distribution, and of pixels without a label."""


def draw_pictures(
    setup: DatasetSetup,
    folder: Path,
    summary: ImageSummary,
    photograph: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray,
    truth: np.ndarray | None,
    information: np.ndarray | None,
) -> None:
    """Write the pictures of one image, and note in its gallery entry which there are.

    Args:
        setup: the dataset.
        folder: where the pictures go.
        summary: the image's summary; its layers are extended.
        photograph: (H, W, 3) uint8.
        label: (H, W) uint8 train ids of the ensemble.
        confidence: (H, W) uint16.
        truth: (H, W) uint8, 255 where nothing is known; None without labels.
        information: (H, W) float32 mutual information in nats; None without members.
    """
    width = min(setup.width, label.shape[1])
    confidence_share = confidence_as_float(confidence)
    _write_picture(folder / "photograph.jpg", Image.fromarray(photograph), width)
    _write_picture(folder / "thumb.jpg", Image.fromarray(photograph), min(_THUMB, label.shape[1]))
    write_ids(folder / "prediction.png", label, setup.classes.colours, width)
    _write_picture(folder / "confidence.jpg", Image.fromarray(heat_map(confidence_share)), width)
    summary.entry.layers += ["prediction", "confidence"]
    if information is not None:
        _write_picture(folder / "disagreement.jpg", Image.fromarray(heat_map(information / TWO_CAMPS)), width)
        summary.entry.layers.append("disagreement")
    if truth is not None and setup.truth and setup.truth.ood:
        _write_picture(folder / "foreign.png", _marked(truth == 1, truth, FOREIGN), width)
        summary.entry.layers.append("foreign")
    elif truth is not None:
        _write_picture(folder / "errors.png", _marked(label != truth, truth, WRONG), width)
        write_ids(folder / "labels.png", truth, setup.classes.colours, width)
        summary.entry.layers += ["errors", "labels"]
    values: dict[str, Any] = {"prediction": label, "confidence": np.rint(confidence_share * 255).astype(np.uint8)}
    if information is not None:
        values["disagreement"] = np.rint(information.clip(0, 2.55) * 100).astype(np.uint8)
    if truth is not None:
        values["truth"] = truth
    write_text(folder / "values.js", _pixel_values(folder.name, values))


def draw_uncertainties(
    setup: DatasetSetup, folder: Path, summary: ImageSummary, confidences: Mapping[str, np.ndarray]
) -> None:
    """Write the uncertainty by each function as a picture, and note it in the image's gallery entry.

    Args:
        setup: the dataset.
        folder: where the pictures go.
        summary: the image's summary; its layers are extended.
        confidences: by name of the function, (H, W) uint16.
    """
    for name, confidence in confidences.items():
        layer = f"uncertainty-{name}"
        brightness = as_brightness(name, confidence, len(setup.classes))
        _write_picture(
            folder / f"{layer}.jpg", Image.fromarray(heat_map(brightness)), min(setup.width, brightness.shape[1])
        )
        summary.entry.layers.append(layer)


def _marked(marked: np.ndarray, truth: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """Pixels that are ``marked`` (H, W) bool in a colour, those without a label black, the others transparent."""
    ids = np.where(truth == IGNORE, 1, np.where(marked, 0, IGNORE)).astype(np.uint8)
    return _indexed(ids, (colour, UNKNOWN))


def write_ids(path: Path, ids: np.ndarray, colours: Sequence[tuple[int, int, int]], width: int) -> None:
    """Write a palette image, transparent where an id has no colour.

    Args:
        path: PNG to write.
        ids: (H, W) uint8.
        colours: of the ids from 0 on.
        width: to which it is reduced, if it is wider.
    """
    _write_picture(path, _indexed(ids, colours), width)


def _indexed(ids: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A palette image; transparent where an id has no colour."""
    picture = Image.fromarray(np.where(ids < len(colours), ids, len(colours)).astype(np.uint8), "P")
    picture.putpalette([*np.ravel(colours).tolist(), 0, 0, 0])
    picture.info["transparency"] = len(colours)
    return picture


def _write_picture(path: Path, picture: Image.Image, width: int) -> None:
    """Write a picture, reduced to ``width``: ids by their middle, all else by averaging."""
    picture = reduced(picture, width, exact=picture.mode == "P")
    file = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(file, "JPEG", quality=88)
    else:
        picture.save(file, "PNG", optimize=True)
    write_bytes(path, file.getvalue())


def _pixel_values(key: str, values: dict[str, np.ndarray]) -> str:
    """Subsample pixel values into a JavaScript call: a page opened from the disk cannot fetch JSON."""
    height, width = next(iter(values.values())).shape
    columns = min(_VALUES, width)
    lines = max(1, round(height * columns / width))
    y = ((np.arange(lines) + 0.5) * height / lines).astype(np.int64)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(np.int64)
    grids = {
        name: base64.b64encode(np.ascontiguousarray(grid[np.ix_(y, x)]).tobytes()).decode()
        for name, grid in values.items()
    }
    return f"hmsaValues({json.dumps(key)}, {json.dumps({'width': columns, 'height': lines, **grids})});\n"


def class_legend(classes: ClassSet) -> tuple[tuple[str, str], ...]:
    """Name and colour of each class, by id."""
    return tuple(zip(classes.names, map(_hexadecimal, classes.colours), strict=True))


def _hexadecimal(colour: Colour) -> str:
    return "#" + bytes(colour).hex()
