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

import asyncio
import errno
import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import FsspecStore, LocalStore

from ..errors import StoreError, first_few
from ..files import PARTIAL
from .attributes import Identity, ImageEntry, Photograph, brought_up, check_images, images_from_json, rows_of
from .compact import LIMIT, FixedPoint, decoded, encoded
from .places import (
    Found,
    address,
    is_remote,
    listing,
    reached,
    read_bytes,
    remove,
    remove_folder,
    remove_partials,
    size,
    state,
    write_bytes,
)
from .shards import read_chunk, shard_pieces

FORMAT_VERSION = 1
_STRIP_BYTES = 5 * 2**20  # part of the format, as the version is
_PIECE_BYTES = 256 * 2**20
_ASKERS = 8


class _Encoding(NamedTuple):
    """What comes before the bytes, and Blosc's compressor of the bytes: name, level, and shuffle by bytes or bits."""

    filters: tuple[FixedPoint, ...]
    compressor: Literal["lz4", "zstd"]
    level: int
    shuffle: Literal["shuffle", "bitshuffle"]


_ENCODINGS = {
    "lossless": _Encoding((), "lz4", 5, "shuffle"),
    "compact": _Encoding((FixedPoint(),), "zstd", 3, "bitshuffle"),
}
_SHUFFLES = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}


class DamagedShardError(StoreError):
    """A shard that is there but does not decode to finite logits."""


class _DurableStore(LocalStore):
    """A local store whose every write is atomic and flushed to the disk.

    zarr's own LocalStore renames into place without a flush, and after a power cut a shard may then
    exist with nothing in it that was written.
    """

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        write_bytes(self.root / key, memoryview(value.as_buffer_like()))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # zarr's own needs hard links, which not every disk has; a store has one writer.
        if not await self.exists(key):
            await self.set(key, value)


class _RemoteStore(FsspecStore):
    """A store in an object store, where an object appears whole; its library's own errors become OSError."""

    def __init__(self, fs: Any, place: Path, *, read_only: bool = False) -> None:
        super().__init__(fs, read_only=read_only, path=address(place).rstrip("/"))
        self._root = place

    def _place(self, key: str) -> Path:
        return self._root / key

    def with_read_only(self, read_only: bool = False) -> _RemoteStore:
        return _RemoteStore(self.fs, self._root, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        with reached(self._place(key)):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer, byte_range: Any = None) -> None:
        with reached(self._place(key)):
            await super().set(key, value, byte_range)

    async def exists(self, key: str) -> bool:
        with reached(self._place(key)):
            return await super().exists(key)


# Of a process one for each kind: fsspec would make one, with connections of its own, for every thread.
_systems: dict[str, Any] = {}
_systems_lock = threading.Lock()


def _zarr_store(path: Path, *, read_only: bool = False) -> Store:
    """What Zarr reads and writes the store at ``path`` through."""
    if not is_remote(path):
        return _DurableStore(path, read_only=read_only)
    kind = urlsplit(str(path)).scheme
    with _systems_lock:
        if kind not in _systems:
            _systems[kind] = FsspecStore.from_url(str(path), {"use_listings_cache": False}).fs
    return _RemoteStore(_systems[kind], path, read_only=read_only)


def strip_rows(classes: int, height: int, width: int) -> int:
    """Rows R of one chunk: a power of two of about 5 MiB for all classes, at most the height."""
    rows = 2 ** max(3, int(math.log2(max(1, _STRIP_BYTES // (classes * width * 2)))))
    return min(rows, height)


class LogitStore:
    """Logits of one model over one dataset, float16, shape (C, H, W) an image.

    Make one with `create`, or `open` what is there. Reading needs no lock; whoever opens with
    ``writable=True`` holds the store's lock (`pipeline.lock`).
    """

    def __init__(self, path: Path, group: zarr.Group, seen: str | None) -> None:
        self.path = path
        self._group = group
        self._seen = seen
        self._arrays: dict[str, zarr.Array] = {}
        self._writer: ShardWriter | None = None
        self.identity: Identity
        self.images: list[ImageEntry]
        self._load()

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
            group = zarr.create_group(_zarr_store(path), zarr_format=3, attributes=attributes)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"{path}: cannot be created ({reason}); fix that or choose another --output") from error
        return cls(path, group, _version(path))

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
        seen = _version(path)
        try:
            group = zarr.open_group(
                _zarr_store(path, read_only=not writable),
                mode="r+" if writable else "r",
                use_consolidated=False,
            )
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:
            raise StoreError(_damaged_metadata(path, error)) from error
        return cls(path, group, seen)

    def _load(self) -> None:
        try:
            attributes: dict[str, Any] = dict(self._group.attrs)
            version = attributes["format_version"]
            if version == FORMAT_VERSION:
                self.identity = Identity.from_json(attributes)
                if self.identity.encoding not in _ENCODINGS:
                    raise ValueError(f"unknown encoding {self.identity.encoding!r}")
                self.images = images_from_json(attributes["images"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(_damaged_metadata(self.path, error)) from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{self.path}: is of format version {version}, this hmsa-pipeline reads {FORMAT_VERSION}; "
                "use the version that wrote it, or start it over with --overwrite"
            )
        self.index = {entry.path: i for i, entry in enumerate(self.images)}

    def _require_unchanged(self, index: int) -> None:
        """Raise StoreError if another work took the store's place since it was opened."""
        seen = _version(self.path)
        if seen == self._seen:
            return
        now = LogitStore.open(self.path)
        if now.identity.differences(self.identity) or now.images[index : index + 1] != [self.images[index]]:
            raise StoreError(f"{self.path}: was started over meanwhile; run the same command again")
        self._seen = seen

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.identity.classes)

    # ------------------------------------------------------------------ the table of images

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
            self._seen = _version(self.path)
            self._load()
        self._make_arrays()
        return added

    def require_same(self, photographs: Iterable[Photograph]) -> None:
        """Raise the StoreError that `register` would raise for a photograph that changed; nothing is written."""
        self._brought_up(photographs)

    def _brought_up(self, photographs: Iterable[Photograph]) -> list[ImageEntry]:
        images, changed = brought_up(self.images, self.complete(), photographs)
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
        for name, count in rows_of(self.images).items():
            height, width = _size(name)
            shape = (count, self.classes, height, width)
            if size(self.path / name / "zarr.json") is None:
                strip = strip_rows(self.classes, height, width)
                self._group.create_array(
                    name,
                    shape=shape,
                    dtype="float16",
                    fill_value=np.float16("nan"),
                    chunks=(1, self.classes, strip, width),
                    shards=(1, self.classes, _whole(height, strip), width),
                    filters=_ENCODINGS[self.identity.encoding].filters or None,
                    compressors=[_compressor(self.identity), Crc32cCodec()],
                    chunk_key_encoding={"name": "default", "separator": "."},
                    dimension_names=_dimensions(name),
                )
            elif self._array(name).shape[0] < count:
                self._array(name).resize(shape)

    # ------------------------------------------------------------------ shards

    def shard_path(self, index: int) -> Path | None:
        """The shard file of image ``index``; None for an image that has no place in an array."""
        return _shard(self.path, self.images[index])

    def shards(self) -> list[Found | None]:
        """Every image's shard, None where there is none. One scan per array."""
        return self._shards(self.images)

    def shard_sizes(self) -> list[int | None]:
        """Size in bytes of every image's shard, None where there is none."""
        return [None if found is None else found.bytes for found in self.shards()]

    def _shards(self, images: Sequence[ImageEntry]) -> list[Found | None]:
        there: dict[tuple[str, str], Found] = {}
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
        for name in rows_of(self.images):
            if size(self.path / name / "zarr.json") is not None:
                self._array(name)

    def require_complete(self, images: Sequence[str]) -> None:
        """Raise StoreError, with their number, if logits of these images are missing, or see `require_arrays`."""
        self.require_arrays()
        known = {entry.path for entry, ok in zip(self.images, self.complete(), strict=True) if ok}
        if missing := [image for image in images if image not in known]:
            raise StoreError(
                f"{self.path}: lacks {len(missing)} of {len(images)} images ({first_few(missing, 2)}); "
                "make them with 'hmsa-pipeline dump', or take --limit"
            )

    def _array(self, name: str) -> zarr.Array:
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = _open_array(self._group.store, self.path, name, self.identity)
        return array

    def writer(self) -> ShardWriter:
        """What writes this store's shards, in this process or in others; the caller holds the lock."""
        return ShardWriter(self.path, self.identity, self._seen)

    def write(self, index: int, logits: np.ndarray) -> None:
        """Store one image; see `ShardWriter.write`."""
        if self._writer is None:
            self._writer = self.writer()
        self._writer.write(self.images[index], logits)

    def is_current(self) -> bool:
        """Whether the table and the settings on the disk are still those that were read."""
        return _version(self.path) == self._seen

    def read(self, index: int, start: int = 0, stop: int | None = None, room: np.ndarray | None = None) -> np.ndarray:
        """Rows ``start`` to ``stop`` of one image's logits, (C, rows, W) float16.

        Args:
            index: of the image in the table.
            start, stop: rows; all of them if left out.
            room: what `room_for_strip` gave, to be used again: if the rows are one of `strips` the result may be a
                part of it.

        Raises:
            StoreError: the image is not complete, or the disk cannot be read.
            DamagedShardError: the shard does not decode.
        """
        entry, shard = self.images[index], self.shard_path(index)
        missing = f"{self.path}: has no logits of {entry.path}; make them with 'hmsa-pipeline dump'"
        if entry.array is None or entry.row is None or shard is None:
            raise StoreError(missing)
        try:
            array = self._array(entry.array)
            if entry.row >= array.shape[0]:
                raise StoreError(f"{self.path / entry.array}: has no row {entry.row}; run 'hmsa-pipeline dump' again")
            if isinstance(array.store, _DurableStore):
                block = self._read_file(entry, shard, *slice(start, stop).indices(array.shape[2])[:2], room)
            else:
                block = np.asarray(array[entry.row, :, start:stop, :])
            self._require_unchanged(index)
            if np.isnan(block[0, :, 0]).any():
                # What Zarr gives for a strip, or a shard, that it does not find.
                raise ValueError("a strip is missing")
        except FileNotFoundError as error:
            raise StoreError(missing) from error
        except StoreError as error:
            if not _is_there(shard):
                raise StoreError(missing) from error
            raise
        except Exception as error:
            if _is_damage(error) and not _is_there(shard):
                raise StoreError(missing) from error
            if not _is_damage(error):
                reason = getattr(error, "strerror", None) or _one_line(error)
                raise StoreError(f"{shard}: cannot be read ({reason})") from error
            raise DamagedShardError(
                f"{shard}: the logits of {entry.path} are damaged ({_one_line(error)}); "
                "repair it with 'hmsa-pipeline verify --repair' and 'hmsa-pipeline dump'"
            ) from error
        return block

    def _read_file(
        self, entry: ImageEntry, shard: Path, start: int, stop: int, room: np.ndarray | None
    ) -> np.ndarray:
        """Rows of a shard file whose array is as this version writes it."""
        assert entry.height is not None
        assert entry.width is not None
        rows = strip_rows(self.classes, entry.height, entry.width)
        count = -(-entry.height // rows)
        room = self.room_for_strip(entry) if room is None else room

        def strip(number: int) -> np.ndarray:
            """Those of the rows that lie in one strip."""
            if self.identity.encoding == "compact":
                read_chunk(shard, number, count, room.view(np.uint16))
                whole = decoded(room.view(np.uint16))
            else:
                read_chunk(shard, number, count, room)
                whole = room
            return whole[:, max(0, start - number * rows) : stop - number * rows]

        first, last = start // rows, -(-stop // rows)
        if last - first == 1:
            return strip(first)
        block = np.empty((self.classes, max(0, stop - start), entry.width), np.float16)
        for number in range(first, last):
            y = max(start, number * rows) - start
            piece = strip(number)
            block[:, y : y + piece.shape[1]] = piece
        return block

    def room_for_strip(self, entry: ImageEntry) -> np.ndarray:
        """What one of the image's `strips` is decompressed into, (C, R, W) float16."""
        assert entry.height is not None
        assert entry.width is not None
        rows = strip_rows(self.classes, entry.height, entry.width)
        return np.empty((self.classes, rows, entry.width), np.float16)

    def strips(self, index: int) -> list[tuple[int, int]]:
        """(start, stop) rows of an image's chunks, the cheapest pieces to `read`.

        Of a remote store as many chunks together as 256 MiB hold: there every question costs more than a chunk.
        """
        entry = self.images[index]
        if entry.height is None or entry.width is None:
            return []
        rows = strip_rows(self.classes, entry.height, entry.width)
        if is_remote(self.path):
            rows *= max(1, _PIECE_BYTES // (2 * self.classes * rows * entry.width))
        return [(y, min(y + rows, entry.height)) for y in range(0, entry.height, rows)]

    def check(self, index: int) -> None:
        """Read a whole shard: checksums hold and every value is finite.

        Raises:
            StoreError: missing, or the disk cannot be read.
            DamagedShardError: does not decode, or not to finite values.
        """
        for start, stop in self.strips(index):
            if not _finite(self.read(index, start, stop)):
                raise DamagedShardError(
                    f"{self.shard_path(index)}: the logits of {self.images[index].path} are not all finite"
                )


class ShardWriter:
    """Writes single images of a store whose template stands, and knows of no other image.

    It can be sent to another process, and costs the same whether a table has ten images or a million.
    Whoever writes holds the store's lock, or works for who does (`lock.require_held`).
    """

    def __init__(self, path: Path, identity: Identity, seen: str | None) -> None:
        self.path = path
        self._identity, self._seen = identity, seen
        self._arrays: dict[str, zarr.Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_identity": self._identity, "_seen": self._seen, "_arrays": {}}

    def incomplete(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Those of the images whose shard does not exist, or is empty."""
        shards = [_shard(self.path, entry) for entry in entries]
        with ThreadPoolExecutor(_ASKERS) as pool:  # an object store answers in its own time
            there = list(pool.map(lambda shard: shard is not None and _has_content(shard), shards))
        return [entry for entry, known in zip(entries, there, strict=True) if not known]

    def write(self, entry: ImageEntry, logits: np.ndarray) -> None:
        """Store one image: all of it or, after any failure, nothing.

        Args:
            entry: its row in the table of images.
            logits: (C, H, W) float16, finite.

        Raises:
            ValueError: another shape or dtype.
            StoreError: the logits are not finite in float16, or another writer started the store afresh.
            OSError: the disk is full or cannot be written.
        """
        classes = len(self._identity.classes)
        if entry.array is None or entry.row is None or logits.shape != (classes, entry.height, entry.width):
            raise ValueError(f"{entry.path}: logits of shape {logits.shape} do not fit {entry.array}")
        if logits.dtype != np.float16:
            raise ValueError(f"{entry.path}: logits are {logits.dtype}, not float16")
        if not _finite(logits):
            raise StoreError(
                f"{entry.path}: the logits of '{self._identity.model}' are not finite in float16; "
                "try --precision bf16 or fp32"
            )
        if self._identity.encoding == "compact" and not _within(logits, LIMIT):
            raise StoreError(
                f"{entry.path}: logits of '{self._identity.model}' lie beyond {LIMIT}, the most that encoding "
                "compact holds; take store.encoding lossless"
            )
        self._require_unchanged(entry)
        array = self._arrays.get(entry.array)
        if array is None or array.shape[0] <= entry.row:  # zarr writes nothing, and says nothing, past the end
            array = self._arrays[entry.array] = _open_array(
                _zarr_store(self.path), self.path, entry.array, self._identity
            )
            if array.shape[0] <= entry.row:
                raise StoreError(f"{self.path / entry.array}: has no row {entry.row}; run the same command again")
        write_bytes(self.path / entry.array / f"c.{entry.row}.0.0.0", *_packed(logits, self._identity))

    def _require_unchanged(self, entry: ImageEntry) -> None:
        """Raise StoreError if another work took the store's place since it was opened."""
        seen = _version(self.path)
        if seen == self._seen:
            return
        now = LogitStore.open(self.path)
        index = now.index.get(entry.path, len(now.images))
        if now.identity.differences(self._identity) or now.images[index : index + 1] != [entry]:
            raise StoreError(f"{self.path}: was started over meanwhile; run the same command again")
        self._seen = seen


def _open_array(store: Any, path: Path, name: str, identity: Identity) -> zarr.Array:
    """The array of images of one size; StoreError if its metadata are not what the table calls for."""
    try:
        node = zarr.open_array(store, path=name, mode="r" if store.read_only else "r+", zarr_format=3)
        codecs = json.loads(read_bytes(path / name / "zarr.json"))["codecs"]
        if not _fits(node, name, identity) or not _are_ours(codecs, node, identity):
            raise ValueError("is not the array that the table of images calls for")
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError, FileNotFoundError) as error:
        raise StoreError(
            f"{path / name / 'zarr.json'}: cannot be understood ({_one_line(error)}); remove this one "
            "file, the next 'hmsa-pipeline dump' or 'import-logits' writes it again"
        ) from error
    # Zarr would else hold every strip against the fill value; the setting is not kept with the array.
    return node.with_config({"write_empty_chunks": True})


def _fits(array: zarr.Array, name: str, identity: Identity) -> bool:
    """Whether an array's metadata, which have no checksum, say what decides where values come from."""
    height, width = _size(name)
    classes = len(identity.classes)
    strip = strip_rows(classes, height, width)
    return (
        array.shape[1:] == (classes, height, width)
        and array.dtype == np.float16
        and array.chunks == (1, classes, strip, width)
        and array.shards == (1, classes, _whole(height, strip), width)
        and array.metadata.encode_chunk_key((3, 2, 1, 0)) == "c.3.2.1.0"
        and bool(np.isnan(array.fill_value))
    )


def _compressor(identity: Identity) -> BloscCodec:
    encoding = _ENCODINGS[identity.encoding]
    return BloscCodec(typesize=2, cname=encoding.compressor, clevel=encoding.level, shuffle=encoding.shuffle)


def _packed(logits: np.ndarray, identity: Identity) -> list[bytes]:
    """The shard file of an image's logits (C, H, W) float16, byte for byte as Zarr would write it."""
    height, width = logits.shape[1:]
    encoding = _ENCODINGS[identity.encoding]
    rows = strip_rows(len(logits), height, width)

    def strips() -> Iterator[np.ndarray]:
        for y in range(0, height, rows):
            strip = np.ascontiguousarray(logits[:, y : y + rows])
            if strip.shape[1] < rows:
                below = np.full((len(strip), rows - strip.shape[1], width), np.nan, np.float16)
                strip = np.concatenate([strip, below], axis=1)
            yield encoded(strip) if identity.encoding == "compact" else strip

    return shard_pieces(strips(), Blosc(encoding.compressor, encoding.level, _SHUFFLES[encoding.shuffle]))


def _are_ours(codecs: Any, array: zarr.Array, identity: Identity) -> bool:
    """Whether every byte of the array's shards lies where this version puts it.

    Args:
        codecs: as they stand in the file. Zarr's versions differ in what they take for one that is not all there.
        array: whose chunks have the right shape.
        identity: of the store.
    """
    inside = [*_ENCODINGS[identity.encoding].filters, BytesCodec(), _compressor(identity), Crc32cCodec()]
    ours = ShardingCodec(chunk_shape=array.chunks, codecs=inside)
    return isinstance(array.metadata, ArrayV3Metadata) and codecs == json.loads(json.dumps([ours.to_dict()]))


def _shard(path: Path, entry: ImageEntry) -> Path | None:
    return None if entry.array is None else path / entry.array / f"c.{entry.row}.0.0.0"


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _holds_shards(path: Path) -> bool:
    return any(found.name.count("/") == 1 and "/c." in found.name for found in listing(path))


def _size(array: str) -> tuple[int, int]:
    height, width = array.split("x")
    return int(height), int(width)


def _dimensions(array: str) -> tuple[str, str, str, str]:
    """Names of an array's axes. xarray takes one name for one length in the whole group, so they carry the size."""
    return f"image_{array}", "class", f"y_{array}", f"x_{array}"


def _whole(height: int, strip: int) -> int:
    """Rows of a shard: a whole number of strips."""
    return strip * -(-height // strip)


def _version(path: Path) -> str | None:
    """What changes when the store's table or its settings do; None while there is none."""
    return state(path / "zarr.json")


def _has_content(path: Path) -> bool:
    return bool(size(path))


def _is_there(shard: Path) -> bool:
    """Whether there is something that can be damaged; StoreError if nobody can tell."""
    try:
        return _has_content(shard)
    except OSError as error:
        raise StoreError(f"{shard}: cannot be read ({error.strerror or error})") from error


def _is_damage(error: Exception) -> bool:
    """Whether an error says that a shard's bytes are wrong, and not that memory, threads or the disk failed."""
    return isinstance(error, ValueError) or "blosc" in str(error)


def _finite(logits: np.ndarray) -> bool:
    # NumPy converts half to float slowly; the exponent bits tell as much. One class at a time stays in the cache.
    return not any(bool(((one.view(np.uint16) & 0x7C00) == 0x7C00).any()) for one in logits)


def _within(logits: np.ndarray, limit: float) -> bool:
    # Of halves without their sign the bits are in the order of the values.
    return not bool(((logits.view(np.uint16) & 0x7FFF) > np.float16(limit).view(np.uint16)).any())


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _damaged_metadata(path: Path, error: object) -> str:
    return (
        f"{path}: its metadata cannot be understood ({_one_line(error)}); "
        "put zarr.json back, or start it over with --overwrite"
    )
