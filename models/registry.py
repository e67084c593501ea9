"""Architectures by name: ours, and those that installed packages bring as entry points.

Importing this file does not import torch: the command line does it at start.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ..errors import ManifestError, nearest

if TYPE_CHECKING:
    from .hmsa import OCRNet
    from .plain import PlainNetwork

GROUP = "hmsa_pipeline.models"
"""Group of the entry points, each of which names a `PlainNetwork`."""


SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hrnet_ocr_mscale": ({}, {}),
    "hrnet_ocr": ({}, {}),
    "hrnet_tiny_ocr_mscale": (
        {"width": 8, "stem_channels": 16, "blocks": 1, "modules": (1, 1, 1)},
        {"mid_channels": 64, "key_channels": 32, "attention_channels": 32},
    ),
}
"""Architecture -> how its trunk and its head differ from HRNet-W48 and OCR as published (72 million parameters with
scale attention, ``mscale``); the tiny one is for tests and the demo, milliseconds on a CPU."""

ARCHITECTURES: tuple[str, ...] = tuple(SIZES)
"""Ours, which can be trained."""

CODE: tuple[str, ...] = ("torchscript", "exported")
"""Networks whose files are code, or hold pickles; they are loaded only for those who trust them."""

GRAPHS: tuple[str, ...] = ("onnx", *CODE)
"""Networks of other libraries that are saved as graphs, which do not say how pixels are scaled."""

ADAPTERS: tuple[str, ...] = ("transformers", "smp", "timm_linear", *GRAPHS)
"""Networks of other libraries, read from files that name the network; see `adapters`."""


CLASS_TABLES: tuple[str, ...] = ("mapillary65", "ade20k150", "cocostuff171", "cocostuff182")
"""Tables from other datasets' classes to ours that come with the package, see `adapters.class_table`."""


@functools.cache
def _outside() -> dict[str, EntryPoint]:
    """Entry points of other packages, by name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in (*ARCHITECTURES, *ADAPTERS) or point.name in found:
            raise ManifestError(f"{_origin(point)}: there is an architecture of this name already; rename it there")
        found[point.name] = point
    return found


def _origin(point: EntryPoint) -> str:
    package = f" of package {point.dist.name}" if point.dist else ""
    return f"architecture '{point.name}' ({point.value}{package})"


class _Known(Collection[str]):
    """All names; installed packages are asked when somebody looks."""

    def __contains__(self, name: object) -> bool:
        return name in ARCHITECTURES or name in ADAPTERS or name in _outside()

    def __iter__(self) -> Iterator[str]:
        return iter((*ARCHITECTURES, *ADAPTERS, *_outside()))

    def __len__(self) -> int:
        return len(ARCHITECTURES) + len(ADAPTERS) + len(_outside())


KNOWN: Collection[str] = _Known()
"""Architectures that a manifest can name."""


def build(arch: str, num_classes: int = 19) -> OCRNet:
    """A fresh network of this package with random weights, in evaluation mode.

    Under ``torch.device("meta")`` it takes no memory, which is enough to ask for keys and shapes.

    Raises:
        ManifestError: ``arch`` is not one of `ARCHITECTURES`.
    """
    if arch not in ARCHITECTURES:
        raise ManifestError(f"there is no architecture '{arch}': {nearest(arch, ARCHITECTURES)}")
    from .hmsa import HMSA, OCRNet
    from .hrnet import HRNet

    trunk, head = SIZES[arch]
    network = OCRNet if arch == "hrnet_ocr" else HMSA
    return network(HRNet(**trunk), num_classes, **head).eval()


def build_any(arch: str, num_classes: int = 19) -> OCRNet | PlainNetwork:
    """Build as `build` does, or from an installed package.

    Raises:
        ManifestError: ``arch`` is not one of `KNOWN`, or what the package names is no `PlainNetwork`, or cannot be
            made.
    """
    if arch in ARCHITECTURES:
        return build(arch, num_classes)
    from .plain import PlainNetwork

    point = _outside().get(arch)
    if point is None:
        raise ManifestError(f"there is no architecture '{arch}': {nearest(arch, KNOWN)}")
    try:
        network = point.load()(num_classes)
    except Exception as error:  # of somebody else's code
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ManifestError(f"{_origin(point)}: cannot be made ({reason}); fix it there, or remove it") from error
    if not isinstance(network, PlainNetwork):
        raise ManifestError(f"{_origin(point)}: makes no PlainNetwork, but {type(network).__name__}; fix it there")
    return network.eval()
