"""Sheets of pictures: images of a dataset under their labels, and one image as members see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.decode.arrays import decode_rgb
from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.taxonomy import IGNORE
from ...files import atomic_path
from .colours import blend_over, class_colours, heat_map

_OPACITY = 0.5
_STRIPE = 8  # pixels from one stripe to the next where nothing is labelled

_THREADS = 4  # each holds a photograph

_COLUMNS = 3
_ABREAST = 5  # a photograph, seven members, the ensemble and its confidence are two rows
_CELL = 600  # width of an image on the sheet
_TALLEST = 0.75  # of a cell, in widths
_GAP = 16
_TEXT, _TITLE = 17, 26
_SWATCH, _BAR = 22, 256
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (90, 90, 90)


class SheetReader(Protocol):
    """Reads labels for a sheet: a `LabelReader`, or one of labels that lie elsewhere."""

    @property
    def root(self) -> Path:
        """Return the folder of the photographs."""
        ...

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Read train ids (H, W) uint8; DatasetError if they cannot be read, or are not of ``size``."""
        ...


def dataset_sheet(
    path: Path,
    title: str,
    reader: SheetReader,
    shown: Sequence[tuple[str, ImageMaskPair]],
    classes: ClassSet = CITYSCAPES19,
) -> None:
    """Write a sheet of images under their labels, with a legend.

    Args:
        path: PNG to write.
        title: what stands above it.
        reader: of the labels.
        shown: split, image and mask of each picture, one at least.
        classes: whose ids the labels are.

    Raises:
        DatasetError: an image or its mask cannot be read.
        OSError: the file cannot be written.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        cells = list(pool.map(lambda one: _cell(reader, one[1], classes), shown))
    captions = [f"{split}: {pair.image}" for split, pair in shown]
    columns = min(_COLUMNS, len(cells))
    width = max(columns, 2) * (_CELL + _GAP) + _GAP
    text, large = ImageFont.load_default(_TEXT), ImageFont.load_default(_TITLE)
    rows = [range(start, min(start + columns, len(cells))) for start in range(0, len(cells), columns)]
    heights = [max(cells[place].height for place in row) for row in rows]
    below = _TEXT + _GAP + 8
    legend = _legend(width - 2 * _GAP, text, classes, "ignored")
    top = 2 * _GAP + _TITLE
    sheet = Image.new("RGB", (width, top + sum(heights) + below * len(rows) + legend.height + 2 * _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), _shortened(title, large, width - 2 * _GAP), fill=_INK, font=large)
    for row, height in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            cell, x = cells[place], _GAP + column * (_CELL + _GAP)
            sheet.paste(cell, (x, top + height - cell.height))
            pen.text((x, top + height + 4), _shortened(captions[place], text, _CELL), fill=_FAINT, font=text)
        top += height + below
    sheet.paste(legend, (_GAP, top + _GAP // 2))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def member_sheet(tiles: Sequence[tuple[str, NDArray[np.uint8]]], width: int, colours: ClassSet | str) -> Image.Image:
    """Pictures of one scene side by side, their names below, above a legend of their colours.

    Args:
        tiles: name and (H, W, 3) uint8 pixels of each picture, all of one size; one at least.
        width: of each picture, in pixels.
        colours: the classes; or, of heat maps, the name of what they show from 0 to 1.
    """
    height = max(1, round(tiles[0][1].shape[0] * width / tiles[0][1].shape[1]))
    rows = math.ceil(len(tiles) / _ABREAST)
    columns = math.ceil(len(tiles) / rows)
    across, down = width + _GAP, height + _TEXT + _GAP
    text = ImageFont.load_default(_TEXT)
    across_all = columns * across - _GAP
    legend = _heat_bar(colours, text) if isinstance(colours, str) else _legend(across_all, text, colours)
    size = max(across_all, legend.width) + 2 * _GAP, rows * down + legend.height + 3 * _GAP
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (name, pixels) in enumerate(tiles):
        x, y = _GAP + place % columns * across, _GAP + place // columns * down
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS), (x, y))
        pen.text((x, y + height + 4), _shortened(name, text, width), fill=_INK, font=text)
    sheet.paste(legend, (_GAP, rows * down + 2 * _GAP))
    return sheet


def reduced(picture: Image.Image, width: int | None, *, exact: bool) -> Image.Image:
    """A picture at a width, unless it is smaller.

    Args:
        picture: of any mode.
        width: in pixels; None for its own.
        exact: mix no colours.
    """
    if width is None or width >= picture.width:
        return picture
    size = (width, max(1, round(picture.height * width / picture.width)))
    return picture.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: ClassSet = CITYSCAPES19
) -> NDArray[np.uint8]:
    """Lay labels over an image; what is ignored is striped.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) uint8 ids of the classes, 255 is ignored.
        classes: whose colours are shown.
    """
    tinted = blend_over(image, class_colours(labels, classes), _OPACITY)
    ignored = labels == IGNORE
    tinted[ignored] = image[ignored]
    tinted[ignored & _stripes(*labels.shape)] = 255
    return tinted


def _stripes(height: int, width: int) -> NDArray[np.bool_]:
    return (np.arange(height)[:, None] + np.arange(width)[None, :]) % _STRIPE < 2


def _cell(reader: SheetReader, pair: ImageMaskPair, classes: ClassSet) -> Image.Image:
    """An image under its labels, as large as its place on the sheet allows."""
    pixels = decode_rgb(located(reader.root, pair.image))
    height, width = pixels.shape[:2]
    labels = reader.read(pair, (height, width))
    scale = min(_CELL / width, _TALLEST * _CELL / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    # Stripes and text are of the sheet's pixels, so labels are enlarged before they are laid over.
    ids = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return Image.fromarray(overlay(np.asarray(image), np.asarray(ids), classes))


def _legend(
    width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, classes: ClassSet, *more: str
) -> Image.Image:
    """The colours of all classes with their names, in as many columns as fit; one name more is of what has none."""
    names = (*classes.names, *more)
    column = _SWATCH + 8 + math.ceil(max(font.getbbox(name)[2] for name in names)) + 2 * _GAP
    columns = max(1, width // column)
    rows = math.ceil(len(names) / columns)
    columns = math.ceil(len(names) / rows)
    line = _SWATCH + 8
    picture = Image.new("RGB", (width, rows * line), _PAPER)
    pen = ImageDraw.Draw(picture)
    for place, name in enumerate(names):
        x, y = place // rows * (width // columns), place % rows * line
        grey = np.full((_SWATCH, _SWATCH, 3), 150, np.uint8)
        label = np.full((_SWATCH, _SWATCH), place if place < len(classes) else IGNORE, np.uint8)
        fill = class_colours(label, classes) if place < len(classes) else overlay(grey, label, classes)
        picture.paste(Image.fromarray(fill), (x, y))
        pen.rectangle((x, y, x + _SWATCH - 1, y + _SWATCH - 1), outline=_FAINT)
        pen.text((x + _SWATCH + 8, y + _SWATCH / 2), name, fill=_INK, font=font, anchor="lm")
    return picture


def _heat_bar(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """The colours of `heat_map` from 0 to 1, and the name of what they show."""
    bar = heat_map(np.linspace(0, 1, _BAR)[None].repeat(_SWATCH, 0))
    words = (("0", _GAP), (f"1  {name}", 2 * _GAP + _BAR + 8))
    picture = Image.new("RGB", (words[1][1] + math.ceil(font.getlength(words[1][0])), _SWATCH + 8), _PAPER)
    picture.paste(Image.fromarray(bar), (2 * _GAP, 0))
    pen = ImageDraw.Draw(picture)
    for word, x in words:
        pen.text((x, _SWATCH / 2), word, fill=_INK, font=font, anchor="lm")
    return picture


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """``text``, with dots in place of its middle where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        shorter = f"{text[: kept // 3]}...{text[len(text) - (kept - kept // 3) :]}"
        if font.getlength(shorter) <= width:
            return shorter
    return ""
