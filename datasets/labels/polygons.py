"""Labels that are polygons with names, as the annotation tools of Cityscapes and IDD write them, drawn as ids.

Objects are drawn in the order of the file, later ones over earlier ones; deleted objects and polygons of fewer than
three points are none; where a name is unknown and ends in "group", the name before it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ...errors import DatasetError, disk_error, nearest
from ...files import atomic_path
from ..decode.image_header import MAX_PIXELS
from ..parallel import map_files
from .json_file import read_json

BACKGROUND = "unlabeled"
"""The name of what no polygon covers."""

# Beyond, numbers would not fit what Pillow draws with; no picture is so large.
_FARTHEST = 1_000_000

_KEY = "drawn-from"
_HEAD = 256  # bytes; the text stands before the pixels


def draw(path: Path, ids: Mapping[str, int]) -> NDArray[np.uint8]:
    """The polygons of one JSON file as ids, (imgHeight, imgWidth) uint8.

    It holds ``imgHeight``, ``imgWidth`` and ``objects``, each with ``label``, ``polygon`` (x, y in pixels; fractions
    are cut off) and perhaps ``deleted``; ``ids`` says which id a name has, `BACKGROUND` among them.

    Raises:
        DatasetError: the file cannot be read, is none of these, or holds a name that is not in ``ids``.
    """
    content = read_json(path)
    try:
        height, width = int(content["imgHeight"]), int(content["imgWidth"])
        objects = [item for item in content["objects"] if not item.get("deleted") and len(item["polygon"]) >= 3]
        shapes = [(item["label"], [(float(x), float(y)) for x, y in item["polygon"]]) for item in objects]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{path}: is no file of polygons: it needs imgHeight, imgWidth and objects with label and polygon "
            f"({type(error).__name__}: {error}); unpack it again"
        ) from error
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DatasetError(f"{path}: says {height} x {width} pixels, which no picture has; unpack it again")
    picture = Image.new("L", (width, height), ids[BACKGROUND])
    pen = ImageDraw.Draw(picture)
    for label, polygon in shapes:
        if not all(math.isfinite(n) and abs(n) <= _FARTHEST for point in polygon for n in point):
            raise DatasetError(f"{path}: a polygon of '{label}' has a point far outside every picture; fix the file")
        pen.polygon(polygon, fill=_id(path, label, ids))
    return np.array(picture)


def is_drawn(path: Path, drawn: Path) -> bool:
    """True if ``drawn`` was made of ``path`` as it is now.

    The picture holds the time and the size of its source in a text, so that neither an older nor a newer source
    passes, nor one of the same name in another folder. The time of the picture itself would not do: some disks keep
    coarser times than others (NTFS, SMB, exFAT).
    """
    try:
        made_of = _made_of(path)
        with drawn.open("rb") as file:
            return made_of in file.read(_HEAD)
    except OSError:
        return False


def _made_of(path: Path) -> bytes:
    """Version tag of a file: time of change and size."""
    status = path.stat()
    return f"{_KEY}\0{status.st_mtime_ns} {status.st_size}\n".encode()


def draw_files(
    tasks: Sequence[tuple[Path, Path]],
    ids: Mapping[str, int],
    advance: Callable[[], None],
    processes: int | None = None,
) -> None:
    """Draw many files and keep them as grey PNG, each written atomically; several at a time where it pays.

    Args:
        tasks: file of polygons, and the PNG to make of it.
        ids: as for `draw`.
        advance: called after each.
        processes: how many at a time; None for one a usable core.

    Raises:
        DatasetError: as `draw`; a process was ended from outside.
        DiskError: a PNG cannot be written.
    """
    for _ in map_files(partial(_draw_file, ids=dict(ids)), tasks, processes):
        advance()


def _draw_file(task: tuple[Path, Path], ids: Mapping[str, int]) -> None:
    path, drawn = task
    # Before reading: a file that changes meanwhile will be drawn again.
    made_of = _made_of(path) if path.exists() else b""
    picture = Image.fromarray(draw(path, ids))
    info = PngInfo()
    info.add(b"tEXt", made_of)  # which stands before the pixels
    try:
        with atomic_path(drawn) as temporary:
            picture.save(temporary, "PNG", compress_level=1, pnginfo=info)
    except OSError as error:
        raise disk_error(drawn, error) from error


def _id(path: Path, label: object, ids: Mapping[str, int]) -> int:
    name = str(label)
    if name not in ids:
        name = name.removesuffix("group")
    if name not in ids:
        raise DatasetError(f"{path}: holds an object called '{label}', which is no label; {nearest(name, ids)}")
    return ids[name]
