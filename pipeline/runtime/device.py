"""Devices, the threads and precisions they compute with, and torch's errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...errors import ManifestError

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision -> dtype in which autocast computes; fp32 needs none."""


def resolve_device(name: str) -> torch.device:
    """Find the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names; `ManifestError` if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not (found := re.fullmatch(r"(cpu)|cuda(?::(\d{1,3}))?", name)):
        raise ManifestError(f"--device {name}: is no device; use auto, cpu, cuda or cuda:N")
    if found[1]:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found[2] or 0) >= count:
        there = f"{count} CUDA devices are" if count != 1 else "one CUDA device is"
        raise ManifestError(f"--device {name}: {there} there; use --device auto or cpu")
    return torch.device("cuda", int(found[2])) if found[2] else torch.device("cuda")


def resolve_devices(name: str) -> list[torch.device]:
    """Find the devices that ``auto``, ``cpu``, ``cuda`` (all GPUs), ``cuda:N`` or ``cuda:N,M`` names.

    Raises:
        ManifestError: there is no such device, or one is named twice.
    """
    if found := re.fullmatch(r"cuda:(\d{1,3}(?:,\d{1,3})+)", name):
        numbers = [int(number) for number in found[1].split(",")]
        if len(set(numbers)) < len(numbers):
            raise ManifestError(f"--device {name}: names a device twice; name each once")
        return [resolve_device(f"cuda:{number}") for number in numbers]
    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [device]


def device_name(device: torch.device) -> str:
    """Describe a device for people: the GPU's model, or the number of threads that the CPU computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread meanwhile, in a block or a function that this decorates.

    Where several images are in work, more threads get into each other's way.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resolve_precision(wanted: str, device: torch.device) -> tuple[str, str | None]:
    """Return the precision that is really used, and a note for the user if it is not the one wanted.

    Raises:
        ManifestError: the GPU cannot compute in bf16.
    """
    if wanted == "fp16" and device.type == "cpu":
        return "fp32", "precision: a CPU computes no fp16, fp32 is used (and written down as such)"
    if wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ManifestError("precision bf16: this GPU does not compute it; use --precision fp16")
    return wanted, None


def is_out_of_memory(error: Exception) -> bool:
    """Say whether torch ran out of memory, which only on CUDA the error's type tells."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        phrase in str(error) for phrase in ("can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED")
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error of torch, with the next one if the first ends with a colon."""
    said = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        said = f"{said} {line}".strip()
        if not line.endswith(":"):
            break
    return said or "no reason given"
