"""The logit store: one Zarr v3 group per dataset and model, one shard file per image.

The only file of the package that knows Zarr, but for the codec in `compact`. What holds of every store:

* an image is complete if and only if its shard exists and is not empty, because a shard is written
  under a temporary name, flushed, and renamed into place by the one writer that owns the store's lock;
* the table of images in the attributes is the truth, the arrays follow it: a process that died between
  the two leaves a store that the next writer completes;
* Zarr gives NaN for a shard that it does not find, and every value it can for metadata that are not what
  they were: what is read is therefore held against what a store of ours must be;
* equal work gives equal bytes: no times, hosts or failures are kept in a store.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ...errors import StoreError, first_few
from ...files import PARTIAL
from ..storage.filesystem import (
    FileInfo,
    is_remote,
    listing,
    remove,
    remove_folder,
    remove_partials,
    size,
    write_bytes,
)
from .identity import Identity
from .image_table import ImageEntry, Photograph, check_images, rows_per_array, update_table
from .shard_file import shard_path
from .shard_reader import ShardReader
from .shard_writer import ShardWriter
from .zarr_backend import (
    ENCODINGS,
    FORMAT_VERSION,
    array_size,
    compressor,
    dimension_names,
    open_group,
    read_table,
    shard_rows,
    strip_rows,
    table_version,
    zarr_store,
)

_PIECE_BYTES = 256 * 2**20


class LogitStore:
    """Logits of one model over one dataset, float16, shape (C, H, W) an image.

    Make one with `create`, or `open` what is there. Reading needs no lock; whoever opens with
    ``writable=True`` holds the store's lock (`pipeline.lock`).
    """

    def __init__(self, path: Path, group: zarr.Group, seen: str | None) -> None:
        self.path = path
        self._group = group
        self._writer: ShardWriter | None = None
        self.identity: Identity
        self.images: list[ImageEntry]
        self._load(seen)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a store was begun at ``path``; StoreError if the disk does not say."""
        try:
            return size(path / "zarr.json") is not None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error

    @classmethod
    def create(cls, path: Path, identity: Identity, versions: Mapping[str, str]) -> LogitStore:
        """An empty store; whatever lay at ``path`` before is removed first.

        Args:
            path: the folder ``<output>/logits/<dataset>/<model>.zarr``.
            identity: what the logits will be made with.
            versions: names and versions of the software, kept for the reader.

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            cls.remove(path)
            attributes = {
                "format_version": FORMAT_VERSION,
                **identity.as_json(),
                **versions,
                "images": [],
            }
            group = zarr.create_group(zarr_store(path), zarr_format=3, attributes=attributes)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"{path}: cannot be created ({reason}); fix that or choose another --output") from error
        return cls(path, group, table_version(path))

    @classmethod
    def for_writing(
        cls, path: Path, identity: Identity, versions: Mapping[str, str], *, overwrite: bool = False
    ) -> LogitStore:
        """The store at ``path``, opened for writing or made; what dead writers left in it is swept out.

        The caller holds the store's lock.

        Raises:
            StoreError: it was made with other settings, is damaged, or cannot be written.
        """
        if overwrite or not cls.exists(path):
            if not overwrite and size(_aside(path)) is None and _holds_shards(path):
                raise StoreError(
                    f"{path}: holds logits but no zarr.json that says what they are; put it back, or start over "
                    "with --overwrite"
                )
            return cls.create(path, identity, versions)
        store = cls.open(path, writable=True)
        store.require(identity)
        remove_partials(path)
        return store

    def require(self, identity: Identity) -> None:
        """Raise StoreError if the store was made with other settings than ``identity``."""
        differences = self.identity.differences(identity)
        if differences:
            raise StoreError(
                f"{self.path}: was made with other settings ({'; '.join(differences)}); "
                "use those, another --output, or start it over with --overwrite"
            )

    @classmethod
    def remove(cls, path: Path) -> None:
        """Remove a whole store, out of sight first, so that half of one is never taken for a store."""
        cls.set_aside(path)
        remove_folder(_aside(path))

    @staticmethod
    def set_aside(path: Path) -> None:
        """Put a store out of sight, at once however large it is; the next writer clears it away.

        An object store cannot rename: there all objects are removed now, and until the last one is gone a mark
        beside them says that they are no store that somebody lost the table of.
        """
        if is_remote(path):
            write_bytes(_aside(path), b"being removed")
            remove(path / "zarr.json")
            remove_folder(path)
            remove(_aside(path))
            return
        remove_folder(_aside(path))
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise NotADirectoryError(errno.ENOTDIR, "is no folder but a link or a file; remove it by hand")
        if path.exists():
            path.rename(_aside(path))

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> LogitStore:
        """Open a store.

        Raises:
            StoreError: there is none, it is of another format version, or its metadata are damaged.
        """
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no store; make it with 'hmsa-pipeline dump'")
        seen = table_version(path)
        group = open_group(path, writable=writable)
        return cls(path, group, seen)

    def _load(self, seen: str | None) -> None:
        self.identity, self.images = read_table(self.path, self._group)
        self._reader = ShardReader(self.path, self.identity, seen, self._group.store)
        self.index = {entry.path: i for i, entry in enumerate(self.images)}

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.identity.classes)

    def register(self, photographs: Iterable[Photograph]) -> int:
        """Bring the table up to the dataset: new photographs are appended, in the order given.

        One whose file changed is renewed in place as long as nothing is stored for it (a damaged file
        that was mended); when logits of its old content are stored, that is an error.

        Returns:
            how many rows were added.

        Raises:
            StoreError: a photograph changed since its logits were stored, or cannot be listed.
        """
        images = self._brought_up(photographs)
        added = len(images) - len(self.images)
        if images != self.images:
            try:
                check_images(images)
            except ValueError as error:
                raise StoreError(f"{self.path}: cannot list these photographs ({error})") from error
            self._require_vacant(images)
            self._group.attrs["images"] = [asdict(entry) for entry in images]
            self._load(table_version(self.path))
        self._make_arrays()
        return added

    def require_same(self, photographs: Iterable[Photograph]) -> None:
        """Raise the StoreError that `register` would raise for a photograph that changed; nothing is written."""
        self._brought_up(photographs)

    def _brought_up(self, photographs: Iterable[Photograph]) -> list[ImageEntry]:
        images, changed = update_table(self.images, self.complete(), photographs)
        if changed:
            raise StoreError(
                f"{self.path}: {len(changed)} photographs have another size in bytes than when their logits were "
                f"stored (first: {changed[0]}); put the old files back, or start over with --overwrite"
            )
        return images

    def _require_vacant(self, images: Sequence[ImageEntry]) -> None:
        """Raise StoreError if a place that no image had holds logits: they would pass for another image's."""
        taken = {(entry.array, entry.row) for entry in self.images}
        for entry, found in zip(images, self._shards(images), strict=True):
            if found and found.bytes and (entry.array, entry.row) not in taken:
                raise StoreError(
                    f"{self.path}: row {entry.row} of {entry.array} holds logits that the table of images does not "
                    "list, as if zarr.json were an older one; put the last one back, or start over with --overwrite"
                )

    def _make_arrays(self) -> None:
        """Bring every array to the rows that the table gives it."""
        for name, count in rows_per_array(self.images).items():
            height, width = array_size(name)
            shape = (count, self.classes, height, width)
            if size(self.path / name / "zarr.json") is None:
                strip = strip_rows(self.classes, height, width)
                self._group.create_array(
                    name,
                    shape=shape,
                    dtype="float16",
                    fill_value=np.float16("nan"),
                    chunks=(1, self.classes, strip, width),
                    shards=(1, self.classes, shard_rows(height, strip), width),
                    filters=ENCODINGS[self.identity.encoding].filters or None,
                    compressors=[compressor(self.identity), Crc32cCodec()],
                    chunk_key_encoding={"name": "default", "separator": "."},
                    dimension_names=dimension_names(name),
                )
            elif self._reader.array(name).shape[0] < count:
                self._reader.array(name).resize(shape)

    def shard_path(self, index: int) -> Path | None:
        """The shard file of image ``index``; None for an image that has no place in an array."""
        return shard_path(self.path, self.images[index])

    def shards(self) -> list[FileInfo | None]:
        """Every image's shard, None where there is none. One scan per array."""
        return self._shards(self.images)

    def shard_sizes(self) -> list[int | None]:
        """Size in bytes of every image's shard, None where there is none."""
        return [None if found is None else found.bytes for found in self.shards()]

    def _shards(self, images: Sequence[ImageEntry]) -> list[FileInfo | None]:
        there: dict[tuple[str, str], FileInfo] = {}
        for array in {e.array for e in images if e.array}:
            try:
                there |= {(array, f.name): f for f in listing(self.path / array) if f.name.startswith("c.")}
            except OSError as error:
                raise StoreError(f"{self.path / array}: cannot be read ({error.strerror or error})") from error
        return [there.get((e.array or "", f"c.{e.row}.0.0.0")) for e in images]

    def complete(self) -> list[bool]:
        """For every image whether its shard exists and is not empty."""
        return [bool(size) for size in self.shard_sizes()]

    def require_arrays(self) -> None:
        """Raise StoreError if the metadata of an array are not what this version writes.

        Zarr finds much of what can be wrong with them only when it reads a chunk, where it looks like damage of the
        shard.
        """
        for name in rows_per_array(self.images):
            if size(self.path / name / "zarr.json") is not None:
                self._reader.array(name)

    def require_complete(self, images: Sequence[str]) -> None:
        """Raise StoreError, with their number, if logits of these images are missing, or see `require_arrays`."""
        self.require_arrays()
        known = {entry.path for entry, ok in zip(self.images, self.complete(), strict=True) if ok}
        if missing := [image for image in images if image not in known]:
            raise StoreError(
                f"{self.path}: lacks {len(missing)} of {len(images)} images ({first_few(missing, 2)}); "
                "make them with 'hmsa-pipeline dump', or take --limit"
            )

    def reader(self) -> ShardReader:
        """Give the reader of this store's shards, which needs no table."""
        return self._reader

    def writer(self) -> ShardWriter:
        """What writes this store's shards, in this process or in others; the caller holds the lock."""
        return ShardWriter(self.path, self.identity, self._reader.seen)

    def write(self, index: int, logits: np.ndarray) -> None:
        """Store one image; see `ShardWriter.write`."""
        if self._writer is None:
            self._writer = self.writer()
        self._writer.write(self.images[index], logits)

    def is_current(self) -> bool:
        """Whether the table and the settings on the disk are still those that were read."""
        return table_version(self.path) == self._reader.seen

    def read(self, index: int, start: int = 0, stop: int | None = None, room: np.ndarray | None = None) -> np.ndarray:
        """Read rows of one image's logits, (C, rows, W) float16; see `ShardReader.read`."""
        return self._reader.read(self.images[index], start, stop, room)

    def room_for_strip(self, entry: ImageEntry) -> np.ndarray:
        """Make an array that a strip is read into; see `ShardReader.room_for_strip`."""
        return self._reader.room_for_strip(entry)

    def strips(self, index: int) -> list[tuple[int, int]]:
        """List the pieces of an image that are cheapest to `read`; see `ShardReader.strips`."""
        return self._reader.strips(self.images[index])

    def check(self, index: int) -> None:
        """Read a whole shard; see `ShardReader.check`."""
        self._reader.check(self.images[index])


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _holds_shards(path: Path) -> bool:
    return any(found.name.count("/") == 1 and "/c." in found.name for found in listing(path))
