"""The compiled library of ``softmax_sums.c``, which adds members of an ensemble without going back to memory.

It is no module of Python: setuptools compiles it as one where there is a compiler, and ctypes loads it, without
Python's headers or its lock. Where it is missing, NumPy and PyTorch compute the same bits, see `softmax`.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

KINDS = ("softmax", "logits", "minimum", "maximum")
"""Sums over the members, by their numbers in the library; for formulas see `MemberSums`."""
LOG2_E = 1.4426950408889634
_SOURCE = Path(__file__).with_name("softmax_sums.c")
_PART = 2**18
"""Pixels of the least work for a thread of its own."""


class _Job(ctypes.Structure):
    """``struct job`` of ``softmax_sums.c``."""

    _fields_ = (
        ("members", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("last", ctypes.c_int64),
        ("logits", ctypes.POINTER(ctypes.c_void_p)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("halves", ctypes.POINTER(ctypes.c_int32)),
        ("temperatures", ctypes.POINTER(ctypes.c_float)),
        ("scales", ctypes.POINTER(ctypes.c_float)),
        ("shares", ctypes.POINTER(ctypes.c_float)),
        ("sums", ctypes.c_void_p * len(KINDS)),
        ("stride", ctypes.c_int64),
        ("needs", ctypes.c_int32),
        ("continues", ctypes.c_int32),
        ("labelled", ctypes.c_int32),
        ("label", ctypes.c_void_p),
        ("highest", ctypes.c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the library; None if there is none of this source, or the processor has no fused multiply-add."""
    for suffix in EXTENSION_SUFFIXES:
        try:
            found = ctypes.CDLL(str(_SOURCE.with_name(f"_library{suffix}")))
            built_from = found.hmsa_source_crc32
        except (OSError, AttributeError):
            continue
        built_from.restype = ctypes.c_uint32
        if built_from() == zlib.crc32(_SOURCE.read_bytes()) and found.hmsa_is_usable():
            found.hmsa_add_members.argtypes = (ctypes.POINTER(_Job),)
            return found
    return None


def is_readable(logits: Tensor) -> bool:
    """Say whether the library is there and reads these logits: in the CPU's memory, float16 or float32."""
    return library() is not None and logits.device.type == "cpu" and logits.dtype in (torch.float16, torch.float32)


@dataclass(frozen=True)
class Highest:
    """Where the label goes: the highest class of the sum ``kind``, ``label`` (P,) uint8, and its ``score`` (P,)."""

    kind: str
    label: Tensor
    score: Tensor


def add_members(
    logits: Sequence[Tensor],
    temperatures: Sequence[float],
    shares: Sequence[float],
    needs: Sequence[str],
    kept: Mapping[str, Tensor],
    highest: Highest | None = None,
    *,
    continues: bool = False,
) -> None:
    """Add members to sums; only where `is_readable` says so. Large work is divided among PyTorch's threads.

    Args:
        logits: M tensors (C, P), float16 or float32, whose last axis is contiguous.
        temperatures, shares: M numbers.
        needs: names of the sums, of `KINDS`.
        kept: those of them that are written, (C, P or more) float32, of equal strides.
        highest: what label is written; none if None.
        continues: whether ``kept``, then all of ``needs``, holds the sums of the members before.

    Raises:
        ValueError: the tensors are not as described; nothing is written.
        MemoryError: there is no room for the pixels in work.
    """
    count, (classes, pixels) = len(logits), logits[0].shape
    _check(logits, kept, highest)
    job = _Job(
        members=count,
        classes=classes,
        logits=(ctypes.c_void_p * count)(*[one.data_ptr() for one in logits]),
        strides=(ctypes.c_int64 * count)(*[one.stride(0) for one in logits]),
        halves=(ctypes.c_int32 * count)(*[one.dtype == torch.float16 for one in logits]),
        temperatures=(ctypes.c_float * count)(*temperatures),
        scales=(ctypes.c_float * count)(*[LOG2_E / temperature for temperature in temperatures]),
        shares=(ctypes.c_float * count)(*shares),
        sums=(ctypes.c_void_p * len(KINDS))(*[kept[kind].data_ptr() if kind in kept else None for kind in KINDS]),
        stride=next(iter(kept.values())).stride(0) if kept else 0,
        needs=sum(1 << KINDS.index(kind) for kind in needs),
        continues=continues,
        labelled=-1 if highest is None else KINDS.index(highest.kind),
        label=None if highest is None else highest.label.data_ptr(),
        highest=None if highest is None else highest.score.data_ptr(),
    )
    in_parts(lambda first, last: _run(job, first, last), pixels)


def _check(logits: Sequence[Tensor], kept: Mapping[str, Tensor], highest: Highest | None) -> None:
    """Raise ValueError for tensors beyond whose ends the library would read or write."""
    (classes, pixels), sums = logits[0].shape, [*kept.values()]
    ends = [] if highest is None else [(highest.label, torch.uint8), (highest.score, torch.float32)]
    rows = [*logits, *sums, *(one for one, _ in ends)]
    if (
        not all(is_readable(one) and one.shape == logits[0].shape for one in logits)
        or not all(one.dtype == torch.float32 and one.stride(0) == sums[0].stride(0) for one in sums)
        or not all(one.shape[0] == classes and one.shape[1] >= pixels for one in sums)
        or not all(one.dtype == dtype and len(one) >= pixels for one, dtype in ends)
        or not all(one.device.type == "cpu" and (one.stride(-1) == 1 or pixels < 2) for one in rows)
    ):
        raise ValueError("sums of members: tensors of other shapes, types, strides or devices than the library reads")


def in_parts(work: Callable[[int, int], None], pixels: int) -> None:
    """Call ``work`` with first pixel and the one behind the last; large work is divided among PyTorch's threads."""
    parts = max(1, min(torch.get_num_threads(), pixels // _PART))
    if parts == 1:
        work(0, pixels)
        return
    bounds = [pixels * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _run(job: _Job, first: int, last: int) -> None:
    own = _Job.from_buffer_copy(job)
    own.first, own.last = first, last
    found = library()
    if found is None or found.hmsa_add_members(ctypes.byref(own)):
        raise MemoryError("no room for the pixels in work")
