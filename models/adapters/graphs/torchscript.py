"""Networks that torch.jit saved: code, run only for those who trust it. PyTorch calls the format deprecated."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ....errors import CheckpointError, reason
from ...checkpoint import demand_numbers
from ..settings import AdapterSettings
from .graph_body import GraphBody, demand_file, only_map

_TRAINING = {"aten::dropout": 2, "aten::batch_norm": 5}
"""Operation -> place of the input that says whether it is in training mode."""


class TorchScriptNetwork(GraphBody):
    """A network in TorchScript; made by `load`.

    Args:
        settings: of the member.
        network: the loaded module, in evaluation mode.
    """

    def __init__(self, settings: AdapterSettings, network: Any) -> None:
        super().__init__(settings, None)
        self.network = network

    def run(self, scaled: Tensor) -> Tensor:
        """Compute the output (1, K, h, w), as `GraphBody.run` says."""
        # What is optimised after the first images would give other last digits than they have.
        with warnings.catch_warnings(), torch.jit.optimized_execution(False):  # type: ignore[reportPrivateImportUsage]
            warnings.simplefilter("ignore")
            return only_map(self._path, self.network(scaled))

    def details(self) -> dict[str, Any]:
        return {"network": "TorchScript"}


def load(settings: AdapterSettings) -> TorchScriptNetwork:
    """Read a file that torch.jit.save wrote, and try the network in it, on the CPU; it runs code of the file.

    Raises:
        CheckpointError: there is no such file, or it holds no network for classes of pixels.
        ManifestError: the manifest does not say what the file leaves out.
    """
    path = settings.path
    demand_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = torch.jit.load(str(path), map_location="cpu").eval()
        except Exception as error:  # of others' code
            raise CheckpointError(
                f"{path}: is truncated, damaged or no TorchScript ({reason(error)[:200]}); save it again with "
                "torch.jit.save"
            ) from error
    demand_numbers(path, {key: value for key, value in network.state_dict().items() if value.is_floating_point()})
    _demand_evaluation(settings, network)
    body = TorchScriptNetwork(settings, network)
    body.find_out(settings)
    return body


def _demand_evaluation(settings: AdapterSettings, network: Any) -> None:
    """Raise CheckpointError if a trace has taken down training mode, which ``eval()`` does not change."""
    graph = getattr(network, "inlined_graph", None)
    for name, place in _TRAINING.items():
        for node in graph.findAllNodes(name, recurse=True) if graph is not None else ():
            if list(node.inputs())[place].toIValue() is True:
                raise CheckpointError(
                    f"{settings.path}: was traced in training mode ({name}); call eval() before tracing it"
                )
