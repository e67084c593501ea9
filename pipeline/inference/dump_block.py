"""Block of a dump: images through one network into its store."""

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


def _load_predictor(settings: InferenceSettings, member: Member, digest: str | None) -> Predictor:
    """Return a predictor with the network of ``member``, loaded unless the last block used it."""
    key = settings, digest
    if _LoadedPredictor.key != key or _LoadedPredictor.predictor is None:
        _LoadedPredictor.key = _LoadedPredictor.predictor = None  # before the next one needs the memory
        require_checkpoint(member, digest)
        _LoadedPredictor.predictor, _LoadedPredictor.key = settings.make_predictor(), key
    _LoadedPredictor.predictor.load(member)
    return _LoadedPredictor.predictor


@dataclass(frozen=True)
class DumpBlock(ImageBlock):
    """Some images of one store.

    Attributes:
        member: the model.
        digest: sha256 of its checkpoint.
        writer: writes into the store, whose arrays exist.
        token: token of the run's lock on the store.
        root, entries, settings, exif: see `ImageBlock`.
    """

    member: Member
    digest: str | None
    root: Path
    writer: ShardWriter
    token: str
    entries: tuple[ImageEntry, ...]
    settings: InferenceSettings
    exif: bool = False

    @property
    def target(self) -> Path:
        return self.writer.path

    @property
    def model_names(self) -> str:
        return self.member.name

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        return self.writer.incomplete(entries)

    def load(self) -> int:
        _load_predictor(self.settings, self.member, self.digest)
        return 1

    def take_notes(self) -> list[str]:
        return _LoadedPredictor.predictor.take_notes() if _LoadedPredictor.predictor is not None else []

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], host_copy: HostCopy
    ) -> Iterator[tuple[str, ComputedImage | str]]:
        predictor = _load_predictor(self.settings, self.member, self.digest)
        for entry, image in images:
            try:
                logits, fallback = predictor(image)
                fetch = host_copy.start(logits)
            except (RuntimeError, MemoryError) as error:
                yield entry.path, too_large(entry, error)
                continue
            write = partial(write_shard, self.writer, self.token, entry, fetch, self.settings.io_threads)
            yield entry.path, ComputedImage(logits.nbytes, write, fallback)
