"""The numbers of a processor of the library transformers, read from its file: the processor itself is never run.

Processors resize and crop, which is the view's task here, and one of them asks a hub for a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import CheckpointError, describe_value
from .body import PixelScaling
from .folder import read_json
from .hf_families import Family

_NAMES = ("preprocessor_config.json", "processor_config.json")


def read_processor(folder: Path) -> dict[str, Any]:
    """Read the processor's file of a folder; CheckpointError if there is none."""
    for name in _NAMES:
        if (folder / name).is_file():
            found = read_json(folder / name)
            inner = found.get("image_processor")
            return inner if isinstance(inner, dict) else found
    raise CheckpointError(
        f"{folder}: holds no {_NAMES[0]}, so nobody knows its pixels' mean and deviation; save the processor that it "
        "was trained with there, with processor.save_pretrained(folder)"
    )


def pixel_scaling(folder: Path, processor: Mapping[str, Any], family: Family) -> PixelScaling:
    """Make the scaling of pixels that a processor's numbers say.

    Args:
        folder: for the error.
        processor: from `read_processor`.
        family: what holds where the file says nothing.

    Raises:
        CheckpointError: a number is missing or wrong.
    """

    def switch(name: str, default: bool) -> bool:
        value = processor.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(folder, name, value, "true or false")
        return value

    def triple(name: str) -> list[float]:
        value = processor.get(name)
        if _is_number(value):
            value = [value] * 3
        if not (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))):
            raise _wrong(folder, name, value, "three numbers")
        if name == "image_std" and not all(value):
            raise _wrong(folder, name, value, "three numbers above 0")
        return [float(one) for one in value]

    factor = 1.0
    if switch("do_rescale", True):
        given = processor.get("rescale_factor")
        given = 1 / 255 if given is None else given
        if not (_is_number(given) and given > 0):
            raise _wrong(folder, "rescale_factor", given, "a number above 0")
        factor = float(given)
    normalises = switch("do_normalize", family.normalises)
    return PixelScaling(
        triple("image_mean") if normalises else None,
        triple("image_std") if normalises else None,
        factor,
        switch("do_flip_channel_order", family.bgr),
    )


def replaced(processor: Mapping[str, Any]) -> str | None:
    """Say what of a processor's work is left to the view; None if there is nothing."""
    done = []
    if processor.get("do_resize", True) and (size := processor.get("size")):
        done.append(f"resizing to {_shown(size)}")
    if processor.get("do_center_crop"):
        done.append(f"cropping to {_shown(processor.get('crop_size'))}")
    if processor.get("do_split_image"):
        done.append("cutting into squares")
    return f"instead of its processor's {', '.join(done)} the view decides" if done else None


def _shown(size: object) -> str:
    if isinstance(size, dict):
        if {"height", "width"} <= size.keys():
            return f"{size['height']}x{size['width']}"
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in size.items() if value is not None)
    return str(size)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(folder: Path, name: str, value: object, needed: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: '{name}' of its processor is {describe_value(value)}, where {needed} are needed; correct "
        f"{_NAMES[0]}"
    )
