"""Photographs decoded ahead of the network, as far as the memory for it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..datasets.images import decode_image
from ..datasets.walk import located
from ..errors import DatasetError
from .block import Report
from .store import ImageEntry

READ_BYTES = 256 * 2**20
AHEAD = 12
"""At most so many decoded photographs wait for the network."""


def decoded(
    root: Path,
    entries: Sequence[ImageEntry],
    report: Report,
    *,
    threads: int,
    pinned: bool = False,
    exif: bool = False,
) -> Generator[tuple[ImageEntry, Tensor | DatasetError]]:
    """Photographs (3, H, W) uint8 in order, each with its entry; a DatasetError for one that is not as it must be.

    Args:
        root: the folder that their paths are relative to.
        entries: the photographs, and the sizes that they must have.
        report: is told what is in work.
        threads: that decode; decoders work outside of Python's lock.
        pinned: whether they lie in memory that a GPU copies from while it computes.
        exif: whether they are turned as EXIF says.
    """
    waiting: deque[tuple[ImageEntry, int, Future[Tensor | DatasetError]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "read") as readers:
        try:
            for entry in entries:
                size = 3 * (entry.height or 0) * (entry.width or 0)
                while waiting and (held + size > READ_BYTES or len(waiting) >= AHEAD):
                    first, first_size, future = waiting.popleft()
                    yield first, future.result()
                    held -= first_size
                held += size
                waiting.append((entry, size, readers.submit(_decode, root, entry, report, pinned, exif)))
            for entry, _, future in waiting:
                yield entry, future.result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def _decode(root: Path, entry: ImageEntry, report: Report, pinned: bool, exif: bool) -> Tensor | DatasetError:
    path = located(root, entry.path)
    try:
        with report.at_work(entry.path):
            image = decode_image(path, exif)
    except DatasetError as error:
        return error
    except MemoryError:
        return DatasetError(f"{path}: does not fit into memory")
    if tuple(image.shape[1:]) != (entry.height, entry.width):
        return DatasetError(
            f"{path}: is {image.shape[1]}x{image.shape[2]} and was {entry.height}x{entry.width} "
            "when the store was begun; put the old file back, or start over with --overwrite"
        )
    return image.pin_memory() if pinned else image
