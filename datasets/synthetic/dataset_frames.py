"""Drawn photographs in the manner of each source dataset, with masks in train ids and in the dataset's own ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..dataset_specs import NAMES, DatasetSpec, dataset_spec
from ..taxonomy import CLASS_NAMES, IGNORE
from .canvas import LABEL, Colour
from .conditions import SHOWN
from .regions import number_regions
from .scene import draw_scene
from .style import Style, read_looks, style_of

SPLITS = ("train", "val", "test")
"""The splits that frames are drawn for; each sees other streets."""

# What the mask of a scene does not tell apart and some datasets do; what stands for the class then is named so.
_FINER = {"marking": "road", "motorcyclist": "rider"}
_OF_THE_CAMERA = ("bonnet", "border", "rim")
_VOID = (*_OF_THE_CAMERA, "animal", "obstacle")
_PARTS = (*CLASS_NAMES, *_FINER, *_VOID)
_PART = {name: number for number, name in enumerate(_PARTS)}


@dataclass(frozen=True, slots=True)
class Frame:
    """One drawn photograph of a dataset."""

    image: NDArray[np.uint8]
    """(H, W, 3), RGB."""
    mask: NDArray[np.uint8]
    """(H, W) train ids; 255 for what belongs to no class. Classes that the dataset merges are one."""
    raw: NDArray[np.uint8]
    """(H, W) the same in the ids that the dataset's authors use."""
    objects: NDArray[np.uint16]
    """(H, W) number of the object that is seen, from 1; 0 for the surroundings. One object may have parts of several
    classes, such as a bicycle and its rider."""


@dataclass(frozen=True, slots=True)
class DatasetLook:
    """Look of the photographs of one dataset, and its names of the things on them."""

    sizes: tuple[tuple[int, int], ...]
    """(height, width) of its frames, by turns; small, with the aspect of the real ones."""
    styles: tuple[Style, ...]
    """Weather and light, by turns: a clear one after every two of the conditions that the dataset shows."""
    bonnet: Colour | None = None
    """Colour of the car that the camera sits in, where it is seen at the foot of the picture."""
    bent: float = 0.0
    """How far a wide lens bends straight lines: by how much smaller things are in the corners, 0 to 1."""
    framed: bool = False
    """True if a rim of the picture is void, since it was bent straight."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class or finer part -> the dataset's names for it, where they are others; of several, each region takes
    the next one."""
    merged: Mapping[str, str] = field(default_factory=dict)
    """Class -> the class that the dataset counts it to."""


def look_of(name: str) -> DatasetLook:
    """The look of a source dataset, from looks.yaml.

    Its styles are each of its four conditions twice, at an odd and an even place, after clear ones.
    """
    facts = dict(read_looks()["datasets"][name])
    traits = facts.pop("traits", {})
    clear = [style_of(look) for look in facts.pop("clear")]
    one, two, three, four = (replace(style_of(condition), **traits) for condition in SHOWN[name])
    styles = (clear[0], one, two, clear[1], three, four, clear[2], two, one, clear[3], four, three)
    return DatasetLook(styles=styles, **facts)


def draw_frame(
    name: str,
    split: str,
    number: int,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    style: str | None = None,
) -> Frame:
    """One photograph in the manner of the dataset ``name``, the same for the same arguments.

    Args:
        name: one of the seven source datasets.
        split: one of `SPLITS`.
        number: of the frame within its split, from 0; a frame depends on no other.
        seed: of the streets, not negative.
        size: (height, width); None for that of the dataset's looks. Where those have several, this is the first, and
            the others follow in proportion.
        style: the look of every frame, of looks.yaml; None for those of the dataset, by turns.

    Raises:
        DatasetError: unknown dataset.
        ValueError: a negative number or seed, a size below 16 x 16, or an unknown style.
    """
    table, looks = dataset_spec(name), look_of(name)
    place = SPLITS.index(split)
    height, width = looks.sizes[number % len(looks.sizes)]
    if size:
        (first_height, first_width), (tall, wide) = looks.sizes[0], size
        height, width = height * tall // first_height, width * wide // first_width
    # Splits begin at other points of the round, so that few frames show many kinds of weather.
    styles = looks.styles if style is None else (style_of(style),)
    look = styles[(number + place * len(styles) // 2) % len(styles)]
    street = np.random.SeedSequence((seed, NAMES.index(name), place, number)).generate_state(1, np.uint64)
    scene = draw_scene(int(street[0]), height, width, look)
    image, parts, objects = scene.image.copy(), scene.mask.copy(), scene.objects
    if look.unknown_object != "none":
        parts[scene.mask == IGNORE] = _PART[look.unknown_object]
    if "marking" in looks.names:
        # Where paint lies is plain to see under a grey sky; what shines at night or in the rain may be anything.
        # What stands where stays the same.
        kept = {field: getattr(look, field) for field in ("unknown_object", "unseen_kind", "crowd")}
        plain = draw_scene(int(street[0]), height, width, replace(style_of("overcast"), **kept))
        parts[_markings(plain.image, plain.mask) & (parts == _PART["road"])] = _PART["marking"]
    if "motorcyclist" in looks.names:
        parts[_on_motorcycles(parts)] = _PART["motorcyclist"]
    if looks.bent:
        image, parts, objects = _bend(image, parts, objects, looks.bent)
    if looks.bonnet:
        _add_bonnet(image, parts, looks.bonnet)
    if looks.framed:
        _add_border(image, parts)
    objects = np.where(np.isin(parts, [_PART[part] for part in _OF_THE_CAMERA]), np.uint16(0), objects)
    return Frame(image, _train_ids(parts, looks), _raw_ids(parts, looks, table), objects)


def _train_ids(parts: NDArray[np.uint8], looks: DatasetLook) -> NDArray[np.uint8]:
    lookup = np.full(256, IGNORE, dtype=np.uint8)
    for part, number in _PART.items():
        if part not in _VOID:
            kind = _FINER.get(part, part)
            lookup[number] = LABEL[looks.merged.get(kind, kind)]
    return lookup[parts]


def _raw_ids(parts: NDArray[np.uint8], looks: DatasetLook, table: DatasetSpec) -> NDArray[np.uint8]:
    if table.labels is None:
        return _train_ids(parts, looks)
    names = {called: raw for raw, (_, called) in table.labels.items()}
    regions = number_regions(parts)
    raw = np.empty_like(parts)
    for number in np.unique(parts).tolist():
        part, where = _PARTS[number], parts == number
        part = looks.merged.get(part, part)
        ids = np.array([names[called] for called in looks.names.get(part, (part,))], dtype=np.uint8)
        turns = np.unique(regions[where], return_inverse=True)[1]
        raw[where] = ids[turns % len(ids)]
    return raw


def _markings(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a road is far brighter than most of it."""
    grey, road = image.mean(axis=2), mask == LABEL["road"]
    return road & (grey > 1.3 * np.median(grey[road])) if road.any() else road


def _on_motorcycles(parts: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The regions of riders that touch more of a motorcycle than of a bicycle."""
    regions = number_regions(parts)
    balance = np.zeros(int(regions.max()) + 1, dtype=np.int64)
    for kind, sign in (("motorcycle", 1), ("bicycle", -1)):
        there = np.pad(parts == _PART[kind], 1)
        beside = there[2:, 1:-1] | there[:-2, 1:-1] | there[1:-1, 2:] | there[1:-1, :-2]
        np.add.at(balance, regions[beside], sign)
    return (balance > 0)[regions] & (parts == _PART["rider"])


def _bend(
    image: NDArray[np.uint8], parts: NDArray[np.uint8], objects: NDArray[np.uint16], share: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Distort a picture as a wide lens does: a barrel whose corners stay where they are."""
    height, width = parts.shape
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in (height, width))
    # Seen from the middle, a point lies where one farther in by this factor was.
    factor = (1 - share) + share * (x[None, :] ** 2 + y[:, None] ** 2) / 2
    down = ((y[:, None] * factor + 1) / 2 * (height - 1)).clip(0, height - 1)
    across = ((x[None, :] * factor + 1) / 2 * (width - 1)).clip(0, width - 1)
    top, left = (np.minimum(at.astype(np.intp), side - 2) for at, side in ((down, height), (across, width)))
    below, right = (down - top)[..., None], (across - left)[..., None]
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    bent = np.rint(upper * (1 - below) + lower * below).astype(np.uint8)
    nearest = np.rint(down).astype(np.intp), np.rint(across).astype(np.intp)
    return bent, parts[nearest], objects[nearest]


def _add_bonnet(image: NDArray[np.uint8], parts: NDArray[np.uint8], colour: Colour) -> None:
    """The car's own bonnet along the foot of the picture, as bright as the road before it allows."""
    height, width = parts.shape
    rows = np.arange(height, dtype=np.float32)[:, None] + 0.5
    across = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width * 2 - 1
    edge = height * (0.93 + 0.055 * across**2)
    bonnet = rows > edge
    light = min(1.0, float(image[height // 2 :].mean()) / 100)
    depth = np.clip((rows - edge) / (0.07 * height), 0, 1)
    sheen = 1.5 - 0.8 * depth + 0.35 * np.exp(-(((across + 0.3) / 0.25) ** 2))
    metal = np.array(colour, dtype=np.float32) * (light * sheen)[..., None]
    image[bonnet] = np.clip(metal, 0, 255).astype(np.uint8)[bonnet]
    parts[bonnet] = _PART["bonnet"]


def _add_border(image: NDArray[np.uint8], parts: NDArray[np.uint8]) -> None:
    """Dark stripes on the left and the right, and a void rim one pixel thick all around."""
    stripe = max(2, parts.shape[1] // 80)
    rim = np.ones(parts.shape, dtype=bool)
    rim[1:-1, 1:-1] = False
    for columns in (slice(stripe), slice(-stripe, None)):
        image[:, columns] //= 4
        parts[:, columns] = _PART["border"]
    parts[rim] = _PART["rim"]
