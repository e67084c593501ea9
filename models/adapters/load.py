"""Builds the network that settings name, with all checks of its files."""

from __future__ import annotations

from ...errors import HmsaError, ManifestError
from . import hf_network, smp_network, timm_linear
from .body import Body
from .class_table import class_table
from .graphs import onnx_network
from .network import MemberNetwork
from .settings import AdapterSettings


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
    if settings.arch == "timm_linear":
        return timm_linear.load(settings)
    if settings.arch == "onnx":
        return onnx_network.load(settings)
    if settings.arch == "smp":
        return smp_network.load(settings.path, settings.mean, settings.std)
    return hf_network.load(settings.path, settings.as_library)
