"""The logit store: one Zarr v3 group per dataset and model, one shard file per image.

The only file of the package that knows Zarr. What holds of every store:

* an image is complete if and only if its shard exists and is not empty, because a shard is written
  under a temporary name, flushed, and renamed into place by the one writer that owns the store's lock;
* the table of images in the attributes is the truth, the arrays follow it: a process that died between
  the two leaves a store that the next writer completes;
* equal work gives equal bytes: no times, hosts or failures are kept in a store.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from ..errors import StoreError
from ..files import is_partial, write_bytes

FORMAT_VERSION = 1
_STRIP_BYTES = 5 * 2**20


class DamagedShardError(StoreError):
    """A shard that is there but does not decode to finite logits."""


@dataclass(frozen=True)
class ImageEntry:
    """One row of a store's table of images.

    ``path`` is relative to the dataset's root, with ``/``; ``bytes`` is the size of the photograph's
    file. ``height``, ``width``, ``array`` and ``row`` are None for a file whose header cannot be read:
    it has no place in an array and is never complete.
    """

    path: str
    bytes: int
    height: int | None
    width: int | None
    array: str | None
    row: int | None


@dataclass(frozen=True)
class Photograph:
    """A photograph as the dataset shows it now; ``size`` is (height, width), None if undecodable."""

    path: str
    bytes: int
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Identity:
    """What a store's logits were made with; only work of one identity is ever mixed in one store.

    Attributes:
        model: the member's name.
        architecture: its name in the registry, or ``external`` for imported logits.
        checkpoint: file name of the checkpoint, None for imported logits.
        sha256: of the checkpoint's content; the file may be renamed, its content may not change.
        scales: inference scales, ascending.
        flip: whether logits of the mirrored image were averaged in.
        precision: fp16, bf16 or fp32, as really computed; None for imported logits, as scales and flip.
        classes: names of the C classes, in train-id order.
        preprocessing: how pixels became the network's input.
        encoding: name of the chunk encoding.
        source: for imported logits, where they came from and which channels were taken.
    """

    model: str
    architecture: str
    checkpoint: str | None
    sha256: str | None
    scales: tuple[float, ...] | None
    flip: bool | None
    precision: str | None
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any] | None
    encoding: str = "lossless"
    source: Mapping[str, Any] | None = None

    def differences(self, other: Identity) -> list[str]:
        """Every setting in which ``other`` is another work, as ``name: mine, now: other's``."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {_plain(mine[name])} there, {_plain(theirs[name])} now"
            for name in mine
            if name != "checkpoint" and _plain(mine[name]) != _plain(theirs[name])
        ]


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


class _DurableStore(LocalStore):
    """A local store whose every write is atomic and flushed to the disk.

    zarr's own LocalStore renames into place without a flush, and after a power cut a shard may then
    exist with nothing in it that was written.
    """

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        write_bytes(self.root / key, value.to_bytes())


def strip_rows(classes: int, height: int, width: int) -> int:
    """Rows R of one chunk: a power of two of about 5 MiB for all classes, at most the height."""
    rows = 2 ** max(3, int(math.log2(max(1, _STRIP_BYTES // (classes * width * 2)))))
    return min(rows, height)


class LogitStore:
    """Logits of one model over one dataset, float16, shape (C, H, W) an image.

    Make one with `create`, or `open` what is there. Reading needs no lock; whoever opens with
    ``writable=True`` holds the store's lock (`pipeline.lock`).
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        self._arrays: dict[str, zarr.Array] = {}
        self._load()

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a store was begun at ``path``."""
        return (path / "zarr.json").is_file()

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
                **_plain(asdict(identity)),
                **versions,
                "images": [],
            }
            group = zarr.create_group(_DurableStore(path), zarr_format=3, attributes=attributes)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created ({error.strerror}); choose another --output") from error
        return cls(path, group)

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
            return cls.create(path, identity, versions)
        store = cls.open(path, writable=True)
        store.require(identity)
        for folder, _, names in os.walk(path):
            for name in filter(is_partial, names):
                Path(folder, name).unlink(missing_ok=True)
        return store

    def require(self, identity: Identity) -> None:
        """Raise StoreError if the store was made with other settings than ``identity``."""
        differences = self.identity.differences(identity)
        if differences:
            raise StoreError(
                f"{self.path}: was made with other settings ({'; '.join(differences)}); "
                "use those, another --output, or start it afresh with --overwrite"
            )

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a whole store, its metadata first, so that half of one is never taken for a store."""
        (path / "zarr.json").unlink(missing_ok=True)
        if path.exists():
            shutil.rmtree(path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> LogitStore:
        """Open a store.

        Raises:
            StoreError: there is none, it is of another format version, or its metadata are damaged.
        """
        if not cls.exists(path):
            raise StoreError(f"{path}: there is no store; make it with 'hmsa-pipeline dump'")
        try:
            group = zarr.open_group(
                _DurableStore(path, read_only=not writable),
                mode="r+" if writable else "r",
                use_consolidated=False,
            )
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:
            raise StoreError(_damaged_metadata(path, error)) from error
        return cls(path, group)

    def _load(self) -> None:
        attributes: dict[str, Any] = dict(self._group.attrs)
        version = attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{self.path}: is of format version {version}, this hmsa-pipeline reads {FORMAT_VERSION}; "
                "use the version that wrote it, or start it afresh with --overwrite"
            )
        try:
            names = [f.name for f in fields(Identity)]
            known: dict[str, Any] = {name: attributes[name] for name in names}
            for name in ("scales", "classes"):
                known[name] = None if known[name] is None else tuple(known[name])
            self.identity = Identity(**known)
            self.images = [ImageEntry(**entry) for entry in attributes["images"]]
        except (KeyError, TypeError) as error:
            raise StoreError(_damaged_metadata(self.path, error)) from error
        self.index = {entry.path: i for i, entry in enumerate(self.images)}
        for entry in self.images:
            parts = PurePosixPath(entry.path).parts
            if not parts or ".." in parts or PurePosixPath(entry.path).is_absolute() or "\\" in entry.path:
                raise StoreError(f"{self.path}: lists the image {entry.path!r}, which leaves the output folder")

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
            StoreError: a photograph changed since its logits were stored.
        """
        complete = self.complete()
        images = list(self.images)
        rows = {name: self._rows(images, name) for name in {e.array for e in images if e.array}}
        changed, renewed, added = [], 0, 0
        for photo in photographs:
            known = self.index.get(photo.path)
            if known is not None and images[known].bytes == photo.bytes:
                continue
            if known is not None and complete[known]:
                changed.append(photo.path)
                continue
            entry = self._place(photo, rows)
            if known is None:
                images.append(entry)
                added += 1
            else:
                images[known] = entry
                renewed += 1
        if changed:
            raise StoreError(
                f"{self.path}: {len(changed)} photographs have another size in bytes than when their logits were "
                f"stored (first: {changed[0]}); put the old files back, or start afresh with --overwrite"
            )
        if added or renewed:
            self._group.attrs["images"] = [asdict(entry) for entry in images]
            self._load()
        self._make_arrays()
        return added

    @staticmethod
    def _rows(images: Sequence[ImageEntry], array: str) -> int:
        return 1 + max((e.row for e in images if e.array == array and e.row is not None), default=-1)

    @staticmethod
    def _place(photo: Photograph, rows: dict[str, int]) -> ImageEntry:
        if photo.size is None:
            return ImageEntry(photo.path, photo.bytes, None, None, None, None)
        height, width = photo.size
        array = f"{height}x{width}"
        row = rows[array] = rows.get(array, 0) + 1
        return ImageEntry(photo.path, photo.bytes, height, width, array, row - 1)

    def _make_arrays(self) -> None:
        for name in dict.fromkeys(e.array for e in self.images if e.array):
            count = self._rows(self.images, name)
            height, width = (int(n) for n in name.split("x"))
            shape = (count, self.classes, height, width)
            if name not in self._group:
                rows = strip_rows(self.classes, height, width)
                self._group.create_array(
                    name,
                    shape=shape,
                    dtype="float16",
                    fill_value=np.float16("nan"),
                    chunks=(1, self.classes, rows, width),
                    shards=(1, self.classes, rows * -(-height // rows), width),
                    compressors=[
                        BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.shuffle),
                        Crc32cCodec(),
                    ],
                    chunk_key_encoding={"name": "default", "separator": "."},
                )
            elif self._array(name).shape[0] < count:
                self._array(name).resize(shape)
        self._arrays.clear()

    # ------------------------------------------------------------------ shards

    def shard_path(self, index: int) -> Path | None:
        """The shard file of image ``index``; None for an image that has no place in an array."""
        entry = self.images[index]
        return None if entry.array is None else self.path / entry.array / f"c.{entry.row}.0.0.0"

    def shard_sizes(self) -> list[int | None]:
        """Size in bytes of every image's shard, None where there is none. One scan per array."""
        found: dict[tuple[str, str], int] = {}
        for array in {e.array for e in self.images if e.array}:
            try:
                with os.scandir(self.path / array) as scan:
                    for file in scan:
                        if file.name.startswith("c.") and not is_partial(file.name):
                            found[array, file.name] = file.stat().st_size
            except FileNotFoundError:
                continue
        return [found.get((e.array or "", f"c.{e.row}.0.0.0")) for e in self.images]

    def complete(self) -> list[bool]:
        """For every image whether its shard exists and is not empty."""
        return [bool(size) for size in self.shard_sizes()]

    def _array(self, name: str) -> zarr.Array:
        array = self._arrays.get(name)
        if array is None:
            try:
                node = self._group[name]
            except KeyError as error:
                raise StoreError(_damaged_metadata(self.path, f"array {name} is missing")) from error
            except ValueError as error:
                raise StoreError(_damaged_metadata(self.path, error)) from error
            if not isinstance(node, zarr.Array):
                raise StoreError(_damaged_metadata(self.path, f"{name} is no array"))
            # A strip of zeros would else be left out of the shard and read back as NaN; the setting
            # is not kept with the array.
            array = self._arrays[name] = node.with_config({"write_empty_chunks": True})
        return array

    def write(self, index: int, logits: np.ndarray) -> None:
        """Store one image: all of it or, after any failure, nothing.

        Args:
            index: row in the table of images.
            logits: (C, H, W) float16, finite.

        Raises:
            ValueError: another shape or dtype.
            StoreError: the logits are not finite in float16.
            OSError: the disk is full or cannot be written.
        """
        entry = self.images[index]
        if entry.array is None or entry.row is None or logits.shape != (self.classes, entry.height, entry.width):
            raise ValueError(f"{entry.path}: logits of shape {logits.shape} do not fit {entry.array}")
        if logits.dtype != np.float16:
            raise ValueError(f"{entry.path}: logits are {logits.dtype}, not float16")
        if not _finite(logits):
            raise StoreError(
                f"{entry.path}: the logits of '{self.identity.model}' are not finite in float16; "
                "try --precision bf16 or fp32"
            )
        self._array(entry.array)[entry.row : entry.row + 1] = logits[None]

    def read(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows ``start`` to ``stop`` of one image's logits, (C, rows, W) float16.

        Raises:
            StoreError: the image is not complete, or the disk cannot be read.
            DamagedShardError: the shard does not decode.
        """
        entry, shard = self.images[index], self.shard_path(index)
        if entry.array is None or entry.row is None or shard is None or not _has_content(shard):
            raise StoreError(f"{self.path}: has no logits of {entry.path}; make them with 'hmsa-pipeline dump'")
        try:
            block = self._array(entry.array)[entry.row, :, start:stop, :]
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{shard}: cannot be read ({error.strerror or error})") from error
        except Exception as error:
            raise DamagedShardError(
                f"{shard}: the logits of {entry.path} are damaged ({_one_line(error)}); "
                "mend with 'hmsa-pipeline verify --repair' and 'hmsa-pipeline dump'"
            ) from error
        return np.asarray(block)

    def strips(self, index: int) -> list[tuple[int, int]]:
        """(start, stop) rows of an image's chunks, the cheapest pieces to `read`."""
        entry = self.images[index]
        if entry.height is None or entry.width is None:
            return []
        rows = strip_rows(self.classes, entry.height, entry.width)
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


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _finite(logits: np.ndarray) -> bool:
    # NumPy converts half to float slowly; the exponent bits tell as much.
    return not bool(((logits.view(np.uint16) & 0x7C00) == 0x7C00).any())


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _damaged_metadata(path: Path, error: object) -> str:
    return (
        f"{path}: its metadata cannot be understood ({_one_line(error)}); "
        "put zarr.json back, or start it afresh with --overwrite"
    )
