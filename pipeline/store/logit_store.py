"""The life cycle of a logit store and its table of images: one Zarr v3 group per dataset and model.

Four things hold of every store:

* an image is complete if and only if its shard exists and is not empty, because a shard is written under a temporary
  name, flushed, and renamed into place by the one writer that holds the store's lock;
* the table of images in the group's attributes comes first, the arrays follow it: a process that died between the
  two leaves a store that the next writer completes;
* metadata are compared with those that this version writes before a value is read, since Zarr gives NaN for a shard
  that it does not find, and other values for changed metadata;
* equal work gives equal bytes: a store holds no times, hosts or failures.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
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
from ..storage.interface import FileInfo
from .identity import StoreIdentity
from .image_table import ImageEntry, Photograph, check_images, rows_per_array, update_table
from .shard_reader import ShardReader
from .shard_writer import ShardWriter
from .zarr_backend import (
    FORMAT_VERSION,
    array_size,
    chunk_codecs,
    dimension_names,
    open_group,
    shard_rows,
    strip_rows,
    table_version,
    zarr_store,
)


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
            attributes = {"format_version": FORMAT_VERSION, **identity.as_json(), **versions, "images": []}
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

        Temporary files of writers that died are removed.

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
        return store

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
        that was repaired, is updated in place.

        Raises:
            StoreError: an image changed since its logits were stored, or cannot be listed.
        """
        images = self._updated_table(photographs)
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
        """Raise the StoreError that `register` raises for an image that changed, without writing anything."""
        self._updated_table(photographs)

    def _updated_table(self, photographs: Iterable[Photograph]) -> list[ImageEntry]:
        images, changed = update_table(self.images, self.complete(), photographs)
        if changed:
            raise StoreError(
                f"{self.path}: {len(changed)} photographs have another size in bytes than when their logits were "
                f"stored (first: {changed[0]}); put the old files back, or start over with --overwrite"
            )
        return images

    def _require_vacant(self, images: Sequence[ImageEntry]) -> None:
        """Raise StoreError if a row that is new in the table already holds logits, which are another image's."""
        taken = {(entry.array, entry.row) for entry in self.images}
        for entry, found in zip(images, self._shards(images), strict=True):
            if found and found.bytes and (entry.array, entry.row) not in taken:
                raise StoreError(
                    f"{self.path}: row {entry.row} of {entry.array} holds logits that the table of images does not "
                    "list, as if zarr.json were an older one; put the last one back, or start over with --overwrite"
                )

    def _make_arrays(self) -> None:
        """Create or enlarge arrays to the number of rows that the table gives them."""
        for name, count in rows_per_array(self.images).items():
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

    def shards(self) -> list[FileInfo | None]:
        """List each image's shard file, None where there is none, with one directory scan per array."""
        return self._shards(self.images)

    def shard_sizes(self) -> list[int | None]:
        """List the size in bytes of each image's shard, None where there is none."""
        return [None if found is None else found.bytes for found in self.shards()]

    def _shards(self, images: Sequence[ImageEntry]) -> list[FileInfo | None]:
        there: dict[tuple[str, str], FileInfo] = {}
        for array in {e.array for e in images if e.array}:
            try:
                there |= {(array, f.name): f for f in listing(self.path / array) if f.name.startswith("c.")}
            except OSError as error:
                raise StoreError(cannot_read(self.path / array, error)) from error
        return [there.get((e.array or "", f"c.{e.row}.0.0.0")) for e in images]

    def complete(self) -> list[bool]:
        """Say of each image whether it is complete: its shard exists and is not empty."""
        return [bool(size) for size in self.shard_sizes()]

    def require_arrays(self) -> None:
        """Raise StoreError if the metadata of an array are not those that this version writes.

        Otherwise wrong metadata look like a damaged shard when a chunk is read.
        """
        for name in rows_per_array(self.images):
            if size(self.path / name / "zarr.json") is not None:
                self._array(name)

    def require_complete(self, images: Sequence[str]) -> None:
        """Raise StoreError if logits of any of these images are missing, or as `require_arrays` does."""
        self.require_arrays()
        known = {entry.path for entry, ok in zip(self.images, self.complete(), strict=True) if ok}
        if missing := [image for image in images if image not in known]:
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
