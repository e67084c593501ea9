"""Reads the files of `torch.save` without torch: their pickle by an unpickler that calls only its own functions.

The format is that of torch's ``serialization`` module since 1.6: an uncompressed zip archive with one pickle,
``<name>/data.pkl``, and a file ``<name>/data/<key>`` for each storage. The pickle makes a tensor of a storage by
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_END, _LOCATOR = 22, 20  # bytes of the records at the end of an archive
_PLAIN_FLAGS = 0x0808  # sizes behind the content, too; names in UTF-8
_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_PROTOCOL_2 = b"\x80\x02"
"""Beginning of the pickles that ``torch.load(weights_only=True)`` takes."""
_LOCAL_HEADER = 30


class Opaque:
    """Takes the place of what is no weight, such as a scalar of NumPy."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Storage(NamedTuple):
    values: np.ndarray


def _tensor(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> np.ndarray:
    """Take the place of ``torch._utils._rebuild_tensor_v2``."""
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("no tensor")
    values = storage.values
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(values):
        raise ValueError("a tensor leaves its storage")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


def _parameter(tensor: object, *_: object) -> object:
    """Take the place of ``torch._utils._rebuild_parameter``."""
    return tensor


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.dtype": Opaque,
    "_codecs.encode": Opaque,  # makes the bytes of a scalar
    **{f"numpy.{core}.multiarray.scalar": Opaque for core in ("core", "_core")},
    **{f"torch.{name}": np.dtype(code) for name, code in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads one archive's pickle; asks for other names than `_NAMES` are refused."""

    def __init__(self, pickled: bytes, archive: zipfile.ZipFile, prefix: str, content: mmap.mmap) -> None:
        super().__init__(BytesIO(pickled))
        self._archive, self._prefix, self._content = archive, prefix, content
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[f"{module}.{name}"]
        except KeyError:
            raise ValueError(f"{module}.{name} is no part of weights") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("no storage")
        found = self._storages.get(key)
        if found is None:
            start, length = self._place(f"{self._prefix}/data/{key}")
            if length != count * dtype.itemsize:
                raise ValueError("a storage is cut short")
            found = self._storages[key] = _Storage(np.frombuffer(self._content, dtype, count, start))
        elif (found.values.dtype, len(found.values)) != (dtype, count):
            raise ValueError("a storage is of two kinds")
        return found

    def _place(self, name: str) -> tuple[int, int]:
        """Offset and length of an uncompressed file of the archive."""
        entry = self._archive.getinfo(name)
        header = self._content[entry.header_offset : entry.header_offset + _LOCAL_HEADER]
        extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + _LOCAL_HEADER + extra
        if header[:4] != b"PK\x03\x04" or start + entry.file_size > len(self._content):
            raise ValueError("a storage is cut short")
        return start, entry.file_size


def _require_one_disk(content: mmap.mmap) -> None:
    """Raise ValueError for an archive of several disks, or of none: zipfile takes no notice of them, but torch does.

    The two records at the end are 4.3.15 and 4.3.16 of APPNOTE 6.3 of the zip format; the first is not in every file.
    """
    *_, mine, first, entries, all_entries = struct.unpack_from("<4s4H", content, len(content) - _END)
    disks = (0, 1)
    if content[-_END - _LOCATOR : -_END].startswith(b"PK\x06\x07"):
        _, disk, _, count = struct.unpack_from("<4sLQL", content, len(content) - _END - _LOCATOR)
        disks = disk, count
    if (mine, first) != (0, 0) or entries != all_entries or disks != (0, 1):
        raise ValueError("an archive of several disks")


def _require_plain(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise ValueError for entries that torch cannot read; zipfile looks only at those asked for."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed")
        if entry.volume or entry.flag_bits & ~_PLAIN_FLAGS:
            raise ValueError(f"{entry.filename} is encrypted, or on another disk")


def read_archive(path: Path) -> Any:
    """Read a file that `torch.save` wrote; tensors are arrays that view the file.

    Raises:
        OSError: the file cannot be read.
        Exception: of any other kind: it is no such file, is damaged, or holds what is read with torch alone.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _require_one_disk(content)
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        prefix = name.removesuffix("/data.pkl")
        if f"{prefix}/constants.pkl" in archive.namelist():
            raise ValueError("a TorchScript program")
        _require_plain(archive.infolist())
        int(archive.read(f"{prefix}/version"))
        if f"{prefix}/byteorder" in archive.namelist() and archive.read(f"{prefix}/byteorder") != b"little":
            raise ValueError("bytes in another order")
        pickled = archive.read(name)
        if not pickled.startswith(_PROTOCOL_2):
            raise ValueError("another protocol of pickle")
        return _Unpickler(pickled, archive, prefix, content).load()
