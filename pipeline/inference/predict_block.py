"""Block of a prediction: images through all networks, fused on the device.

The networks stay on the device together if they take little of its memory. Otherwise each network in turn does a few
images, whose logits wait in the CPU's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...datasets.taxonomy import NUM_CLASSES
from ...errors import StoreError
from ..config.manifest import FusionFunctions, Member
from ..fusion.fuse import Fused, quantise
from ..fusion.member_stores import fuse_members
from ..fusion.prediction_folder import without_prediction, write_prediction
from ..store.image_table import ImageEntry
from ..store.shard_writer import ShardWriter
from .image_block import ComputedImage, ImageBlock, too_large
from .predictor import InferenceSettings, Predictor
from .store_writes import RESERVE_BYTES, require_checkpoint, require_disk_space, require_lock, write_shard
from .transfer import HostCopy

TURN_IMAGES = 8
_TURN_BYTES = 4 * 2**30
_SHARE = 0.25
"""Share of a GPU's free memory that the networks together may take; the rest is for what they compute."""


@dataclass(frozen=True)
class LogitsTarget:
    """Store of a member's logits, which are kept beside the prediction.

    Attributes:
        writer: writes into the store, whose arrays exist.
        token: token of the run's lock on the store.
        entries: the block's images as the store lists them.
    """

    writer: ShardWriter
    token: str
    entries: Mapping[str, ImageEntry]


@dataclass(frozen=True)
class BlockMember:
    """A member of the ensemble, the sha256 of its checkpoint, and the store of its logits if they are kept."""

    member: Member
    digest: str | None
    logits_target: LogitsTarget | None = None


class Networks:
    """The members' networks on one device.

    Args:
        settings: settings of every network.
        members: the members.

    Attributes:
        are_together: all networks are on the device at the same time.

    Raises:
        CheckpointError: a checkpoint is not the file that the run began with, or does not fit its network.
    """

    def __init__(self, settings: InferenceSettings, members: Sequence[BlockMember]) -> None:
        self._device = torch.device(settings.device)
        self._predictors: dict[str, Predictor] = {}
        self.are_together = True
        self._on_device: str | None = None
        free = free_gpu_memory(self._device)
        for one in members:
            require_checkpoint(one.member, one.digest)
            predictor = self._predictors[one.member.name] = settings.make_predictor()
            predictor.load(one.member)
            taken = sum(predictor.weight_bytes for predictor in self._predictors.values())
            self.are_together = self.are_together and (free is None or taken <= _SHARE * free)
            if not self.are_together:
                self._clear_device()

    def _clear_device(self) -> None:
        for predictor in self._predictors.values():
            predictor.move_to(torch.device("cpu"))
        self._on_device = None

    def take_notes(self) -> list[str]:
        """Return the networks' new lines for the user, each line once."""
        return list(dict.fromkeys(line for one in self._predictors.values() for line in one.take_notes()))

    def __getitem__(self, name: str) -> Predictor:
        """Return the network of the member called ``name``, moved to the device if it is not there."""
        if not self.are_together and self._on_device != name:
            self._clear_device()
            self._predictors[name].move_to(self._device)
            self._on_device = name
        return self._predictors[name]


def free_gpu_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU; None for a CPU, whose memory is not divided up."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class LoadedNetworks:
    """The networks that this process used last."""

    key: tuple[InferenceSettings, tuple[tuple[Member, str | None], ...]] | None = None
    networks: Networks | None = None


def _load_networks(settings: InferenceSettings, members: Sequence[BlockMember]) -> Networks:
    key = settings, tuple((one.member, one.digest) for one in members)
    if LoadedNetworks.key != key or LoadedNetworks.networks is None:
        LoadedNetworks.key = LoadedNetworks.networks = None  # before the next ones need the memory
        LoadedNetworks.networks, LoadedNetworks.key = Networks(settings, members), key
    return LoadedNetworks.networks


@dataclass(frozen=True)
class PredictBlock(ImageBlock):
    """Some images of one dataset.

    Attributes:
        folder: folder of the predictions.
        token: token of the run's lock on the folder.
        members: the members; of those of weight 0 only the logits are kept.
        functions: functions of the label and of the confidence.
        root, entries, settings, exif: see `ImageBlock`.
    """

    folder: Path
    token: str
    root: Path
    members: tuple[BlockMember, ...]
    functions: FusionFunctions
    entries: tuple[ImageEntry, ...]
    settings: InferenceSettings
    exif: bool = False

    @property
    def target(self) -> Path:
        return self.folder

    @property
    def model_names(self) -> str:
        return ", ".join(one.member.name for one in self.members)

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        missing = self._missing_outputs(entries)
        return [entry for entry in entries if missing[entry.path]]

    def _missing_outputs(self, entries: Sequence[ImageEntry]) -> dict[str, set[str | None]]:
        """Return path -> members whose logits are to be kept and are missing; None stands for the prediction."""
        paths = [entry.path for entry in entries]
        missing: dict[str, set[str | None]] = {path: set() for path in paths}
        for path in without_prediction(self.folder, paths):
            missing[path].add(None)
        for one in self.members:
            if (target := one.logits_target) is not None:
                for entry in target.writer.incomplete([target.entries[path] for path in paths]):
                    missing[entry.path].add(one.member.name)
        return missing

    def load(self) -> int:
        if _load_networks(self.settings, self.members).are_together:
            return 1
        largest = 2 * NUM_CLASSES * max(entry.pixels for entry in self.entries)
        return max(1, min(TURN_IMAGES, _TURN_BYTES // max(1, len(self.members) * largest)))

    def take_notes(self) -> list[str]:
        return LoadedNetworks.networks.take_notes() if LoadedNetworks.networks is not None else []

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], host_copy: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        missing = self._missing_outputs([entry for entry, _ in images])
        networks = _load_networks(self.settings, self.members)
        if networks.are_together:
            for entry, image in images:
                yield entry.path, self._image_through_all(entry, image, missing[entry.path], networks, host_copy)
        else:
            yield from self._network_by_network(images, missing, networks, host_copy)

    def _image_through_all(
        self, entry: ImageEntry, image: Tensor, missing: set[str | None], networks: Networks, host_copy: HostCopy
    ) -> ComputedImage | str:
        """Run all networks on one image (3, H, W) uint8, and fuse."""
        kept: dict[str, Callable[[], Tensor]] = {}
        fallbacks: dict[str, str] = {}

        def logits(members: Sequence[BlockMember]) -> Iterator[Tensor]:
            """Yield each member's logits (C, H, W) float16, and start the copy of those that are kept."""
            for one in members:
                name = one.member.name
                found, fallback = networks[name](image)
                if fallback is not None:
                    fallbacks[name] = fallback
                if name in missing:
                    kept[name] = host_copy.start(found)
                yield found

        try:
            fused = self._fuse(logits(self._voting)) if None in missing else None
            for _ in logits([m for m in self.members if m.member.name in missing and m.member.name not in kept]):
                pass
            return self._computed(entry, fused, kept, fallbacks, host_copy)
        except (RuntimeError, MemoryError) as error:
            return too_large(entry, error)

    def _network_by_network(
        self,
        images: Sequence[tuple[ImageEntry, Tensor]],
        missing: Mapping[str, set[str | None]],
        networks: Networks,
        host_copy: HostCopy,
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        """Run each network on all images (3, H, W) uint8 before the next network, then fuse."""
        waiting: dict[str, dict[str, Callable[[], Tensor]]] = {entry.path: {} for entry, _ in images}
        fallbacks: dict[str, dict[str, str]] = {entry.path: {} for entry, _ in images}
        failed: dict[str, str] = {}
        for one in self.members:
            name = one.member.name
            for entry, image in images:
                votes = None in missing[entry.path] and bool(one.member.weight)
                if entry.path in failed or not (votes or name in missing[entry.path]):
                    continue
                try:
                    found, fallback = networks[name](image)
                    waiting[entry.path][name] = host_copy.start(found)
                except (RuntimeError, MemoryError) as error:
                    failed[entry.path] = too_large(entry, error)
                    continue
                if fallback is not None:
                    fallbacks[entry.path][name] = fallback
        device = torch.device(self.settings.device)
        for entry, _ in images:
            path = entry.path
            if path in failed:
                yield path, failed[path]
                continue
            fetches = waiting.pop(path)
            voting = (fetches[one.member.name]().to(device, non_blocking=True) for one in self._voting)
            try:
                fused = self._fuse(voting) if None in missing[path] else None
                kept = {name: fetch for name, fetch in fetches.items() if name in missing[path]}
                yield path, self._computed(entry, fused, kept, fallbacks[path], host_copy)
            except (RuntimeError, MemoryError) as error:
                yield path, too_large(entry, error)

    @property
    def _voting(self) -> list[BlockMember]:
        return [one for one in self.members if one.member.weight]

    @torch.inference_mode()
    def _fuse(self, logits: Iterator[Tensor]) -> Fused:
        return fuse_members(logits, [one.member for one in self._voting], self.functions)

    def _computed(
        self,
        entry: ImageEntry,
        fused: Fused | None,
        kept: Mapping[str, Callable[[], Tensor]],
        fallbacks: Mapping[str, str],
        host_copy: HostCopy,
    ) -> ComputedImage:
        fetches = None if fused is None else (host_copy.start(fused.label), host_copy.start(fused.confidence))
        fallback = "; ".join(f"{name} {way}" for name, way in fallbacks.items()) or None
        return ComputedImage(
            entry.pixels * (2 * NUM_CLASSES * len(kept) + 5),
            partial(self._write, entry.path, fetches, kept),
            fallback,
        )

    def _write(
        self,
        path: str,
        fetches: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None,
        kept: Mapping[str, Callable[[], Tensor]],
    ) -> None:
        """Write kept logits, then the prediction: ``ensemble`` would repeat one that is older than its logits."""
        for one in self.members:
            if one.logits_target is not None and one.member.name in kept:
                fetch, target = kept[one.member.name], one.logits_target
                write_shard(target.writer, target.token, target.entries[path], fetch, self.settings.io_threads)
        if fetches is None:
            return
        label, confidence = (fetch() for fetch in fetches)
        if not bool(confidence.isfinite().all()):
            raise StoreError(
                f"{path}: a member's logits are not finite in {self.settings.precision}; try --precision fp32"
            )
        require_disk_space(self.folder, RESERVE_BYTES)
        require_lock(self.folder, self.token)
        write_prediction(self.folder, path, label.numpy(), quantise(confidence).numpy())
