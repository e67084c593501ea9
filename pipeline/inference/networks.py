"""The members' networks in a worker, and how they share its device.

The networks stay on the device together if they take little of its memory. Otherwise each network in turn does a few
images, whose logits wait in the CPU's memory.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import HmsaError, reason
from ...models.hmsa import OCRNet
from ...models.plain import PlainNetwork
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..fusion.member_stores import fuse_members
from ..runtime.device import is_out_of_memory
from ..store.image_table import ImageEntry
from .member_network import same_network
from .predictor import InferenceSettings, Predictor
from .store_writes import LogitsTarget, require_checkpoint
from .transfer import HostCopy

TURN_IMAGES = 8
_TURN_BYTES = 4 * 2**30
_SHARE = 0.25
"""Share of a GPU's free memory that the networks together may take; the rest is for what they compute."""

Fetch = Callable[[], Tensor]
"""Waits for a copy from the device, and returns it."""
Missing = Mapping[str, set[str | None]]
"""Path of an image -> names of the members whose logits are missing; None stands for the prediction."""


@dataclass(frozen=True)
class BlockMember:
    """A member of the ensemble, the sha256 of its checkpoint, and the store of its logits if they are kept."""

    member: Member
    digest: str | None
    logits_target: LogitsTarget | None


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, prepared for inference, and the member that it was loaded for."""

    owner: BlockMember
    model: OCRNet | PlainNetwork

    def is_of(self, one: BlockMember) -> bool:
        """Say whether ``one`` is a member of the same network."""
        return self.owner.digest == one.digest and same_network(self.owner.member, one.member)


@dataclass(frozen=True)
class FailedImage:
    """Why an image could not be computed, and where a network raised the error, if one did."""

    reason: str
    network_error: str | None = None


class NetworkError(Exception):
    """A network raised an error of its own; ``where`` is its type and the line that raised it."""

    def __init__(self, member: str, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        super().__init__(
            f"the network of {member} raised {kind}: {reason(error)} ({Path(last.filename).name}, line {last.lineno})"
        )
        self.where = f"{kind} {last.filename}:{last.lineno}"


@dataclass
class ComputedImage:
    """Result of the networks for one image.

    Attributes:
        logits: member -> its logits (C, H, W) float16, where they are missing.
        prediction: class map (H, W) uint8 and confidence (H, W) float32, if they are missing.
        fallbacks: member -> how its logits were computed if the device's memory was too small at first.
        others: member -> share of the probability that it gave to classes that are not among ours, a scalar on any
            device, if it knows such classes.
    """

    logits: Mapping[str, Fetch]
    prediction: tuple[Fetch, Fetch] | None
    fallbacks: Mapping[str, str]
    others: Mapping[str, Tensor]


class Networks:
    """The members' networks on one device; ``are_together`` if all are there at the same time.

    Args:
        settings, members, functions: see `load_networks`.
        loaded: networks to take over instead of loading them again.

    Raises:
        CheckpointError: a checkpoint is not the file that the run began with, or does not fit its network.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        members: Sequence[BlockMember],
        functions: FusionFunctions | None,
        loaded: Sequence[LoadedNetwork] = (),
    ) -> None:
        self._device, self._functions = torch.device(settings.device), functions
        self._classes = len(settings.classes)
        self._host_copy = HostCopy(self._device)
        self._members = [one.member for one in members]
        self._voting = [member for member in self._members if member.weight]
        self._predictors: dict[str, Predictor] = {}
        self.are_together = True
        self._on_device: str | None = None
        free = free_gpu_memory(self._device)
        self.loaded = list(loaded)
        for one in members:
            shared = next((each for each in self.loaded if each.is_of(one)), None)
            if shared is None:
                require_checkpoint(one.member, one.digest)
            model = None if shared is None else shared.model.to(self._device)
            predictor = Predictor(self._device, settings.options, one.member, model, settings.classes)
            self._predictors[one.member.name] = predictor
            if shared is None and settings.options.compile == "off":  # which changes a network
                self.loaded.append(LoadedNetwork(one, predictor.model))
            by_model = {id(each.model): each.weight_bytes for each in self._predictors.values()}
            taken = sum(by_model.values())
            self.are_together = len(members) == 1 or (self.are_together and (free is None or taken <= _SHARE * free))
            if not self.are_together:
                self._clear_device()

    def _clear_device(self) -> None:
        for predictor in self._predictors.values():
            predictor.move_to(torch.device("cpu"))
        self._on_device = None

    def take_notes(self) -> list[str]:
        """Return the networks' new lines for the user, each line once."""
        return list(dict.fromkeys(line for one in self._predictors.values() for line in one.take_notes()))

    def _network(self, name: str) -> Predictor:
        """Return the network of the member called ``name``, moved to the device if it is not there."""
        if not self.are_together and self._on_device != name:
            self._clear_device()
            self._predictors[name].move_to(self._device)
            self._on_device = name
        return self._predictors[name]

    def images_at_once(self, entries: Sequence[ImageEntry]) -> int:
        """Return the number of ``entries`` that `compute` should get together."""
        if self.are_together:
            return 1
        largest = 2 * self._classes * max(entry.pixels for entry in entries)
        return max(1, min(TURN_IMAGES, _TURN_BYTES // max(1, len(self._members) * largest)))

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], missing: Missing
    ) -> Iterator[tuple[ImageEntry, ComputedImage | FailedImage]]:
        """Compute what is missing of some photographs (3, H, W) uint8; yield a result each, or why it failed."""
        if not self.are_together:
            yield from self._network_by_network(images, missing)
            return
        for entry, image in images:
            try:
                yield entry, self._image_through_all(image, missing[entry.path])
            except (RuntimeError, MemoryError, NetworkError) as error:
                yield entry, _failed(entry, error)

    def _run(self, member: Member, image: Tensor) -> tuple[Tensor, str | None]:
        """Run a network on an image; NetworkError for an error that is neither ours nor a lack of memory."""
        network = self._network(member.name)
        try:
            return network(image)
        except HmsaError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise NetworkError(member.name, error) from error

    def _image_through_all(self, image: Tensor, missing: set[str | None]) -> ComputedImage:
        kept: dict[str, Fetch] = {}
        fallbacks: dict[str, str] = {}
        others: dict[str, Tensor] = {}

        def logits(members: Sequence[Member]) -> Iterator[Tensor]:
            """Yield each member's logits (C, H, W) float16, and start the copy of those that are kept."""
            for member in members:
                found, fallback = self._run(member, image)
                if fallback is not None:
                    fallbacks[member.name] = fallback
                if (other := self._predictors[member.name].take_other()) is not None:
                    others[member.name] = other
                if member.name in missing:
                    kept[member.name] = self._host_copy.start(found)
                yield found

        prediction = self._fused(logits(self._voting)) if None in missing else None
        for _ in logits([member for member in self._members if member.name in missing - kept.keys()]):
            pass
        return ComputedImage(kept, prediction, fallbacks, others)

    def _network_by_network(
        self, images: Sequence[tuple[ImageEntry, Tensor]], missing: Missing
    ) -> Iterator[tuple[ImageEntry, ComputedImage | FailedImage]]:
        """Run each network on all images before the next network, then fuse."""
        waiting: dict[str, dict[str, Fetch]] = {entry.path: {} for entry, _ in images}
        fallbacks: dict[str, dict[str, str]] = {entry.path: {} for entry, _ in images}
        others: dict[str, dict[str, Tensor]] = {entry.path: {} for entry, _ in images}
        failed: dict[str, FailedImage] = {}
        for member in self._members:
            name = member.name
            for entry, image in images:
                votes = None in missing[entry.path] and bool(member.weight)
                if entry.path in failed or not (votes or name in missing[entry.path]):
                    continue
                try:
                    found, fallback = self._run(member, image)
                    waiting[entry.path][name] = self._host_copy.start(found)
                except (RuntimeError, MemoryError, NetworkError) as error:
                    failed[entry.path] = _failed(entry, error)
                    continue
                if fallback is not None:
                    fallbacks[entry.path][name] = fallback
                if (other := self._predictors[name].take_other()) is not None:
                    others[entry.path][name] = other
        for entry, _ in images:
            path = entry.path
            if path in failed:
                yield entry, failed[path]
                continue
            fetches = waiting.pop(path)
            voting = (fetches[member.name]().to(self._device, non_blocking=True) for member in self._voting)
            try:
                prediction = self._fused(voting) if None in missing[path] else None
                kept = {name: fetch for name, fetch in fetches.items() if name in missing[path]}
                yield entry, ComputedImage(kept, prediction, fallbacks[path], others[path])
            except (RuntimeError, MemoryError) as error:
                yield entry, _failed(entry, error)

    def _fused(self, logits: Iterator[Tensor]) -> tuple[Fetch, Fetch]:
        assert self._functions is not None
        with torch.inference_mode():
            fused = fuse_members(logits, self._voting, self._functions)
        return self._host_copy.start(fused.label), self._host_copy.start(fused.confidence)


def _failed(entry: ImageEntry, error: Exception) -> FailedImage:
    """Say why an image failed; raise ``error`` again if neither a network nor a lack of memory is its cause."""
    if isinstance(error, NetworkError):
        return FailedImage(str(error), error.where)
    if not is_out_of_memory(error):
        raise error
    return FailedImage(f"{entry.height}x{entry.width} does not fit into the device's memory")


def free_gpu_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU; None for a CPU, whose memory is not divided up."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class LoadedNetworks:
    """The networks that this process used last: blocks of one job follow one another."""

    key: tuple[object, ...] | None = None
    networks: Networks | None = None


def load_networks(
    settings: InferenceSettings, members: Sequence[BlockMember], functions: FusionFunctions | None
) -> Networks:
    """Return the members' networks, loaded unless the last block used the same.

    Args:
        settings, members: of the networks.
        functions: of the prediction; None if there is none.
    """
    key = settings, functions, *((one.member, one.digest) for one in members)
    if LoadedNetworks.key != key or LoadedNetworks.networks is None:
        before, last = LoadedNetworks.networks, LoadedNetworks.key
        kept = before.loaded if before is not None and last is not None and last[0] == settings else ()
        kept = [network for network in kept if any(network.is_of(one) for one in members)]
        LoadedNetworks.key = LoadedNetworks.networks = before = None  # before the next ones need the memory
        LoadedNetworks.networks, LoadedNetworks.key = Networks(settings, members, functions, kept), key
    return LoadedNetworks.networks
