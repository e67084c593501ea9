"""Drawn datasets in the folders and formats in which the authors of the seven source datasets distribute theirs."""

from __future__ import annotations

import colorsys
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DatasetError
from ...files import is_partial, write_bytes
from ..dataset_specs import DRAWN_MARK, DatasetSpec, dataset_spec
from ..parallel import map_files
from ..taxonomy import IGNORE, PALETTE
from .dataset_frames import Frame, draw_frame
from .drawn_files import Pixels, encode, write_drawn
from .idd_polygons import describe_polygons
from .regions import find_regions
from .style import style_of

# Those of Cityscapes' classes whose objects are told apart.
_WITH_INSTANCES = {"person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle", "caravan", "trailer"}
_UNLABELLED = 2  # images of a test split that has no masks
_BROKEN = 15188  # the one of GTA5's two broken frames that is drawn
# MATLAB writes the time into the first bytes of its files; equal work is to give equal bytes.
_MATLAB_HEADER = b"MATLAB 5.0 MAT-file, drawn".ljust(116)


@dataclass(frozen=True, slots=True)
class _Task:
    """One dataset to draw, and where."""

    root: Path
    source: DatasetSpec
    counts: dict[str, int]
    seed: int
    size: tuple[int, int] | None
    style: str | None

    @property
    def names(self) -> dict[int, str]:
        """Raw id -> its name, ascending."""
        return {raw: called for raw, (_, called) in sorted((self.source.labels or {}).items())}

    def frame(self, which: tuple[str, int]) -> Frame:
        """A frame by split and number, drawn in whatever process."""
        split, number = which
        return draw_frame(self.source.name, split, number, seed=self.seed, size=self.size, style=self.style)

    def frames(self, *splits: str) -> Iterator[tuple[str, int, Frame]]:
        """Split, number within the split, and frame; of all splits that have masks if none is named."""
        wanted = [(split, number) for split in splits or ("train", "val") for number in range(self.counts[split])]
        for (split, number), frame in zip(wanted, map_files(self.frame, wanted, together=1), strict=True):
            yield split, number, frame

    def tag(self, split: str, number: int) -> str:
        """Letters and digits as real names have them, other ones for each frame."""
        return hashlib.sha256(f"{self.source.name} {split} {number}".encode()).hexdigest()

    def write(self, path: str, data: bytes) -> None:
        write_drawn(self.root / path, data)

    def picture(self, path: str, pixels: Pixels, colours: NDArray[np.uint8] | None = None) -> None:
        self.write(path, encode(path, pixels, colours))

    def json(self, path: str, value: Any) -> None:
        self.write(path, json.dumps(value, separators=(",", ":")).encode() + b"\n")


def write_source(
    root: Path,
    name: str,
    *,
    train: int = 8,
    val: int = 4,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    style: str | None = None,
) -> Path:
    """Draw a small dataset as the authors of ``name`` distribute theirs; the same seed gives the same bytes.

    The `draw_frame` of each split and number is written, with masks in raw ids, in the order of the names. Beside
    them stand what the real ones hold too: test images without masks (BDD100K, Mapillary), test images and a broken
    frame that is left out (GTA5), a mask of another size (GTA5), deleted objects, lines and groups (IDD). WildDash
    has no split lists, so that readers draw their own split of all images. A hidden file keeps the arguments.

    Args:
        root: the data root; the dataset's folder in it is made, or drawn once more.
        name, seed, size, style: as for `draw_frame`; the size is at least (32, 32).
        train, val: how many frames are for training and for validation, at least 1.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: unknown dataset; its folder holds other files, such as a real dataset or one drawn with other
            arguments; scipy is missing, which GTA5's split.mat needs.
        OSError: the folder cannot be written.
        ValueError: a number that is too small, or an unknown style.
    """
    facts = dataset_spec(name)
    if train < 1 or val < 1:
        raise ValueError(f"{train} and {val} frames cannot be drawn; each split needs at least one")
    if seed < 0:
        raise ValueError(f"a seed of {seed} is negative; count from 0")
    if size is not None and min(size) < 32:
        raise ValueError(f"frames of {size[0]} x {size[1]} pixels are too small; 32 x 32 is the least")
    if style is not None:
        style_of(style)
    if name == "gta5":
        _import_savemat()
    folder = root / facts.folder
    settings = {"dataset": name, "train": train, "val": val, "seed": seed, "size": size and list(size)}
    _claim(folder, settings | {"style": style})
    task = _Task(folder, facts, {"train": train, "val": val, "test": _UNLABELLED}, seed, size, style)
    _WRITERS[name](task)
    return folder


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Mark ``folder`` as drawn; what somebody downloaded must never be overwritten by what is drawn."""
    mark, text = folder / DRAWN_MARK, json.dumps(settings) + "\n"
    if mark.is_file():
        if mark.read_text(encoding="utf-8") != text:
            raise DatasetError(
                f"{folder}: holds a dataset drawn with other settings ({mark.read_text(encoding='utf-8').strip()}); "
                "remove the folder, or draw into another one"
            )
    elif folder.exists() and (not folder.is_dir() or not all(is_partial(path.name) for path in folder.iterdir())):
        raise DatasetError(f"{folder}: holds what was not drawn, and is left as it is; draw into another folder")
    else:
        write_bytes(mark, text.encode())


def _palette(facts: DatasetSpec) -> NDArray[np.uint8]:
    """A colour for each raw id (n, 3): that of its class, or a muted one for what belongs to none."""
    labels = facts.labels or {}
    colours = np.zeros((max(labels) + 1, 3), dtype=np.uint8)
    for raw, (train, _) in labels.items():
        if train != IGNORE:
            colours[raw] = PALETTE[train]
        elif raw > 0:
            colours[raw] = [round(255 * c) for c in colorsys.hsv_to_rgb(raw * 0.381966 % 1, 0.3, 0.5)]
    return colours


def _write_cityscapes(task: _Task) -> None:
    """PNG images, masks of labelIds and instanceIds, by city; three for training if there are as many frames."""
    cities = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt",)}
    for split, number, frame in task.frames():
        city = cities[split][number * len(cities[split]) // task.counts[split]]
        below, stem = f"{split}/{city}", f"{city}_{number:06d}_000019"
        task.picture(f"leftImg8bit_trainvaltest/leftImg8bit/{below}/{stem}_leftImg8bit.png", frame.image)
        masks = f"gtFine_trainvaltest/gtFine/{below}/{stem}_gtFine"
        task.picture(f"{masks}_labelIds.png", frame.raw)
        task.picture(f"{masks}_instanceIds.png", _instance_ids(frame, task.source))


def _instance_ids(frame: Frame, source: DatasetSpec) -> NDArray[np.uint16]:
    """Cityscapes' ids of instances (H, W): 1000 times the raw id plus a number within the class, else the raw id."""
    ids = frame.raw.astype(np.uint16)
    for raw, (_, name) in (source.labels or {}).items():
        if name in _WITH_INSTANCES:
            here = (frame.raw == raw) & (frame.objects > 0)
            ids[here] = 1000 * raw + np.unique(frame.objects[here], return_inverse=True)[1]
    return ids


def _write_bdd100k(task: _Task) -> None:
    """JPEG images, and masks that hold train ids."""
    for split, number, frame in task.frames("train", "val", "test"):
        tag = task.tag(split, number)
        stem = f"{number:05x}{tag[:3]}-{tag[3:11]}"
        task.picture(f"images/10k/{split}/{stem}.jpg", frame.image)
        if split != "test":
            task.picture(f"labels/sem_seg/masks/{split}/{stem}.png", frame.raw)


def _write_idd(task: _Task) -> None:
    """Images in both formats, by drive, and polygons with names in JSON."""
    for split, number, frame in task.frames():
        # The second part of the dataset has JPEG images, with names of their own.
        drive, second = number // 3 + (100 if split == "val" else 0), number % 3 == 2
        below, stem = f"{split}/{drive:03d}", f"frame{number:05d}" if second else f"{number:06d}"
        task.picture(f"leftImg8bit/{below}/{stem}_leftImg8bit.{'jpg' if second else 'png'}", frame.image)
        task.json(f"gtFine/{below}/{stem}_gtFine_polygons.json", describe_polygons(frame.raw, task.names))


def _write_mapillary(task: _Task) -> None:
    """JPEG images, palette masks whose indices are places in config.json, and config.json."""
    colours = _palette(task.source)
    for split, number, frame in task.frames("train", "val", "test"):
        tag, called = task.tag(split, number), task.source.split_folders[split]
        stem = f"{number:04d}_{tag[:17]}"
        task.picture(f"{called}/images/{stem}.jpg", frame.image)
        if split != "test":
            task.picture(f"{called}/labels/{stem}.png", frame.raw, colours)
    entries = [
        {
            "name": called,
            "readable": called.rpartition("--")[2].replace("-", " ").title(),
            "color": colours[raw].tolist(),
            "instances": called.startswith(("animal", "human", "object")),
            "evaluate": not called.startswith("void"),
        }
        for raw, called in task.names.items()
    ]
    task.json("config.json", {"version": "1.2", "mapping": "drawn", "labels": entries})


def _write_wilddash(task: _Task) -> None:
    """JPEG images of all splits in one folder, colours that number segments, and panoptic.json for all of them."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (_, _, frame) in enumerate(task.frames()):
        stem = f"dr{index:04d}_100000"
        height, width = frame.mask.shape
        segments, infos = _segments(frame.raw)
        colours = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=2).astype(np.uint8)
        task.picture(f"images/{stem}.jpg", frame.image)
        task.picture(f"panoptic/{stem}.png", colours)
        images.append({"id": index + 1, "file_name": f"{stem}.jpg", "height": height, "width": width})
        annotations.append({"image_id": index + 1, "file_name": f"{stem}.png", "segments_info": infos})
    palette = _palette(task.source)
    categories = [
        {"id": raw, "name": called, "isthing": int(_is_thing(raw)), "color": palette[raw].tolist()}
        for raw, called in task.names.items()
    ]
    task.json("panoptic.json", {"images": images, "annotations": annotations, "categories": categories})


def _is_thing(category: int) -> bool:
    """True if WildDash counts a category by the piece: people and vehicles."""
    return 24 <= category <= 35 or category in (47, 48, 49)


def _segments(raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
    """Numbers of segments (H, W), 0 for what is unlabelled, and what COCO's format says of each."""
    segments = np.zeros(raw.shape, dtype=np.uint32)
    infos: dict[int, dict[str, Any]] = {}
    pieces: dict[int, int] = {}
    for region in find_regions(raw):
        if region.id == 0:
            continue
        pieces[region.id] = pieces.get(region.id, 0) + 1
        # Far enough apart that all three channels are needed.
        number = region.id * 3000 + (pieces[region.id] if _is_thing(region.id) else 0)
        height, width = region.inside.shape
        segments[region.top : region.top + height, region.left : region.left + width][region.inside] = number
        infos[number] = {"id": number, "category_id": region.id, "area": 0, "iscrowd": 0}
    for number, info in infos.items():
        rows, columns = np.nonzero(segments == number)
        left, top = int(columns.min()), int(rows.min())
        info["area"] = len(rows)
        info["bbox"] = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
    return segments, list(infos.values())


def _write_gta5(task: _Task) -> None:
    """PNG images of all splits in one folder, palette masks of labelIds, and split.mat."""
    colours = _palette(task.source)
    ids: dict[str, list[int]] = {split: [] for split in task.counts}
    for number, (split, within, frame) in enumerate(task.frames("train", "val", "test"), start=1):
        ids[split].append(number)
        task.picture(f"images/{number:05d}.png", frame.image)
        # One mask has another size than its image; taking the nearest pixel gives back what was drawn.
        odd = split == "train" and within == min(1, task.counts["train"] - 1)
        task.picture(f"labels/{number:05d}.png", frame.raw.repeat(2, 0).repeat(2, 1) if odd else frame.raw, colours)
    broken = task.frame(("train", task.counts["train"]))
    task.picture(f"images/{_BROKEN}.png", broken.image)
    task.picture(f"labels/{_BROKEN}.png", np.ascontiguousarray(broken.raw[:-5, :-3]), colours)
    ids["train"].append(_BROKEN)
    file = io.BytesIO()
    arrays = {f"{split}Ids": np.array(numbers, dtype=np.float64)[:, None] for split, numbers in ids.items()}
    _import_savemat()(file, arrays)
    task.write("split.mat", _MATLAB_HEADER + file.getvalue()[len(_MATLAB_HEADER) :])


def _import_savemat() -> Callable[..., None]:
    try:
        from scipy.io import savemat  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DatasetError(
            "gta5: to draw its split.mat needs scipy, which is not installed; "
            "pip install 'hmsa-pipeline[train]' brings it"
        ) from error
    return savemat


def _write_shift(task: _Task) -> None:
    """JPEG images of the front camera, by sequence, and masks with the id in the red channel of four."""
    for split, number, frame in task.frames():
        sequence, moment = divmod(number, 2)
        below = f"{split}/front/{sequence:04d}-{task.tag(split, sequence)[:4]}"
        pixels = np.zeros((*frame.raw.shape, 4), dtype=np.uint8)
        pixels[..., 0], pixels[..., 3] = frame.raw, 255
        task.picture(f"discrete/images/{below}/{moment * 10:08d}_img_front.jpg", frame.image)
        task.picture(f"discrete/labels/{below}/{moment * 10:08d}_semseg_front.png", pixels)


_WRITERS: dict[str, Callable[[_Task], None]] = {
    "cityscapes": _write_cityscapes,
    "bdd100k": _write_bdd100k,
    "idd": _write_idd,
    "mapillary": _write_mapillary,
    "wilddash": _write_wilddash,
    "gta5": _write_gta5,
    "shift": _write_shift,
}
