"""Drawn photographs in the folders of the BRAVO challenge, named as its own are, and their ground truth."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..parallel import map_files
from ..taxonomy import IGNORE
from .drawn_files import encode, write_drawn
from .scene import draw_scene
from .style import style_of


class _Kind(NamedTuple):
    """One sort of photograph."""

    name: str
    """Name of its files; takes a number."""
    style: str
    size: str
    """The one asked for, one with odd sides, or a small one."""
    first: int = 1
    """Number of the first one."""
    step: int = 1
    """From one to the next."""


_KINDS = (
    *(
        _Kind(f"bravo_ACDC/{style}/test/drawn/drawn_frame_{{:06d}}_rgb_anon.png", style, "whole", number, 4)
        for number, style in enumerate(("fog", "night", "rain", "snow"), start=1)
    ),
    _Kind("bravo_SMIYC/RoadAnomaly21/images/animal{:04d}.jpg", "unmet animal", "odd"),
    _Kind("bravo_SMIYC/RoadObsticle21/images/obstacle{:04d}.jpg", "unmet obstacle", "odd"),
    _Kind("bravo_synobjs/animal/{}.png", "unmet animal", "whole"),
    _Kind("bravo_synobjs/obstacle/{}.png", "unmet obstacle", "whole"),
    _Kind("bravo_outofcontext/drawn/drawn_000000_{:06d}_leftImg8bit.png", "out of context", "whole"),
    _Kind("bravo_synflare/drawn/drawn_000000_{:06d}_leftImg8bit.png", "flare", "whole"),
    _Kind("bravo_synrain/drawn/drawn_000000_{:06d}_leftImg8bit.png", "raindrops", "small", 1, 2),
    _Kind("bravo_synrain/drawn/drawn_000000_{:06d}_leftImg8bit.png", "raindrops", "small", 2, 2),
)
# How a photograph's name ends, and those of its train ids and of its invalid pixels.
_ENDINGS = (
    ("_rgb_anon.png", "_gt_labelTrainIds.png", "_gt_invIds.png"),
    ("_leftImg8bit.png", "_gt_labelTrainIds.png", "_gt_invIds.png"),
    (".jpg", "_labels_semantic_fake.png", "_labels_semantic.png"),
    (".png", "_gt.png", "_mask.png"),
)


class _Drawn(NamedTuple):
    """A photograph, the train ids of its pixels, and which of them show what is of no class."""

    name: str
    image: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    foreign: NDArray[np.bool_]


def write_bravo(
    root: Path, *, seed: int = 0, size: tuple[int, int] = (192, 384), each: int = 1, truth: Path | None = None
) -> list[Path]:
    """Write drawn photographs over the six subsets of BRAVO; the same seed gives the same bytes.

    Args:
        root: takes the place of ``bravo_1.0/``; files there that have the same names are replaced.
        seed: of the streets, not negative.
        size: (height, width) of most of them, at least (32, 32); those of SMIYC have odd sides, those of synrain
            are smaller.
        each: how many dozens.
        truth: the tar file of train ids and of invalid pixels to write, as the challenge's own; None for none.
            What stands in the way is invalid; behind it lies, in synobjs, what it was put upon.

    Returns:
        The photographs, in the order of their names.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a negative seed, or a size that is too small.
    """
    written = []
    masks: dict[str, bytes] = {}
    wanted = [(dozen, number) for dozen in range(each) for number in range(len(_KINDS))]
    for drawn in map_files(partial(_picture, seed, size), wanted):
        write_drawn(root / drawn.name, encode(drawn.name, drawn.image))
        written.append(root / drawn.name)
        if truth is not None:
            masks |= _masks(drawn)
    if truth is not None:
        write_drawn(truth, _archive(masks))
    return sorted(written)


def _picture(seed: int, size: tuple[int, int], which: tuple[int, int]) -> _Drawn:
    """A photograph by its dozen and its kind, drawn in whatever process."""
    dozen, number = which
    kind = _KINDS[number]
    height, width = size
    sizes = {
        "whole": size,
        "odd": (int(height * 0.84) | 1, int(width * 0.785) | 1),
        "small": (height * 2 // 3, width * 2 // 3),
    }
    street = 100 * seed + number + 10**6 * dozen
    style = style_of(kind.style)
    scene = draw_scene(street, *sizes[kind.size], style)
    ids, foreign = scene.mask, np.zeros(scene.mask.shape, bool)
    if style.unknown_object != "none":
        ids = draw_scene(street, *sizes[kind.size], replace(style, unknown_object="none")).mask
        foreign = (scene.mask == IGNORE) & (ids != IGNORE)
    return _Drawn(kind.name.format(kind.first + kind.step * dozen), scene.image, ids, foreign)


def _masks(drawn: _Drawn) -> dict[str, bytes]:
    """The two files of ground truth by name."""
    ending, ids_ending, invalid_ending = next(one for one in _ENDINGS if drawn.name.endswith(one[0]))
    base = drawn.name.removesuffix(ending)
    ids, invalid = drawn.ids, drawn.foreign.astype(np.uint8)
    if base.startswith("bravo_SMIYC/"):
        ids = np.zeros_like(ids)  # nobody labelled them; 255 would be void
    if base.startswith("bravo_synobjs/"):
        invalid *= 255
    files = {base + ids_ending: ids, base + invalid_ending: invalid}
    return {name: encode(name, mask) for name, mask in files.items()}


def _archive(contents: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()
