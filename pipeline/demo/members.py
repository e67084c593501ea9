"""The demo's members: small networks that come with the package, or that were trained by the demo itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from ... import __version__
from ...errors import StoreError
from ...files import sha256, write_bytes
from ..config.load_manifest import SHIPPED
from ..config.recipe import Recipe

SHIPPED_MEMBERS = SHIPPED / "demo"
RECORDS = "members.json"
_COMPARED = 16  # held-out images on which float16 weights are compared with float32 ones


class Record(TypedDict):
    """The training of a member, and its figures on held-out streets of its own dataset."""

    command: str  # that trained all seven
    version: str  # of this package
    torch: str  # version
    seed: int  # of the member's first weights, sampling and augmentation
    images_seen: int  # in training, crops of the same image counted again
    held_out: int  # images that the figures below are of
    miou: float
    iou: dict[str, float | None]  # of each class; None if neither the labels nor the predictions have it
    changed_by_float16: float  # share of held-out pixels to which the float32 weights give another class
    sha256: str  # of the file of weights


def weights_file(name: str) -> str:
    """Name of the file of a member's weights."""
    return f"{name}.safetensors"


def read_records(folder: Path) -> dict[str, Record]:
    """The records of the members in a folder, by name; empty if there are none yet."""
    try:
        return json.loads((folder / RECORDS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreError(
            f"{folder / RECORDS}: is damaged ({error}); remove it, and run the same command again"
        ) from None


def copy_shipped(names: Sequence[str], folder: Path) -> None:
    """Copy the weights that come with the package, and their records.

    Args:
        names: of the members.
        folder: takes them; what is there already and the same is left as it is.

    Raises:
        OSError: the folder cannot be written.
    """
    records = read_records(SHIPPED_MEMBERS)
    for name in names:
        target = folder / weights_file(name)
        if not target.is_file() or sha256(target) != records[name]["sha256"]:
            write_bytes(target, (SHIPPED_MEMBERS / weights_file(name)).read_bytes())
    write_bytes(folder / RECORDS, (SHIPPED_MEMBERS / RECORDS).read_bytes())


def export_member(training: Path, target: Path, recipe: Recipe, command: str) -> Record:
    """Write a trained member as float16 weights, and return its record.

    Args:
        training: output folder of its training.
        target: the file to write.
        recipe: that it was trained by.
        command: that trained it, as users type it.

    Raises:
        HmsaError: the training is not complete, or the dataset is not there.
        OSError: the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    from ...datasets.decode.tensors import decode_image, normalise
    from ...datasets.layout.image_mask_pairs import labelled_pairs
    from ...models.checkpoint import load_weights, read_state_dict
    from ...models.registry import build
    from ..training.log import HISTORY
    from ..training.plan import WEIGHTS

    weights = read_state_dict(training / WEIGHTS)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    write_bytes(target, save({key: value.contiguous() for key, value in halved.items()}))
    scored = json.loads((training / HISTORY).read_text(encoding="utf-8"))[-1]
    root, data = recipe.scored.root_path(), recipe.scored
    learnt, held_out = (labelled_pairs(root, data.type, split)[0] for split in (data.train, data.validation))
    full, half = build(recipe.arch), build(recipe.arch)
    load_weights(full, training / WEIGHTS, recipe.arch)
    load_weights(half, target, recipe.arch)
    different = []
    with torch.inference_mode():
        for pair in held_out[:_COMPARED]:
            pixels = normalise(decode_image(root / pair.image)[None])
            one, other = (network.predict(pixels, [1.0]).argmax(1) for network in (full, half))
            different.append((one != other).float().mean().item())
    return Record(
        command=command,
        version=__version__,
        torch=torch.__version__,
        seed=recipe.seed,
        images_seen=recipe.epochs * (len(learnt) // recipe.global_batch * recipe.global_batch),
        held_out=len(held_out),
        miou=scored["mean_iou"],
        iou=scored["iou"],
        changed_by_float16=sum(different) / len(different),
        sha256=sha256(target),
    )
