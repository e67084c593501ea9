"""The life cycle of a logit store and its table of images: one Zarr v3 group per dataset and model.

Four things hold of every store:

* an image is complete if and only if its shard exists and is not empty, because a shard is written under a temporary
  name, flushed, and renamed into place by the one writer that holds the store's lock;
* the table of images comes first, the arrays follow it: a process that died between the two leaves a store that the
  next writer completes, and one that died while the table grew leaves the old table (see `table_columns`);
* metadata are compared with those that this version writes before a value is read, since Zarr gives NaN for a shard
  that it does not find, and other values for changed metadata;
* equal work gives equal bytes: a store holds no times, hosts or failures.
"""

from __future__ import annotations

import errno
from array import array as array_of_numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from ...errors import StoreError, cannot_read, first_few, reason
from ...files import PARTIAL
from ..storage.filesystem import (
    is_remote,
    listing,
    remove,
    remove_folder,
    remove_partials,
    size,
    write_bytes,
)
from .identity import StoreIdentity
from .image_table import HEIGHT, ROW, WIDTH, Photograph, arrays_of, check_paths, rows_per_array
from .shard_reader import ShardReader
from .shard_writer import ShardWriter
from .table_columns import TableColumns
from .table_update import TableUpdate, update_table
from .zarr_backend import (
    FORMAT_VERSION,
    LISTED_VERSION,
    array_size,
    chunk_codecs,
    dimension_names,
    open_group,
    shard_rows,
    strip_rows,
    table_version,
    zarr_store,
)

_FEW = 64
"""Up to so many shards are looked up one by one, and more by a scan of their arrays."""


@dataclass(frozen=True)
class Shards:
    """The shard files of images, as a scan found them.

    Attributes:
        bytes: (N,) int64: size of each image's shard, -1 where there is none.
        modified: (N,) int64: time of its last write, in nanoseconds since 1970; 0 where there is none.
    """

    bytes: np.ndarray
    modified: np.ndarray

    @property
    def complete(self) -> np.ndarray:
        """(N,) bool: which images are complete, because their shard exists and is not empty."""
        return self.bytes > 0


class LogitStore(ShardReader):
    """Logits (C, H, W) float16 of one model for each image of one dataset.

    Made by `create`, `open` or `for_writing`. Reading needs no lock; a caller that writes holds the store's lock
    (`storage.writer_lock`).
    """

    _writer: ShardWriter | None = None

    @staticmethod
    def exists(path: Path) -> bool:
        """Say whether there is a store at ``path``, complete or not; StoreError if the disk does not answer."""
        try:
            return size(path / "zarr.json") is not None
        except OSError as error:
            raise StoreError(cannot_read(path, error)) from error

    @classmethod
    def create(cls, path: Path, identity: StoreIdentity, versions: Mapping[str, str]) -> LogitStore:
        """Create an empty store; a store that lay at ``path`` before is removed first.

        Args:
            path: folder of the store.
            identity: model and settings that the logits will be made with.
            versions: names and versions of the software, kept for the reader.

        Raises:
            StoreError: the folder cannot be written.
        """
        try:
            cls.remove(path)
            attributes = {"format_version": FORMAT_VERSION, **identity.as_json(), **versions, "images": 0}
            group = zarr.create_group(zarr_store(path), zarr_format=3, attributes=attributes)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be created ({reason(error)}); fix that or choose another --output"
            ) from error
        return cls(path, group, table_version(path))

    @classmethod
    def for_writing(
        cls, path: Path, identity: StoreIdentity, versions: Mapping[str, str], *, overwrite: bool = False
    ) -> LogitStore:
        """Open the store at ``path`` for writing, or create it; the caller holds its lock.

        Temporary files of writers that died are removed, and a table of images of format version 1 becomes one of
        version 2. A process that dies meanwhile leaves the store as it was.

        Args:
            path, identity, versions: see `create`.
            overwrite: remove a store that is there and start over.

        Raises:
            StoreError: the store was made with other settings, is damaged, or cannot be written.
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
        store._convert()
        return store

    def _convert(self) -> None:
        """Write a table of format version 1 as columns; the group's attributes, which hold it, are replaced last."""
        attributes = dict(self._group.attrs)
        if attributes["format_version"] != LISTED_VERSION:
            return
        images = self.images
        paths = [path for chunk in images.chunks() for path in images.chunk_paths(chunk)]
        TableColumns(self.path).write(0, {}, paths, images.numbers())
        self._group.attrs.put({**attributes, "format_version": FORMAT_VERSION, "images": len(paths)})
        self._load(table_version(self.path))

    def require(self, identity: StoreIdentity) -> None:
        """Raise StoreError if the store was made with other settings than ``identity``."""
        differences = self.identity.differences(identity)
        if differences:
            raise StoreError(
                f"{self.path}: was made with other settings ({'; '.join(differences)}); "
                "use those, another --output, or start it over with --overwrite"
            )

    @classmethod
    def remove(cls, path: Path) -> None:
        """Remove a store; it is set aside first, so that half of one is never taken for a store."""
        cls.set_aside(path)
        remove_folder(_aside(path))

    @staticmethod
    def set_aside(path: Path) -> None:
        """Rename a store to a hidden name, which takes no time; the next writer removes it.

        An object store cannot rename: there all objects are removed now, and until the last one is gone a marker
        beside them tells `for_writing` that they are not a store that lost its table.

        Raises:
            NotADirectoryError: a link or a file lies at ``path``.
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
            StoreError: there is no store, it is of another format version, or its metadata are damaged.
        """
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no store; make it with 'hmsa-pipeline dump'")
        seen = table_version(path)
        return cls(path, open_group(path, writable=writable), seen)

    def register(self, photographs: Iterable[Photograph]) -> int:
        """Bring the table and the arrays up to the dataset as it is now, and return the number of rows added.

        New images are appended, in the order given. The row of an image whose file changed, such as a damaged file
        that was repaired, is updated in place. No path may be given twice.

        Raises:
            StoreError: an image changed since its logits were stored, or cannot be listed.
        """
        if (seen := table_version(self.path)) != self._seen:  # another writer held the lock since this was opened
            self._group = open_group(self.path, writable=True)
            self._load(seen)
        update = self._update(tuple(photographs))
        try:
            check_paths(update.paths)
            if len(set(update.paths)) < len(update.paths):
                raise ValueError("an image is listed twice")
        except ValueError as error:
            raise StoreError(f"{self.path}: cannot list these photographs ({error})") from error
        columns, count = TableColumns(self.path), len(self.images)
        if update.paths or update.renewed or not columns.is_tidy(count):
            self._require_vacant(update.taken)
            columns.write(count, update.renewed, update.paths, update.numbers)
            self._group.attrs["images"] = count + len(update.paths)
            self._load(table_version(self.path))
        self._make_arrays(update.total)
        return len(update.paths)

    def completed(self, photographs: Sequence[Photograph]) -> np.ndarray:
        """Say of each photograph whether its logits are stored, (N,) bool; nothing is written.

        Raises:
            StoreError: as `register` does for an image that changed.
        """
        rows = self._update(photographs).rows
        found = np.zeros(len(photographs), bool)
        found[rows >= 0] = self.shards().complete[rows[rows >= 0]]
        return found

    def _update(self, photographs: Sequence[Photograph]) -> TableUpdate:
        update = update_table(self.images, photographs, self._are_complete)
        if update.changed:
            raise StoreError(
                f"{self.path}: {len(update.changed)} photographs have another size in bytes than when their logits "
                f"were stored (first: {update.changed[0]}); put the old files back, or start over with --overwrite"
            )
        return update

    def _require_vacant(self, numbers: np.ndarray) -> None:
        """Raise StoreError if a place that an image is to get already holds logits, which are another image's."""
        for _, height, width, row in numbers[self._are_complete(numbers)].tolist():
            raise StoreError(
                f"{self.path}: row {row} of {height}x{width} holds logits that the table of images does not "
                "list, as if zarr.json were an older one; put the last one back, or start over with --overwrite"
            )

    def _make_arrays(self, numbers: np.ndarray) -> None:
        """Create or enlarge arrays to the number of rows that the table, (N, 4) int64, gives them."""
        for name, count in rows_per_array(numbers).items():
            height, width = array_size(name)
            shape = (count, self.classes, height, width)
            if size(self.path / name / "zarr.json") is None:
                filters, serializer, compressors = chunk_codecs(self.identity)
                strip = strip_rows(self.classes, height, width)
                self._group.create_array(
                    name,
                    shape=shape,
                    dtype="float16",
                    fill_value=np.float16("nan"),
                    chunks=(1, self.classes, strip, width),
                    shards=(1, self.classes, shard_rows(height, strip), width),
                    filters=filters or None,
                    serializer=serializer,
                    compressors=compressors,
                    chunk_key_encoding={"name": "default", "separator": "."},
                    dimension_names=dimension_names(name),
                )
            elif self._array(name).shape[0] < count:
                self._array(name).resize(shape)

    def shards(self) -> Shards:
        """Find each image's shard file, with one directory scan per array."""
        return self._scan(self.images.numbers())

    def shard_sizes(self) -> list[int | None]:
        """List the size in bytes of each image's shard, None where there is none."""
        return [None if found < 0 else found for found in self.shards().bytes.tolist()]

    def complete(self) -> list[bool]:
        """Say of each image whether it is complete: its shard exists and is not empty."""
        return self.shards().complete.tolist()

    def _scan(self, numbers: np.ndarray) -> Shards:
        """Find the shards of images, given by their numbers in the table, (N, 4) int64."""
        found = Shards(np.full(len(numbers), -1, np.int64), np.zeros(len(numbers), np.int64))
        for array, members in arrays_of(numbers).items():
            facts = array_of_numbers("q")
            try:
                for file in listing(self.path / array):
                    if (row := _row_of(file.name)) >= 0:
                        facts.extend((row, file.bytes, file.modified))
            except OSError as error:
                raise StoreError(cannot_read(self.path / array, error)) from error
            rows, sizes, times = np.frombuffer(facts, np.int64).reshape(-1, 3).T
            members = members[np.argsort(numbers[members, ROW], kind="stable")]
            places = np.searchsorted(numbers[members, ROW], rows)
            listed = np.append(numbers[members, ROW], -1)[places] == rows
            members = members[places[listed]]
            found.bytes[members], found.modified[members] = sizes[listed], times[listed]
        return found

    def _are_complete(self, numbers: np.ndarray) -> np.ndarray:
        """Say of images, given by their numbers in the table (N, 4) int64, whether they are complete, (N,) bool."""
        if len(numbers) > _FEW:
            return self._scan(numbers).complete
        try:
            return np.array([bool(size(self._shard_at(place))) for place in numbers.tolist()], bool)
        except OSError as error:
            raise StoreError(cannot_read(self.path, error)) from error

    def _shard_at(self, place: Sequence[int]) -> Path:
        return self.path / f"{place[HEIGHT]}x{place[WIDTH]}" / f"c.{place[ROW]}.0.0.0"

    def require_arrays(self) -> None:
        """Raise StoreError if the metadata of an array are not those that this version writes.

        Otherwise wrong metadata look like a damaged shard when a chunk is read.
        """
        for name in arrays_of(self.images.numbers()):
            if size(self.path / name / "zarr.json") is not None:
                self._array(name)

    def require_complete(self, images: Sequence[str]) -> None:
        """Raise StoreError if logits of any of these images are missing, or as `require_arrays` does."""
        self.require_arrays()
        rows = self.images.locate(images)
        there = np.where(rows >= 0, self.shards().complete[rows], False) if len(self.images) else rows >= 0
        if missing := [images[i] for i in np.flatnonzero(~there).tolist()]:
            raise StoreError(
                f"{self.path}: lacks {len(missing)} of {len(images)} images ({first_few(missing, 2)}); "
                "make them with 'hmsa-pipeline dump', or take --limit"
            )

    def writer(self) -> ShardWriter:
        """Make a writer of this store's shards, for this process or others; the caller holds the store's lock."""
        return ShardWriter(self.path, self.identity, self._seen)

    def write(self, index: int, logits: np.ndarray) -> None:
        """Store the logits (C, H, W) float16 of image ``index``; see `ShardWriter.write`."""
        if self._writer is None:
            self._writer = self.writer()
        self._writer.write(self.images[index], logits)

    def is_current(self) -> bool:
        """Say whether table and settings on the disk are still those that were read."""
        return table_version(self.path) == self._seen


def _aside(path: Path) -> Path:
    """Name the hidden folder, or marker in an object store, of a store that is being removed."""
    return path.with_name(f".{path.name}{PARTIAL}")


def _holds_shards(path: Path) -> bool:
    return any(found.name.count("/") == 1 and "/c." in found.name for found in listing(path))


def _row_of(name: str) -> int:
    """Read the row off the name of a shard file; -1 for another file."""
    text = name[2:-6]
    is_shard = name.startswith("c.") and name.endswith(".0.0.0") and text.isdecimal() and text.isascii()
    return int(text) if is_shard and (text[0] != "0" or text == "0") else -1
