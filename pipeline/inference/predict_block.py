"""What a worker does of a prediction: a block of images through all networks, fused on the device.

The networks stay on the device together where they take little of its memory. Otherwise each has its turn over a few
images, whose logits wait in the CPU's memory meanwhile.
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
from ..config.manifest import Member
from ..fusion.fuse import Fused, fuse, quantise
from ..fusion.prediction_folder import without_prediction, write_prediction
from ..store.image_table import ImageEntry
from ..store.shard_writer import ShardWriter
from .image_block import ComputedImage, ImageBlock, too_large
from .predictor import InferenceSettings, Predictor
from .store_writes import RESERVE_BYTES, require_checkpoint, require_ours, require_room, write_shard
from .transfer import HostCopy

TURN_IMAGES = 8
_TURN_BYTES = 4 * 2**30
_SHARE = 0.25
"""Of a GPU's free memory, which networks that stay there together may take: the rest is for what they compute."""


@dataclass(frozen=True)
class LogitsTarget:
    """Where a member's logits are stored beside the prediction.

    Attributes:
        writer: writes into the store, whose template stands.
        token: of the run's lock on the store.
        entries: the block's images as the store lists them.
    """

    writer: ShardWriter
    token: str
    entries: Mapping[str, ImageEntry]


@dataclass(frozen=True)
class BlockMember:
    """A member of the ensemble, the sha256 of its checkpoint, and where its logits are kept, None for nowhere."""

    member: Member
    digest: str | None
    kept: LogitsTarget | None = None


class Networks:
    """The members' networks on one device.

    Args:
        setting: how they compute.
        seats: the members.
    """

    def __init__(self, setting: InferenceSettings, seats: Sequence[BlockMember]) -> None:
        self._device = torch.device(setting.device)
        self._predictors: dict[str, Predictor] = {}
        self.together = True
        self._there: str | None = None
        room = _free_memory(self._device)
        for seat in seats:
            require_checkpoint(seat.member, seat.digest)
            predictor = self._predictors[seat.member.name] = setting.predictor()
            predictor.load(seat.member)
            taken = sum(one.bytes for one in self._predictors.values())
            self.together = self.together and (room is None or taken <= _SHARE * room)
            if not self.together:
                self._empty()

    def _empty(self) -> None:
        for predictor in self._predictors.values():
            predictor.put(torch.device("cpu"))
        self._there = None

    def take_notes(self) -> list[str]:
        """What they have to say to the user, each line once."""
        return list(dict.fromkeys(line for one in self._predictors.values() for line in one.take_notes()))

    def __getitem__(self, name: str) -> Predictor:
        """The network of the member called ``name``, which is on the device now."""
        if not self.together and self._there != name:
            self._empty()
            self._predictors[name].put(self._device)
            self._there = name
        return self._predictors[name]


def _free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for a CPU, from which nothing could be taken away."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


class _LoadedNetworks:
    """The networks that this process used last."""

    key: tuple[InferenceSettings, tuple[tuple[Member, str | None], ...]] | None = None
    networks: Networks | None = None


def _networks(setting: InferenceSettings, seats: Sequence[BlockMember]) -> Networks:
    key = setting, tuple((seat.member, seat.digest) for seat in seats)
    if _LoadedNetworks.key != key or _LoadedNetworks.networks is None:
        _LoadedNetworks.key = _LoadedNetworks.networks = None  # before the next ones need the memory
        _LoadedNetworks.networks, _LoadedNetworks.key = Networks(setting, seats), key
    return _LoadedNetworks.networks


@dataclass(frozen=True)
class PredictBlock(ImageBlock):
    """Some images of one dataset.

    Attributes:
        folder: where the predictions go.
        token: of the run's lock on the folder.
        seats: the members; those of weight 0 only have their logits kept.
        functions: of the label and of the confidence.
        root, entries, setting, exif: see `NetworkBlock`.
    """

    folder: Path
    token: str
    root: Path
    seats: tuple[BlockMember, ...]
    functions: tuple[str, str]
    entries: tuple[ImageEntry, ...]
    setting: InferenceSettings
    exif: bool = False

    @property
    def place(self) -> Path:
        return self.folder

    @property
    def loads(self) -> str:
        return ", ".join(seat.member.name for seat in self.seats)

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        lacks = self._lacks(entries)
        return [entry for entry in entries if lacks[entry.path]]

    def _lacks(self, entries: Sequence[ImageEntry]) -> dict[str, set[str | None]]:
        """Image -> members whose logits are to be kept and are not there; None among them for the prediction."""
        paths = [entry.path for entry in entries]
        lacks: dict[str, set[str | None]] = {path: set() for path in paths}
        for path in without_prediction(self.folder, paths):
            lacks[path].add(None)
        for seat in self.seats:
            if seat.kept is not None:
                for entry in seat.kept.writer.incomplete([seat.kept.entries[path] for path in paths]):
                    lacks[entry.path].add(seat.member.name)
        return lacks

    def load(self) -> int:
        if _networks(self.setting, self.seats).together:
            return 1
        sizes = [2 * NUM_CLASSES * (entry.height or 0) * (entry.width or 0) for entry in self.entries]
        return max(1, min(TURN_IMAGES, _TURN_BYTES // max(1, len(self.seats) * max(sizes))))

    def take_notes(self) -> list[str]:
        return _LoadedNetworks.networks.take_notes() if _LoadedNetworks.networks is not None else []

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], courier: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        lacks = self._lacks([entry for entry, _ in images])
        networks = _networks(self.setting, self.seats)
        if networks.together:
            for entry, image in images:
                yield entry.path, self._one(entry, image, lacks[entry.path], networks, courier)
        else:
            yield from self._in_turns(images, lacks, networks, courier)

    def _one(
        self, entry: ImageEntry, image: Tensor, lacks: set[str | None], networks: Networks, courier: HostCopy
    ) -> ComputedImage | str:
        kept: dict[str, Callable[[], Tensor]] = {}
        fallbacks: dict[str, str] = {}

        def logits(seats: Sequence[BlockMember]) -> Iterator[Tensor]:
            """Those of the members, one after another, kept or not."""
            for seat in seats:
                name = seat.member.name
                found, fallback = networks[name](image)
                if fallback is not None:
                    fallbacks[name] = fallback
                if name in lacks:
                    kept[name] = courier.send(found)
                yield found

        try:
            fused = self._fused(logits(self._voting)) if None in lacks else None
            for _ in logits([s for s in self.seats if s.member.name in lacks and s.member.name not in kept]):
                pass
            return self._made(entry, fused, kept, fallbacks, courier)
        except (RuntimeError, MemoryError) as error:
            return too_large(entry, error)

    def _in_turns(
        self,
        images: Sequence[tuple[ImageEntry, Tensor]],
        lacks: Mapping[str, set[str | None]],
        networks: Networks,
        courier: HostCopy,
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        """The same, each network over all of the images before the next."""
        waiting: dict[str, dict[str, Callable[[], Tensor]]] = {entry.path: {} for entry, _ in images}
        fallbacks: dict[str, dict[str, str]] = {entry.path: {} for entry, _ in images}
        failed: dict[str, str] = {}
        for seat in self.seats:
            name = seat.member.name
            for entry, image in images:
                votes = None in lacks[entry.path] and bool(seat.member.weight)
                if entry.path in failed or not (votes or name in lacks[entry.path]):
                    continue
                try:
                    found, fallback = networks[name](image)
                    waiting[entry.path][name] = courier.send(found)
                except (RuntimeError, MemoryError) as error:
                    failed[entry.path] = too_large(entry, error)
                    continue
                if fallback is not None:
                    fallbacks[entry.path][name] = fallback
        device = torch.device(self.setting.device)
        for entry, _ in images:
            path = entry.path
            if path in failed:
                yield path, failed[path]
                continue
            here = waiting.pop(path)
            voting = (here[seat.member.name]().to(device, non_blocking=True) for seat in self._voting)
            try:
                fused = self._fused(voting) if None in lacks[path] else None
                kept = {name: fetch for name, fetch in here.items() if name in lacks[path]}
                yield path, self._made(entry, fused, kept, fallbacks[path], courier)
            except (RuntimeError, MemoryError) as error:
                yield path, too_large(entry, error)

    @property
    def _voting(self) -> list[BlockMember]:
        return [seat for seat in self.seats if seat.member.weight]

    @torch.inference_mode()
    def _fused(self, logits: Iterator[Tensor]) -> Fused:
        members = [seat.member for seat in self._voting]
        return fuse(
            logits,
            [member.weight for member in members],
            [member.temperature for member in members],
            label=self.functions[0],
            confidence=self.functions[1],
        )

    def _made(
        self,
        entry: ImageEntry,
        fused: Fused | None,
        kept: Mapping[str, Callable[[], Tensor]],
        fallbacks: Mapping[str, str],
        courier: HostCopy,
    ) -> ComputedImage:
        size = (entry.height or 0) * (entry.width or 0)
        fetches = None if fused is None else (courier.send(fused.label), courier.send(fused.confidence))
        said = "; ".join(f"{name} {way}" for name, way in fallbacks.items()) or None
        return ComputedImage(
            size * (2 * NUM_CLASSES * len(kept) + 5), partial(self._write, entry.path, fetches, kept), said
        )

    def _write(
        self,
        path: str,
        fetches: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None,
        kept: Mapping[str, Callable[[], Tensor]],
    ) -> None:
        """Kept logits first: a prediction that is older than its logits would be made again by ``ensemble``."""
        for seat in self.seats:
            if seat.kept is not None and seat.member.name in kept:
                fetch, entry = kept[seat.member.name], seat.kept.entries[path]
                write_shard(seat.kept.writer, seat.kept.token, entry, fetch, self.setting.hands)
        if fetches is None:
            return
        label, confidence = (fetch() for fetch in fetches)
        if not bool(confidence.isfinite().all()):
            raise StoreError(
                f"{path}: a member's logits are not finite in {self.setting.precision}; try --precision fp32"
            )
        require_room(self.folder, RESERVE_BYTES)
        require_ours(self.folder, self.token)
        write_prediction(self.folder, path, label.numpy(), quantise(confidence).numpy())
