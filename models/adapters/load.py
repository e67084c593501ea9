"""Builds the network that settings name, with all checks of its files."""

from __future__ import annotations

from ...errors import HmsaError, ManifestError
from ..registry import CODE
from . import hf_network, smp_network, timm_linear
from .body import Body
from .class_table import class_table
from .graphs import exported, onnx_network, torchscript
from .network import MemberNetwork
from .settings import AdapterSettings

_WHY = {
    "torchscript": "is code that runs when it is loaded",
    "exported": "is code with pickles, which torch.export says never to load from others",
}


def load_member(settings: AdapterSettings) -> MemberNetwork:
    """Read a network and make it a member, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: its files cannot be used.
        ManifestError: its library is not installed, or view or classes do not fit it.
    """
    body = _body(settings)
    table = class_table(str(settings.path), body.channels, body.labels, settings.classes, settings.names)
    try:
        network = MemberNetwork(body, table, settings.view)
    except HmsaError as error:
        raise ManifestError(f"{settings.path}: {error}") from error
    return network.eval()


def _body(settings: AdapterSettings) -> Body:
    if settings.arch in CODE:
        if not settings.trusted:
            raise ManifestError(
                f"{settings.path}: arch: {settings.arch} {_WHY[settings.arch]}; if you trust whoever made it, add "
                "--trust, else save the network as ONNX"
            )
        return (torchscript if settings.arch == "torchscript" else exported).load(settings)
    if settings.arch == "timm_linear":
        return timm_linear.load(settings)
    if settings.arch == "onnx":
        return onnx_network.load(settings)
    if settings.arch == "smp":
        return smp_network.load(settings.path, settings.mean, settings.std)
    return hf_network.load(settings.path, settings.as_library)
