"""Zarr's part of a logit store: its storage classes, the group's attributes, the arrays and their codecs."""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numcodecs import Blosc
from numcodecs.pcodec import PCodec
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs import numcodecs as numcodecs_in_zarr
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore, ObjectStore

from ...errors import StoreError, cannot_read, reason
from ..storage.filesystem import is_remote, read_bytes, version_tag, write_bytes
from ..storage.object_client import as_oserror, connection
from ..storage.object_store import address
from .fixed_point import FixedPoint
from .identity import StoreIdentity
from .image_table import ImageEntry, ImageTable, ListedColumns
from .table_columns import TableColumns

FORMAT_VERSION = 2
LISTED_VERSION = 1
"""Format whose table of images is a list among the attributes; the next writer of such a store converts it."""
STRIP_BYTES = 5 * 2**20
"""Largest size of a chunk of more than 8 rows, before compression; part of the format, as the version is."""


class Encoding(NamedTuple):
    """The codecs of one value of ``store.encoding``.

    Attributes:
        filters: codecs that turn float16 into what is compressed.
        compressor: compresses a chunk.
    """

    filters: tuple[FixedPoint, ...]
    compressor: Blosc | PCodec


ENCODINGS = {
    "lossless": Encoding((), Blosc("lz4", 5, Blosc.SHUFFLE)),
    # Given a choice, pcodec may find a delta or a mode that is read at a fifth of the speed.
    "small": Encoding((), PCodec(8, mode_spec="classic", delta_spec="try_consecutive", delta_encoding_order=2)),
    "compact": Encoding((FixedPoint(),), Blosc("zstd", 3, Blosc.BITSHUFFLE)),
}
_SHUFFLES: dict[int, Literal["shuffle", "bitshuffle"]] = {Blosc.SHUFFLE: "shuffle", Blosc.BITSHUFFLE: "bitshuffle"}

# Zarr's warning that codecs of numcodecs are outside of its specification; docs/store.md says who reads them.
warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3 specification")


class DamagedShardError(StoreError):
    """A shard exists but does not decode to finite logits."""


class DurableStore(LocalStore):
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


class _RemoteStore(ObjectStore):
    """A store in an object store, where an object appears whole; errors of its library become OSError."""

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        with as_oserror(root):
            super().__init__(connection(*address(root)), read_only=read_only)
        self._root = root

    def with_read_only(self, read_only: bool = False) -> _RemoteStore:
        return _RemoteStore(self._root, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        with as_oserror(self._root / key):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        with as_oserror(self._root / key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # zarr's own is one conditional write. Servers that ignore the condition would lose the table of images, which
        # zarr "creates" with each array. A store has one writer.
        if not await self.exists(key):
            await self.set(key, value)

    async def exists(self, key: str) -> bool:
        with as_oserror(self._root / key):
            return await super().exists(key)


def zarr_store(path: Path, *, read_only: bool = False) -> Store:
    """Make the storage object through which Zarr reads and writes the store at ``path``."""
    return _RemoteStore(path, read_only=read_only) if is_remote(path) else DurableStore(path, read_only=read_only)


def open_group(path: Path, *, writable: bool = False) -> zarr.Group:
    """Open the group of a store.

    Raises:
        StoreError: the store cannot be read, or its metadata are damaged.
    """
    try:
        mode = "r+" if writable else "r"
        store = zarr_store(path, read_only=not writable)
        # Otherwise Zarr also asks for the three files of format 2.
        return zarr.open_group(store, mode=mode, use_consolidated=False, zarr_format=3)
    except OSError as error:
        raise StoreError(cannot_read(path, error)) from error
    except Exception as error:
        raise StoreError(_damaged_metadata(path, error)) from error


def read_table(path: Path, group: zarr.Group) -> tuple[StoreIdentity, ImageTable]:
    """Read a store's identity, and begin to read its table of images.

    Raises:
        StoreError: the attributes are damaged, or of another format version.
    """
    try:
        attributes: dict[str, Any] = dict(group.attrs)
        version = attributes["format_version"]
        if version in (FORMAT_VERSION, LISTED_VERSION):
            identity = StoreIdentity.from_json(attributes)
            if identity.encoding not in ENCODINGS:
                raise ValueError(f"unknown encoding {identity.encoding!r}")
            return identity, _table(path, attributes["images"], version)
    except OSError as error:
        raise StoreError(cannot_read(path, error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(_damaged_metadata(path, error)) from error
    raise StoreError(
        f"{path}: is of format version {version}, this hmsa-pipeline reads {LISTED_VERSION} and "
        f"{FORMAT_VERSION}; "
        "use the version that wrote it, or start it over with --overwrite"
    )


def _table(path: Path, images: Any, version: int) -> ImageTable:
    """Return the table of what the attribute ``images`` holds; ValueError if it is damaged."""
    if version == LISTED_VERSION:
        listed = ListedColumns(images)
        return ImageTable(path, listed, len(listed))
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        raise ValueError(f"{images!r} is no number of images")
    columns = TableColumns(path)
    columns.require(images)
    return ImageTable(path, columns, images)


def require_same_table(path: Path, seen: str | None, identity: StoreIdentity, entry: ImageEntry) -> str | None:
    """Check that a store has the same identity and row of an image as when it was opened.

    Args:
        path: folder of the store.
        seen: `table_version` when the store was opened.
        identity: the store's identity then.
        entry: the image's row of the table then.

    Returns:
        The table's version now.

    Raises:
        StoreError: the store was started over, or the image's row changed.
    """
    version = table_version(path)
    if version != seen:
        now, images = read_table(path, open_group(path))
        (index,) = images.locate([entry.path]).tolist()
        if now.differences(identity) or index < 0 or images[index] != entry:
            raise StoreError(f"{path}: was started over meanwhile; run the same command again")
    return version


def strip_rows(classes: int, height: int, width: int) -> int:
    """Compute the rows R of a chunk: a power of two such that (C, R, W) float16 is about 5 MiB, at most the height.

    Args:
        classes: C, the number of classes.
        height, width: of the image, in pixels.
    """
    rows = 2 ** max(3, int(math.log2(max(1, STRIP_BYTES // (classes * width * 2)))))
    return min(rows, height)


def open_array(store: Any, path: Path, name: str, identity: StoreIdentity) -> zarr.Array:
    """Open the array of all images of one size.

    Args:
        store: Zarr's storage object, see `zarr_store`.
        path: folder of the store, for messages.
        name: of the array, ``HxW``.
        identity: of the store.

    Raises:
        StoreError: the array's metadata are damaged, or not those that this version writes.
    """
    try:
        node = zarr.open_array(store, path=name, mode="r" if store.read_only else "r+", zarr_format=3)
        codecs = json.loads(read_bytes(path / name / "zarr.json"))["codecs"]
        if not _fits(node, name, identity) or not _has_codecs(codecs, node, identity):
            raise ValueError("is not the array that the table of images calls for")
    except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError, FileNotFoundError) as error:
        raise StoreError(
            f"{path / name / 'zarr.json'}: cannot be understood ({reason(error)}); remove this one "
            "file, the next 'hmsa-pipeline dump' or 'import-logits' writes it again"
        ) from error
    # Otherwise Zarr compares every strip with the fill value. The setting is not stored with the array.
    return node.with_config({"write_empty_chunks": True})


def _fits(array: zarr.Array, name: str, identity: StoreIdentity) -> bool:
    """Say whether shape, dtype and chunks of an array are those of the store; its metadata have no checksum."""
    height, width = array_size(name)
    classes = len(identity.classes)
    strip = strip_rows(classes, height, width)
    return (
        array.shape[1:] == (classes, height, width)
        and array.dtype == np.float16
        and array.chunks == (1, classes, strip, width)
        and array.shards == (1, classes, shard_rows(height, strip), width)
        and array.metadata.encode_chunk_key((3, 2, 1, 0)) == "c.3.2.1.0"
        and bool(np.isnan(array.fill_value))
    )


class ChunkCodecs(NamedTuple):
    """The codecs of an array's chunks, in their order.

    Attributes:
        filters: array to array.
        serializer: array to bytes.
        compressors: bytes to bytes, a checksum at the end.
    """

    filters: tuple[FixedPoint, ...]
    serializer: ArrayBytesCodec
    compressors: tuple[BytesBytesCodec, ...]


def chunk_codecs(identity: StoreIdentity) -> ChunkCodecs:
    """Make the codecs of the store's chunks."""
    filters, compressor = ENCODINGS[identity.encoding]
    if isinstance(compressor, PCodec):
        serializer = numcodecs_in_zarr.PCodec(
            level=compressor.level,
            mode_spec=compressor.mode_spec,
            delta_spec=compressor.delta_spec,
            delta_encoding_order=compressor.delta_encoding_order,
        )
        return ChunkCodecs(filters, serializer, (Crc32cCodec(),))
    blosc = BloscCodec(
        typesize=2, cname=compressor.cname, clevel=compressor.clevel, shuffle=_SHUFFLES[compressor.shuffle]
    )
    return ChunkCodecs(filters, BytesCodec(), (blosc, Crc32cCodec()))


def _has_codecs(codecs: Any, array: zarr.Array, identity: StoreIdentity) -> bool:
    """Say whether the array's codecs are those that this version writes.

    Args:
        codecs: as they stand in the file, since Zarr's versions differ in how they complete an incomplete codec.
        array: has chunks of the right shape.
        identity: of the store.
    """
    filters, serializer, compressors = chunk_codecs(identity)
    inside = [*filters, serializer, *compressors]
    written = ShardingCodec(chunk_shape=array.chunks, codecs=inside)
    return isinstance(array.metadata, ArrayV3Metadata) and codecs == json.loads(json.dumps([written.to_dict()]))


def array_size(array: str) -> tuple[int, int]:
    """Read (height, width) off an array's name, ``HxW``."""
    height, width = array.split("x")
    return int(height), int(width)


def dimension_names(array: str) -> tuple[str, str, str, str]:
    """Name an array's axes. In xarray a name has one length in the whole group, so the names hold the size."""
    return f"image_{array}", "class", f"y_{array}", f"x_{array}"


def shard_rows(height: int, strip: int) -> int:
    """Compute the rows of a shard: the height rounded up to full strips of ``strip`` rows."""
    return strip * -(-height // strip)


def table_version(path: Path) -> str | None:
    """Return a tag that changes with the store's table or settings; None if there is no store."""
    return version_tag(path / "zarr.json")


def _damaged_metadata(path: Path, error: Exception) -> str:
    return (
        f"{path}: its metadata cannot be understood ({reason(error)}); "
        "put zarr.json back, or start it over with --overwrite"
    )
