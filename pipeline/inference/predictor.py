"""Settings of inference, and the predictor: runs a network on an image, with less memory if it has to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...datasets.decode.tensors import normalise
from ...errors import first_few
from ...models.adapters.network import MemberNetwork, weighted_mean
from ...models.hmsa import OCRNet, scale_images
from ...models.hrnet import resize
from ...models.plain import PlainNetwork
from ...models.precision import demand_range
from ...models.prepare_inference import compile_regions, prepare_for_inference, without_compile
from ...models.registry import ADAPTERS
from ...models.sampling import dropout_pass
from ...models.windows import window_starts, window_weights
from ..config.member import Member
from ..config.member_inference import InferenceOptions, Sample, Tile
from ..runtime.device import AUTOCAST, first_line, is_out_of_memory, resolve_precision
from .cuda_graphs import GraphForward, release_graphs
from .member_network import load_network, network_classes

SCALE_BY_SCALE = "scale by scale"
IN_TILES = "in tiles"
WITHOUT_COMPILE = "without compile"
_MAX_IO_THREADS = 8


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of a worker's inference.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``, as the worker numbers its devices.
        options: the manifest's options as they are really used, see `usable_options`.
        threads: CPU threads to compute with; None to leave them as they are.
        classes: of the manifest, C many.
    """

    device: str
    options: InferenceOptions
    threads: int | None = None
    classes: ClassSet = CITYSCAPES19

    @property
    def io_threads(self) -> int:
        """Number of threads that decode, and of those that write: beside a GPU half the cores each, else two."""
        if torch.device(self.device).type == "cpu":
            return 2
        return max(2, min(_MAX_IO_THREADS, torch.get_num_threads() // 2))


def usable_options(options: InferenceOptions, device: torch.device) -> tuple[InferenceOptions, list[str]]:
    """Return the options as ``device`` can use them, and a line for the user for each that it cannot.

    Raises:
        ManifestError: the GPU cannot compute in bf16.
    """
    precision, note = resolve_precision(options.precision, device)
    used: dict[str, object] = {"precision": precision}
    notes = [note] if note else []
    if device.type == "cpu":
        if options.cuda_graphs:
            notes.append("cuda_graphs: only GPUs have them, so it is left out")
        if options.compile != "off":
            notes.append(
                f"compile: on a CPU nothing is compiled, {options.compile} is left out (and written down as off)"
            )
        used |= {"cuda_graphs": False, "compile": "off"}
    return options.model_copy(update=used), notes


def usable_members(
    members: Sequence[Member], options: InferenceOptions, device: torch.device
) -> tuple[list[Member], list[str]]:
    """Return members whose own options are as ``device`` can use them, and lines for the user, each once.

    Args:
        members: those whose networks run.
        options: the manifest's.
        device: they run on.

    Raises:
        ManifestError: the GPU cannot compute in bf16.
    """
    usable, lines = [], dict.fromkeys(usable_options(options, device)[1])
    if all(member.inference is not None for member in members):
        lines.clear()
    without = [member.name for member in members if member.arch in ADAPTERS]
    if options.cuda_graphs and device.type == "cuda" and without:
        names = first_few(without, len(without))
        lines[f"cuda_graphs: networks of other libraries run without them ({names})"] = None
    for member in members:
        if member.inference is not None:
            used, notes = usable_options(member.options(options), device)
            lines |= dict.fromkeys(notes)
            own = member.inference.model_copy(
                update={"scales": used.scales, "flip": used.flip, "precision": used.precision}
            )
            member = member.model_copy(update={"inference": own})
        usable.append(member)
    return usable, list(lines)


class Predictor:
    """A member's network on a device.

    Args:
        device: it runs on.
        options: the manifest's, as `usable_options` returns them.
        member: as `usable_members` returns it.
        model: its network, prepared and on the device, if another member of the same network has loaded it.
        classes: of the manifest, C many.

    Raises:
        CheckpointError: its checkpoint does not fit the network, or has weights beyond the precision's range.
    """

    def __init__(
        self,
        device: torch.device,
        options: InferenceOptions,
        member: Member,
        model: OCRNet | PlainNetwork | None = None,
        classes: ClassSet = CITYSCAPES19,
    ) -> None:
        options, self._sample = member.options(options), member.sample or Sample()
        self._device, self._options, self.member = device, options, member
        self._dtype = AUTOCAST.get(options.precision, torch.float32)
        self._notes: list[str] = []
        self._others: list[tuple[Tensor, int]] = []
        # Nobody knows whether another library's network waits for the device, which no graph may.
        graphs = options.cuda_graphs and member.arch not in ADAPTERS
        self._graphs = GraphForward(self._at_once, self._note) if graphs else None
        # Otherwise a GPU computes "fp32" in TF32, with the mantissa of fp16. And the same bytes need the same one of
        # several equal algorithms.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self.is_compiled = options.compile != "off"
        if options.cuda_graphs or self.is_compiled:
            # Graphs and compiled parts refer to the last network, and it to them: free its memory now.
            gc.collect()
        if model is None:
            model = prepare_for_inference(load_network(member, classes).to(device), AUTOCAST.get(options.precision))
            demand_range(member.checkpoint_path(), model, self._dtype)
        self.model = model
        self._table = None if member.arch in ADAPTERS else network_classes(member, classes)[1]
        if self.is_compiled:
            compile_regions(self.model, options.compile)

    @property
    def weight_bytes(self) -> int:
        """Size in bytes of the weights."""
        return sum(weight.nbytes for weight in self.model.parameters())

    def move_to(self, device: torch.device) -> None:
        """Move the network to another device, to free memory; it computes only on its own."""
        self.model.to(device)
        self._forget_graphs()

    def take_notes(self) -> list[str]:
        """Return the lines for the user since the last call, about what is not done as planned."""
        taken, self._notes = self._notes, []
        return taken

    def take_other(self) -> Tensor | None:
        """Return of the last image the probability of all classes that are not among ours, see `MemberNetwork`."""
        return weighted_mean(self._others)

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> tuple[Tensor, str | None]:
        """Compute logits (C, H, W) float16 of an image (3, H, W) uint8 on any device, and say how; None for at once.

        If the memory is too small, the image is tried again with every scale and mirrored image moved off the device
        before the next, then, if there are tiles, in tiles. The logits are on the device or on the CPU.

        Raises:
            MemoryError, torch.OutOfMemoryError: it does not fit in any of these ways.
        """
        logits, how = self._compute_within_memory(image)
        if self._options.compile != "off" and not self.is_compiled:
            how = f"{how}, {WITHOUT_COMPILE}" if how else WITHOUT_COMPILE
        return logits, how

    def _compute_within_memory(self, image: Tensor) -> tuple[Tensor, str | None]:
        if (logits := self._try(image, None)) is not None:
            return logits, None
        # Graphs of other sizes and networks may hold the memory that this image needs.
        if release_graphs() and (logits := self._try(image, None)) is not None:
            return logits, None
        cpu = torch.device("cpu")
        if self._options.tile is None:
            self._others.clear()
            return self.compute(image, cpu).to(torch.float16), SCALE_BY_SCALE
        if (logits := self._try(image, cpu)) is not None:
            return logits, SCALE_BY_SCALE
        self._others.clear()
        logits = compute_in_tiles(lambda part: self.compute(part, cpu), image, self._options.tile)
        return logits.to(torch.float16), IN_TILES

    def _try(self, image: Tensor, gather: torch.device | None) -> Tensor | None:
        """Return logits (C, H, W) float16; None if the memory is too small for them."""
        self._others.clear()
        try:
            # Rounded here, because that takes memory, too.
            return self.compute(image, gather).to(torch.float16)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only now is the traceback gone, which holds the tensors of the failed try.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def compute(self, image: Tensor, gather: torch.device | None) -> Tensor:
        """Compute logits (C, H, W), float16 or float32, of an image (3, H, W) uint8 in one piece.

        With ``gather``, each scale's logits are moved to that device before the next scale.

        Raises:
            MemoryError, torch.OutOfMemoryError: it does not fit into the memory.
        """
        pixels = normalise(image[None].to(self._device, non_blocking=True))
        pixels = pixels.to(self._dtype, memory_format=torch.channels_last)
        return self._as_classes(self._run(image, pixels, gather))

    def _run(self, image: Tensor, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if self._sample.dropout is not None:
            with dropout_pass(self.model, image, self._sample.dropout):
                return self._pass(pixels, gather)
        try:
            return self._pass(pixels, gather)
        except Exception as error:
            if not self.is_compiled or is_out_of_memory(error):
                raise
            self._stop_compiling(error)
        return self._pass(pixels, gather)

    def _as_classes(self, logits: Tensor) -> Tensor:
        """Map the logits (K, H, W) of a network of other classes to the manifest's, (C, H, W)."""
        if self._table is None:
            return logits
        rounded = logits.to(torch.float16)[None]  # as they are in one piece, so that every way gives the same bits
        if (share := self._table.other_share(rounded, "logits")) is not None:
            self._others.append((share.mean(), rounded.shape[-2] * rounded.shape[-1]))
        return self._table.apply(rounded)[0]

    def _pass(self, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if gather is None:
            return (self._graphs or self._at_once)(pixels)
        return self.predict_scales(pixels, gather)

    def _at_once(self, pixels: Tensor) -> Tensor:
        # Rounded here, because a graph keeps its output.
        return self.predict_scales(pixels, None).to(torch.float16)

    def predict_scales(self, pixels: Tensor, gather: torch.device | None) -> Tensor:
        """Run the network at all scales on normalised pixels (1, 3, H, W); logits (C, H, W), see `compute`."""
        size, sample = pixels.shape[-2:], self._sample
        seen = scale_images(pixels, sample.scale)
        if sample.flip:
            seen = seen.flip(-1)
        logits = self.model.predict(seen, self._options.scales, flip=self._options.flip, gather=gather)
        if isinstance(self.model, MemberNetwork) and self.model.other is not None:
            self._others.append((self.model.other, size[0] * size[1]))
        return resize(logits.flip(-1) if sample.flip else logits, size)[0]

    def _stop_compiling(self, error: Exception) -> None:
        without_compile(self.model)
        self.is_compiled = False
        self._forget_graphs()
        self._note(
            f"compile: failed ({type(error).__name__}: {first_line(error)}); images are made without it, run.json "
            "lists them"
        )


def compute_in_tiles(compute: Callable[[Tensor], Tensor], image: Tensor, tile: Tile) -> Tensor:
    """Compute the logits (C, H, W) float32 of an image tile by tile, averaged where tiles overlap.

    Args:
        compute: a part of the image to its logits, on the CPU.
        image: (3, H, W) uint8, on any device.
        tile: size and overlap of the tiles.
    """
    height, width = image.shape[1:]
    total: Tensor | None = None
    weights = torch.zeros(height, width)
    for y, x in tile_corners(height, width, tile):
        part = image[:, y : y + tile.size[0], x : x + tile.size[1]]
        rows, columns = slice(y, y + part.shape[1]), slice(x, x + part.shape[2])
        weight = tile_weights(part.shape[1], part.shape[2], tile.overlap)
        found = compute(part).float()
        if total is None:
            total = torch.zeros(len(found), height, width)
        total[:, rows, columns] += weight * found
        weights[rows, columns] += weight
    assert total is not None
    return total / weights


def tile_corners(height: int, width: int, tile: Tile) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners (y, x) of tiles that cover an image and overlap by the overlap at least.

    Args:
        height, width: of the image, in pixels.
        tile: size and overlap of the tiles.
    """
    for y in window_starts(height, tile.size[0], tile.overlap):
        for x in window_starts(width, tile.size[1], tile.overlap):
            yield y, x


def tile_weights(height: int, width: int, overlap: int) -> Tensor:
    """Return a tile's weight (height, width) float32 at its pixels, which rises from the edges over the overlap to 1.

    Args:
        height, width, overlap: of the tile, in pixels.
    """
    return window_weights((height, width), (overlap, overlap))
