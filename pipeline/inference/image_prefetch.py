"""Decodes photographs ahead of the network, within a memory budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ...datasets.decode.tensors import decode_image
from ...datasets.layout.folder_layout import located
from ...errors import DatasetError
from ..store.image_table import ImageEntry
from ..workers.protocol import ProgressReporter

READ_BYTES = 256 * 2**20
MAX_AHEAD = 12
"""Upper bound of the decoded photographs that wait for the network."""


def prefetch_images(
    root: Path,
    entries: Sequence[ImageEntry],
    report: ProgressReporter,
    *,
    threads: int,
    pinned: bool = False,
    exif: bool = False,
) -> Generator[tuple[ImageEntry, Tensor | DatasetError]]:
    """Decode photographs in order.

    Args:
        root: folder that their paths are relative to.
        entries: the photographs, with the sizes that they must have.
        report: is told which photographs are in work.
        threads: number of threads that decode; decoders release Python's lock.
        pinned: return them in pinned memory, which a GPU copies from while it computes.
        exif: turn them as their EXIF orientation says.

    Yields:
        each entry with its photograph (3, H, W) uint8, or with the DatasetError that says why it cannot be used.
    """
    waiting: deque[tuple[ImageEntry, int, Future[Tensor | DatasetError]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "read") as readers:
        try:
            for entry in entries:
                size = 3 * entry.pixels
                while waiting and (held + size > READ_BYTES or len(waiting) >= MAX_AHEAD):
                    first, first_size, future = waiting.popleft()
                    yield first, future.result()
                    held -= first_size
                held += size
                waiting.append((entry, size, readers.submit(_decode, root, entry, report, pinned, exif)))
            for entry, _, future in waiting:
                yield entry, future.result()
        finally:
            readers.shutdown(wait=False, cancel_futures=True)


def _decode(
    root: Path, entry: ImageEntry, report: ProgressReporter, pinned: bool, exif: bool
) -> Tensor | DatasetError:
    path = located(root, entry.path)
    try:
        with report.working_on(entry.path):
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
