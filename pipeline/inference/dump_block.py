"""What a worker does of a dump: a block of images through one network into its store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..config.manifest import Member
from ..store.image_table import ImageEntry
from ..store.shard_writer import ShardWriter
from .image_block import ComputedImage, ImageBlock, too_large
from .predictor import InferenceSettings, Predictor
from .store_writes import require_checkpoint, write_shard
from .transfer import HostCopy


class _LoadedPredictor:
    """The network that this process used last: blocks of one model follow one another."""

    key: tuple[InferenceSettings, str | None] | None = None
    predictor: Predictor | None = None


def _load_predictor(setting: InferenceSettings, member: Member, digest: str | None) -> Predictor:
    """The network of ``member`` on the device."""
    key = setting, digest
    if _LoadedPredictor.key != key or _LoadedPredictor.predictor is None:
        _LoadedPredictor.key = _LoadedPredictor.predictor = None  # before the next one needs the memory
        require_checkpoint(member, digest)
        _LoadedPredictor.predictor, _LoadedPredictor.key = setting.predictor(), key
    _LoadedPredictor.predictor.load(member)
    return _LoadedPredictor.predictor


@dataclass(frozen=True)
class DumpBlock(ImageBlock):
    """Some images of one job.

    Attributes:
        member: whose network runs.
        digest: sha256 of its checkpoint.
        writer: writes into the store, whose template stands.
        token: of the run's lock on the store.
        root, entries, setting, exif: see `NetworkBlock`.
    """

    member: Member
    digest: str | None
    root: Path
    writer: ShardWriter
    token: str
    entries: tuple[ImageEntry, ...]
    setting: InferenceSettings
    exif: bool = False

    @property
    def place(self) -> Path:
        return self.writer.path

    @property
    def loads(self) -> str:
        return self.member.name

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        return self.writer.incomplete(entries)

    def load(self) -> int:
        _load_predictor(self.setting, self.member, self.digest)
        return 1

    def take_notes(self) -> list[str]:
        return _LoadedPredictor.predictor.take_notes() if _LoadedPredictor.predictor is not None else []

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], courier: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        predictor = _load_predictor(self.setting, self.member, self.digest)
        for entry, image in images:
            try:
                logits, fallback = predictor(image)
                fetch = courier.send(logits)
            except (RuntimeError, MemoryError) as error:
                yield entry.path, too_large(entry, error)
                continue
            write = partial(write_shard, self.writer, self.token, entry, fetch, self.setting.hands)
            yield entry.path, ComputedImage(logits.nbytes, write, fallback)
