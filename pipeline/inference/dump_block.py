"""What a worker does of a dump: a block of images through one network into its store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..config.manifest import Member
from ..store.identity import ImageEntry
from ..store.logit_store import ShardWriter
from .image_block import Courier, Made, NetworkBlock, Setting, require_checkpoint, too_large, write_shard
from .predictor import Predictor


class _Last:
    """The network that this process used last: blocks of one model follow one another."""

    key: tuple[Setting, str | None] | None = None
    predictor: Predictor | None = None


def _predictor(setting: Setting, member: Member, digest: str | None) -> Predictor:
    """The network of ``member`` on the device."""
    key = setting, digest
    if _Last.key != key or _Last.predictor is None:
        _Last.key = _Last.predictor = None  # before the next one needs the memory
        require_checkpoint(member, digest)
        _Last.predictor, _Last.key = setting.predictor(), key
    _Last.predictor.load(member)
    return _Last.predictor


@dataclass(frozen=True)
class DumpBlock(NetworkBlock):
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
    setting: Setting
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
        _predictor(self.setting, self.member, self.digest)
        return 1

    def take_notes(self) -> list[str]:
        return _Last.predictor.take_notes() if _Last.predictor is not None else []

    def compute(
        self, images: Sequence[tuple[ImageEntry, Tensor]], courier: Courier
    ) -> Iterator[tuple[str, Made | str]]:
        predictor = _predictor(self.setting, self.member, self.digest)
        for entry, image in images:
            try:
                logits, fallback = predictor(image)
                fetch = courier.send(logits)
            except (RuntimeError, MemoryError) as error:
                yield entry.path, too_large(entry, error)
                continue
            write = partial(write_shard, self.writer, self.token, entry, fetch, self.setting.hands)
            yield entry.path, Made(logits.nbytes, write, fallback)
