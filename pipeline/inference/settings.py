"""How a worker computes: device, precision, scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config.manifest import InferenceOptions, Tile
from ..runtime.device import resolve_speed
from .predictor import Predictor

_MOST_IO_THREADS = 8


@dataclass(frozen=True)
class InferenceSettings:
    """How a worker computes.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``, as the worker numbers its devices.
        precision: fp16, bf16 or fp32.
        scales: inference scales.
        flip: whether mirrored images are averaged in.
        tile: tiles for images that do not fit into the device's memory otherwise; None to give them up.
        threads: of the CPU, None to leave them as they are.
        cuda_graphs: whether each image size is captured once and replayed.
        compile: mode of torch.compile, or ``off``.
    """

    device: str
    precision: str
    scales: tuple[float, ...]
    flip: bool
    tile: Tile | None = None
    threads: int | None = None
    cuda_graphs: bool = False
    compile: str = "off"

    @classmethod
    def of(
        cls, inference: InferenceOptions, device: torch.device, precision: str, threads: int | None
    ) -> InferenceSettings:
        """The manifest's way to look at images, on a device that is known to be there."""
        name = device.type if device.index is None else str(device)
        cuda_graphs, compile, _ = resolve_speed(inference.cuda_graphs, inference.compile, device)
        return cls(name, precision, inference.scales, inference.flip, inference.tile, threads, cuda_graphs, compile)

    def predictor(self) -> Predictor:
        """A device set up like this, without a network yet."""
        return Predictor(
            torch.device(self.device),
            self.precision,
            self.scales,
            self.flip,
            self.tile,
            cuda_graphs=self.cuda_graphs,
            compile=self.compile,
        )

    @property
    def hands(self) -> int:
        """Threads that decode, and as many that write: beside a GPU all cores of the worker, beside a CPU two."""
        if torch.device(self.device).type == "cpu":
            return 2
        return max(2, min(_MOST_IO_THREADS, torch.get_num_threads() // 2))
