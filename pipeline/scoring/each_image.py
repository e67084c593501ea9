"""Counts the images of a dataset one by one, in several processes, and lists those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...datasets.parallel import map_files
from ..runtime.progress import Progress

Counts = TypeVar("Counts")


def count_each_image(
    name: str,
    pairs: Sequence[ImageMaskPair],
    work: Callable[[ImageMaskPair], Counts | str],
    workers: int | None,
    failed: dict[str, str],
) -> Iterator[Counts | None]:
    """Give the counts of each image, in order, and show the progress; None for an image that failed.

    Args:
        name: of what is counted, for the progress line.
        pairs: images and masks.
        work: counts one of them, or says why there are no counts; it is sent to the processes.
        workers: processes; None for one a usable core.
        failed: images that failed -> reasons; filled meanwhile.

    Raises:
        DatasetError: a process was ended from outside.
    """
    with Progress(len(pairs)) as progress:
        progress.job(name, len(pairs))
        for pair, found in zip(pairs, map_files(work, pairs, workers, together=1), strict=True):
            if isinstance(found, str):
                failed[pair.image] = found
                yield None
            else:
                yield found
            progress.advance()
