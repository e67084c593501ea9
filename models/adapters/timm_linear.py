"""Backbones of timm with a linear head, from files of weights alone.

DINOv2's heads: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024 (arXiv
2304.07193). A layer norm and a linear layer on DINOv2: Kerssies et al., "How to Benchmark Vision Foundation Models
for Semantic Segmentation?", CVPR workshops 2024 (arXiv 2404.12172).
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ManifestError, nearest, reason
from ..hrnet import resize
from .body import Body, PixelScaling, Sizes
from .settings import AdapterSettings
from .timm_files import LinearHead, Parts, load_trunk, read_parts

EXTRA = "arch: timm_linear needs the extra 'members'; pip install 'hmsa-pipeline[members]'"


class TimmLinear(Body):
    """A backbone of timm and a linear head in evaluation mode; made by `load`.

    Args:
        network: the backbone.
        head: takes the maps of ``layers``, one after the other.
        layers: places of the maps in the backbone, ascending.
        norm: its final normalisation is applied to each map.
    """

    kind, labels = "logits", None

    def __init__(self, network: Any, head: LinearHead, layers: tuple[int, ...], norm: bool) -> None:
        super().__init__()
        self.network, self.head, self.layers, self.norm = network, head, layers, norm
        self.channels = head.classes
        self.named: dict[str, Any] = {}

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (N, K, h, w), as `Body.forward` says."""
        maps = self.network.forward_intermediates(
            self.scaling(pixels), indices=list(self.layers), norm=self.norm, intermediates_only=True
        )
        size = maps[0].shape[-2:]
        return self.head(torch.cat([one if one.shape[-2:] == size else resize(one, size) for one in maps], dim=1))

    def details(self) -> dict[str, Any]:
        return self.named


def load(settings: AdapterSettings) -> TimmLinear:
    """Read a backbone and its head from a file, or from the files of a folder, on the CPU, in float32.

    Raises:
        CheckpointError: there is nothing, it is no such network, or weights do not fit.
        ManifestError: the library is not installed, or does not know the backbone, or ``layers`` or ``norm`` do not
            fit.
    """
    library = _library()
    name = settings.backbone or ""
    _demand_known(library, name)
    path, plain = settings.path, _built(library, name, {}, meta=True)
    parts = read_parts(path, next(key for key, value in plain.named_parameters() if value.ndim == 4))
    head = LinearHead(path, parts.head)
    has_norm = any(key.startswith("norm.") for key in parts.trunk)
    norm = has_norm if settings.norm is None else settings.norm
    if norm and not has_norm:
        raise ManifestError(f"{path}: norm: true, but no weights of the backbone's norm are there; remove it")
    options, grid = _options(path, parts.trunk, plain, settings.view.window if settings.view else None)
    network = _built(library, name, options)
    layers, channels, strides, notes = _layers(path, network, head, settings.layers)
    unpruned = set(network.state_dict())
    kept = network.prune_intermediate_layers(list(layers), prune_norm=not norm, prune_head=True)
    notes += _without_first_norm(network, parts)
    load_trunk(path, parts.trunk, network, unpruned, name)
    body = TimmLinear(network.eval(), head.eval(), tuple(kept), norm)
    body.sizes = _sizes(network, options, math.lcm(*strides), grid if head.is_layer_norm and not norm else None)
    body.scaling, said = _scaling(library, name, settings, parts)
    body.notes = (*parts.notes, *notes, *said)
    body.named = {"network": f"{name} with a linear head", "layers": list(layers), "norm": norm}
    assert sum(channels) == head.width
    return body


def _library() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return import_module("timm")
    except ImportError as error:
        raise ManifestError(f"{EXTRA} ({reason(error)})") from error


def _demand_known(library: Any, name: str) -> None:
    if ":" in name or "/" in name:
        raise ManifestError(f"backbone: {name}: names on a hub are not fetched; give a name of timm.list_models()")
    base, _, tag = name.partition(".")
    if not library.is_model(base):
        raise ManifestError(
            f"backbone: timm {library.__version__} knows no '{name}'; {_close(base, library.list_models())}"
        )
    tags = [one.partition(".")[2] for one in library.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ManifestError(
            f"backbone: timm {library.__version__} knows no tag '{tag}' of {base}; {_close(tag, tags)}"
        )


def _close(name: str, known: list[str]) -> str:
    """Suggest a name; of the hundreds there are no list is given."""
    said = nearest(name, known)
    return said if said.startswith("did") or len(known) < 12 else "see timm.list_models()"


def _built(library: Any, name: str, options: dict[str, Any], meta: bool = False) -> Any:
    with warnings.catch_warnings(), torch.device("meta" if meta else "cpu"):
        warnings.simplefilter("ignore")
        try:
            network = library.create_model(name, pretrained=False, num_classes=0, **options)
        except Exception as error:  # of another library's networks there is no end
            raise ManifestError(
                f"backbone: timm cannot build '{name}' ({type(error).__name__}: {reason(error)[:200]}); use another"
            ) from error
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
        raise ManifestError(f"backbone: '{name}' gives no maps (it has no forward_intermediates); use another")
    return network


def _options(
    path: Path, trunk: dict[str, Tensor], plain: Any, window: tuple[int, int] | None
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Find how the backbone has to be built to fit the file, and the size of images of its positions, if any."""
    taken = inspect.signature(type(plain).__init__).parameters
    options: dict[str, Any] = {"dynamic_img_size": True} if "dynamic_img_size" in taken else {}
    first = trunk.get("patch_embed.proj.weight")
    if first is None or first.ndim != 4 or "img_size" not in taken:
        return options, None
    patch = (first.shape[2], first.shape[3])
    if patch != tuple(plain.patch_embed.patch_size) and "patch_size" in taken:
        options["patch_size"] = patch[0]
    positions, own = trunk.get("pos_embed"), getattr(plain, "pos_embed", None)
    if positions is None or own is None or positions.ndim != 3:
        if not options.get("dynamic_img_size") and window is not None:
            options["img_size"] = window
        return options, None
    beside = own.shape[1] - plain.patch_embed.num_patches
    grid = _grid(path, positions.shape[1], beside, window, patch)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    return options | {"img_size": size}, size


def _grid(
    path: Path, tokens: int, beside: int, window: tuple[int, int] | None, patch: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of positions: those of a window of the manifest, or a square, which is what trainers have."""
    if window is not None:
        grid = (window[0] // patch[0], window[1] // patch[1])
        if grid[0] * grid[1] == tokens - beside:
            return grid
    # DINOv2's own files with registers have a position for the class, too.
    for extra in (beside, 1):
        side = math.isqrt(max(0, tokens - extra))
        if side and side * side == tokens - extra:
            return side, side
    raise ManifestError(
        f"{path}: positions of {tokens - beside} patches are no square; give the size it was trained with, 'view: "
        "{window: [h, w]}'"
    )


def _layers(
    path: Path, network: Any, head: LinearHead, wanted: tuple[int, ...] | None
) -> tuple[tuple[int, ...], list[int], list[int], list[str]]:
    """Find which maps the head takes, their channels and strides, and a line for the user where that was guessed."""
    info = list(network.feature_info)
    width, notes = int(info[-1]["num_chs"]), []
    if wanted is None:
        count, rest = divmod(head.width, width)
        if rest or not 0 < count <= len(info):
            raise CheckpointError(
                f"{path}: its head takes {head.width} channels, which are no multiple of the backbone's {width}; say "
                "which maps with 'layers: [...]'"
            )
        layers = tuple(range(len(info) - count, len(info)))
        if count > 1:
            notes.append(f"its head takes the last {count} layers, 'layers' gives others")
    else:
        beyond = [layer for layer in wanted if layer >= len(info)]
        if beyond:
            raise ManifestError(f"{path}: layers: there is no {beyond[0]}, the backbone has 0 to {len(info) - 1}")
        layers = tuple(wanted)
    channels = [int(info[layer]["num_chs"]) for layer in layers]
    if sum(channels) != head.width:
        raise ManifestError(
            f"{path}: layers: {list(layers)} have {sum(channels)} channels, its head takes {head.width}"
        )
    return layers, channels, [int(info[layer]["reduction"]) for layer in layers], notes


def _without_first_norm(network: Any, parts: Parts) -> list[str]:
    """Take away a norm before the first block that was off in training, too; say so."""
    before = getattr(network, "norm_pre", None)
    if before is None or not list(before.parameters()) or any(key.startswith("norm_pre.") for key in parts.trunk):
        return []
    if any(key.startswith("norm.") for key in parts.trunk):
        return []  # a key that is missing
    network.norm_pre = nn.Identity()
    return ["its files hold no 'norm_pre', which is left out"]


def _sizes(network: Any, options: dict[str, Any], multiple: int, usual: tuple[int, int] | None) -> Sizes:
    known = network.pretrained_cfg or {}
    if options.get("dynamic_img_size") or not known.get("fixed_input_size"):
        return Sizes(multiple, usual=usual)
    height, width = options.get("img_size") or known["input_size"][1:]
    return Sizes(multiple, fixed=(height, width))


def _scaling(
    library: Any, name: str, settings: AdapterSettings, parts: Parts
) -> tuple[PixelScaling, tuple[str, ...]]:
    if settings.mean is not None:
        return PixelScaling(settings.mean, settings.std), ()
    if parts.mean is not None and parts.std is not None:
        return PixelScaling(parts.mean, parts.std), ()
    known = library.models.get_pretrained_cfg(name)
    if "." in name:
        return PixelScaling(known.mean, known.std), ()
    tag = known.tag if known.tag and known.tag != "untrained" else None
    whose = f"those of the tag '{tag}'; name yours after a dot" if tag else "timm's usual ones"
    said = (
        f"its pixels' mean {list(known.mean)} and deviation {list(known.std)} are {whose}, or give 'mean' and 'std'"
    )
    return PixelScaling(known.mean, known.std), (said,)
