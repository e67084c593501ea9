"""A device with a network on it, which makes an image's logits even where its memory is short."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.decode.tensors import normalise
from ...models.checkpoint import load_weights
from ...models.precision import demand_range
from ...models.prepare_inference import compile_regions, prepare_for_inference, without_compile
from ...models.registry import build_any
from ..config.manifest import InferenceOptions, Member, Tile
from ..runtime.device import AUTOCAST, is_out_of_memory, reason, resolve_speed
from .cuda_graphs import GraphForward, release_graphs

SCALE_BY_SCALE = "scale by scale"
IN_TILES = "in tiles"
WITHOUT_COMPILE = "without compile"


class Predictor:
    """A device with at most one network on it, kept from job to job.

    Args:
        device: where the network runs.
        precision: fp16, bf16 or fp32.
        scales: inference scales.
        flip: whether the mirrored image is averaged in.
        tile: tiles for an image that does not fit into the device's memory otherwise; None to give it up.
        cuda_graphs: whether images are computed by `GraphForward`.
        compile: mode of torch.compile, or ``off``.
    """

    def __init__(
        self,
        device: torch.device,
        precision: str,
        scales: tuple[float, ...],
        flip: bool,
        tile: Tile | None = None,
        *,
        cuda_graphs: bool = False,
        compile: str = "off",
    ) -> None:
        self._device, self._precision = device, precision
        self._scales, self._flip, self._tile = scales, flip, tile
        self._compile, self._compiled = compile, False
        self._member: Member | None = None
        self._model: nn.Module | None = None
        self._notes: list[str] = []
        self._graphs = GraphForward(self._at_once, self._note) if cuda_graphs else None
        # On a GPU "fp32" would else be computed in TF32, with the mantissa of fp16; and of several equal
        # algorithms always the same one gives the same bytes.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True

    @property
    def bytes(self) -> int:
        """Of the network's weights; 0 without one."""
        return sum(weight.nbytes for weight in self._model.parameters()) if self._model is not None else 0

    def put(self, device: torch.device) -> None:
        """Move the network, for others to use its place; it computes only where it was loaded."""
        if self._model is not None:
            self._model.to(device)
            self._forget_graphs()

    def take_notes(self) -> list[str]:
        """Lines for the user since the last time: what could not be done as planned, and is done otherwise."""
        taken, self._notes = self._notes, []
        return taken

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def load(self, member: Member) -> None:
        """Put the network of ``member`` on the device.

        Raises:
            CheckpointError: its checkpoint does not fit the network, or its weights not the precision.
        """
        if self._member == member:
            return
        self._model = self._member = None
        self._forget_graphs()
        if self._graphs is not None or self._compile != "off":
            # Graphs and compiled parts hold the network that holds them: its memory is wanted now.
            gc.collect()
        model = build_any(member.arch)
        load_weights(model, member.checkpoint_path(), member.arch)
        prepared = prepare_for_inference(model.to(self._device), AUTOCAST.get(self._precision))
        demand_range(member.checkpoint_path(), prepared, AUTOCAST.get(self._precision, torch.float32))
        self._model, self._member = prepared, member
        self._compiled = self._compile != "off"
        if self._compiled:
            compile_regions(prepared, self._compile)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[Tensor, str | None]:
        """Logits (19, H, W) float16 of an image (3, H, W) uint8.

        An image for which the memory is too small is tried again with every scale and mirror image taken off
        the device before the next, then, if there are tiles, in tiles.

        Returns:
            the logits, on the device or on the CPU; and how they were made, None for all at once.

        Raises:
            MemoryError, torch.OutOfMemoryError: it does not fit in any of these ways.
        """
        logits, how = self._somehow(image)
        if self._compile != "off" and not self._compiled:
            how = f"{how}, {WITHOUT_COMPILE}" if how else WITHOUT_COMPILE
        return logits, how

    def _somehow(self, image: Tensor) -> tuple[Tensor, str | None]:
        if (logits := self._try(image, None)) is not None:
            return logits, None
        # Other sizes' graphs, and other networks', may have what this image needs.
        if release_graphs() and (logits := self._try(image, None)) is not None:
            return logits, None
        cpu = torch.device("cpu")
        if self._tile is None:
            return self._whole(image, cpu).to(torch.float16), SCALE_BY_SCALE
        if (logits := self._try(image, cpu)) is not None:
            return logits, SCALE_BY_SCALE
        return self._in_tiles(image, self._tile).to(torch.float16), IN_TILES

    def _try(self, image: Tensor, gather: torch.device | None) -> Tensor | None:
        """Logits (19, H, W) float16; None if the memory is too small for them."""
        try:
            # Rounded in here, because that takes memory too.
            return self._whole(image, gather).to(torch.float16)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here is the traceback gone, which holds the tensors of the failure.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _whole(self, image: Tensor, gather: torch.device | None) -> Tensor:
        dtype = AUTOCAST.get(self._precision, torch.float32)
        pixels = normalise(image[None].to(self._device, non_blocking=True)).to(
            dtype, memory_format=torch.channels_last
        )
        try:
            return self._pass(pixels, gather)
        except Exception as error:
            if not self._compiled or is_out_of_memory(error):
                raise
            self._stop_compiling(error)
        return self._pass(pixels, gather)

    def _pass(self, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if gather is None:
            return (self._graphs or self._at_once)(pixels)
        return self._predict(pixels, gather)

    def _at_once(self, pixels: Tensor) -> Tensor:
        # Rounded in here, because a graph keeps what comes out.
        return self._predict(pixels, None).to(torch.float16)

    def _predict(self, pixels: Tensor, gather: torch.device | None) -> Tensor:
        model: Any = self._model
        return model.predict(pixels, self._scales, flip=self._flip, gather=gather)[0]

    def _stop_compiling(self, error: Exception) -> None:
        assert self._model is not None
        without_compile(self._model)
        self._compiled = False
        self._forget_graphs()
        self._note(
            f"compile: failed ({type(error).__name__}: {reason(error)}); images are made without it, run.json lists "
            "them"
        )

    def _in_tiles(self, image: Tensor, tile: Tile) -> Tensor:
        height, width = image.shape[1:]
        total = weights = torch.zeros(())
        for y, x in tile_corners(height, width, tile):
            part = image[:, y : y + tile.size[0], x : x + tile.size[1]]
            logits = self._whole(part, torch.device("cpu")).float()
            weight = tile_weights(part.shape[1], part.shape[2], tile.overlap)
            if not total.ndim:
                total, weights = torch.zeros(len(logits), height, width), torch.zeros(height, width)
            total[:, y : y + part.shape[1], x : x + part.shape[2]] += weight * logits
            weights[y : y + part.shape[1], x : x + part.shape[2]] += weight
        return total / weights


def tile_corners(height: int, width: int, tile: Tile) -> Iterator[tuple[int, int]]:
    """Upper left corners of the tiles that cover an image, neighbours sharing the overlap at least."""
    for y in _starts(height, tile.size[0], tile.overlap):
        for x in _starts(width, tile.size[1], tile.overlap):
            yield y, x


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    if side <= tile:
        return [0]
    count = -(-(side - overlap) // (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def tile_weights(height: int, width: int, overlap: int) -> Tensor:
    """How much a tile counts at each of its pixels: (height, width) float32, rising over the overlap to 1."""
    sides = []
    for side in (height, width):
        near = torch.minimum(torch.arange(side), torch.arange(side).flip(0)) + 1
        sides.append((near / (overlap + 1)).clamp(max=1.0))
    return sides[0][:, None] * sides[1]


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
