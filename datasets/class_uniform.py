"""Class-uniform sampling: where each class lies in a dataset, and epochs that show every class equally often.

Zhu, Sapra et al., "Improving Semantic Segmentation via Video Propagation and Label Relaxation", CVPR 2019
(arXiv 1812.01593, section 3.4): part of each epoch is crops around places of a class, an equal number per class,
so that rare classes are seen as often as roads. A mask is cut into tiles; the places are the centres of mass of
each class in each tile. Nothing here imports torch, so that processes which only count pixels start fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import disk_error
from ..files import write_bytes
from .decode.image_header import read_size
from .labels.mask_reader import MaskReader, file_bytes
from .layout.folder_layout import located
from .layout.image_mask_pairs import ImageMaskPair
from .parallel import map_files
from .taxonomy import NUM_CLASSES

# Raised whenever the same masks would give other centroids than before: older caches are then not found.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class CentroidIndex:
    """Where the classes lie in the images of a dataset."""

    centroids: NDArray[np.int32]
    """(n, 4): image (its place in the list of pairs), class, x, y in pixels; by image, class, tile."""


def tile_centroids(labels: NDArray[np.uint8], tile: int, num_classes: int = NUM_CLASSES) -> NDArray[np.int32]:
    """The centre of mass of each class in each tile of a mask.

    Only whole tiles count: what remains at the right and at the bottom is not looked at. A side shorter than
    ``tile`` is one tile. One pixel is enough for a class to count.

    Args:
        labels: (H, W) uint8 train ids; ids from ``num_classes`` on count as no class.
        tile: side of the tiles in pixels.
        num_classes: how many classes there are.

    Returns:
        (n, 3) int32: class, x, y, rounded down to whole pixels; by class, then by tile, row by row.

    Raises:
        ValueError: another shape or dtype, no pixels, or a tile or a number of classes below 1.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2 or not labels.size:
        raise ValueError(f"expected (H, W) uint8, got {labels.shape} {labels.dtype}")
    if tile < 1 or num_classes < 1:
        raise ValueError(f"tiles of {tile} pixels and {num_classes} classes: both must be at least 1")
    tile_height, tile_width = (min(tile, side) for side in labels.shape)
    rows, columns = labels.shape[0] // tile_height, labels.shape[1] // tile_width
    height, width = rows * tile_height, columns * tile_width
    flat = np.ascontiguousarray(labels[:height, :width]).reshape(-1)

    # Masks are made of areas, so of horizontal runs a hundred times fewer than pixels: once these are found, by
    # one comparison of each pixel with its left neighbour, all sums are over runs.
    begins = np.empty(flat.size, dtype=np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins.reshape(height, columns, tile_width)[:, :, 0] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=flat.size)
    classes = flat[starts]
    known = classes < num_classes
    starts, lengths, classes = starts[known], lengths[known], classes[known].astype(np.intp)

    y, x = np.divmod(starts, width)
    groups = (classes * rows + y // tile_height) * columns + x // tile_width
    # Weights are added up in float64, which holds these integers exactly.
    sums = partial(np.bincount, groups, minlength=num_classes * rows * columns)
    areas = sums(weights=lengths)
    found = np.flatnonzero(areas)
    areas = areas[found].astype(np.int64)
    twice_x = sums(weights=lengths * (2 * x + lengths - 1))[found].astype(np.int64)
    all_y = sums(weights=lengths * y)[found].astype(np.int64)
    return np.stack([found // (rows * columns), twice_x // (2 * areas), all_y // areas], axis=1).astype(np.int32)


def build_index(
    reader: MaskReader,
    pairs: Sequence[ImageMaskPair],
    tile: int,
    *,
    cache: Path | None = None,
    advance: Callable[[], None] = lambda: None,
    processes: int | None = None,
) -> CentroidIndex:
    """The centroids of all masks, from the cache where they were computed before.

    A cache file is named after all that its content depends on: the paths, encodings and sizes in bytes of the
    masks, the table from raw ids to train ids, tile and number of classes. One that is damaged is replaced.

    Args:
        reader: of the masks; polygons must have been prepared.
        pairs: images and their masks.
        tile: side of the tiles in pixels.
        cache: folder for ``class_uniform-<fingerprint>.npz``; None to compute them in any case.
        advance: called once for each mask that was read; never, where the cache has them all.
        processes: how many read masks at once; None for one per core. A few masks are read in this process.

    Raises:
        DatasetError: a mask or the header of an image cannot be read.
        DiskError: the cache cannot be written.
        ValueError: a tile below 1.
    """
    path = cache and cache / f"class_uniform-{_fingerprint(reader, pairs, tile)}.npz"
    known = path and _load(path, len(pairs), reader.classes)
    if known is not None:
        return CentroidIndex(known)
    parts = [np.empty((0, 4), dtype=np.int32)]
    for image, found in enumerate(map_files(partial(_centroids_of, reader, tile), pairs, processes)):
        parts.append(np.insert(found, 0, image, axis=1))
        advance()
    index = CentroidIndex(np.concatenate(parts))
    if path:
        file = io.BytesIO()
        np.savez_compressed(file, centroids=index.centroids)
        try:
            write_bytes(path, file.getbuffer())
        except OSError as error:
            raise disk_error(path, error) from error
    return index


def without_labels(
    reader: MaskReader, pairs: Sequence[ImageMaskPair], index: CentroidIndex, processes: int | None = None
) -> list[ImageMaskPair]:
    """The pairs whose masks label nothing, of all pixels.

    Only masks without a centroid are read again: what lies beside the last whole tile has none.

    Args:
        reader, pairs, processes: as for `build_index`.
        index: of just these.

    Raises:
        DatasetError: a mask or the header of an image cannot be read.
    """
    known = set(index.centroids[:, 0].tolist())
    doubtful = [pair for place, pair in enumerate(pairs) if place not in known]
    labelled = map_files(partial(_labels_something, reader), doubtful, processes)
    return [pair for pair, something in zip(doubtful, labelled, strict=True) if not something]


@dataclass(frozen=True, eq=False)
class EpochSource:
    """Images that an epoch draws from.

    Attributes:
        images: how many there are.
        index: where the classes are in them; None to draw images only.
        share: weight of these images among those drawn at random, against the other sources' shares.
        boost: class -> how often each of its places counts; None for all classes, once.
        is_active: False if nothing is drawn from here; the images keep their numbers.
    """

    images: int
    index: CentroidIndex | None = None
    share: float = 1.0
    boost: Mapping[int, int] | None = None
    is_active: bool = True


def plan_epoch(
    length: int,
    sources: Sequence[EpochSource],
    class_uniform: float,
    rng: np.random.RandomState,
    classes: int = NUM_CLASSES,
) -> NDArray[np.int64]:
    """Plan an epoch: whole images at random, then for each class crops around its centroids.

    Every class gets ``int(length * class_uniform / C)`` entries, and all that is left goes to images at random,
    divided between the sources by their shares. The places of a class are those of all sources together. What classes
    without any centroid would get is dealt out to the others in the order of their ids, as evenly as it goes. Within
    each source's images and each class' places no entry comes twice before all have come once.

    Args:
        length: entries in the epoch.
        sources: what is drawn from; one that is active at least has a share.
        class_uniform: share of the epoch that is spread evenly over the classes, 0 to 1.
        rng: shuffles the images of each source, then the places of each class; the same state gives the same epoch.
        classes: C, how many there are.

    Returns:
        (length, 4) int64: image, class, x, y; the last three are -1 where there is no centroid. Images are numbered
        through all sources. The entries are in the order in which they were drawn: they are to be shuffled, or dealt
        to several ranks, elsewhere.

    Raises:
        ValueError: a share outside 0..1, an index that names other images, or no source with a share.
    """
    if not 0 <= class_uniform <= 1:
        raise ValueError(f"a share of {class_uniform} is not within 0..1")
    active: list[tuple[int, EpochSource]] = []
    start = 0
    for source in sources:
        _check_index(source)
        if source.is_active:
            active.append((start, source))
        start += source.images
    by_class = [np.concatenate(parts) for parts in zip(*(_places(*one, classes) for one in active), strict=True)]
    present = [label for label in range(classes) if len(by_class[label])]
    uniform = int(length * class_uniform / classes) * classes if present else 0
    plan = np.full((length, 4), -1, dtype=np.int64)
    place = 0
    for (first, source), count in zip(
        active, _dealt(length - uniform, [one.share for _, one in active]), strict=True
    ):
        images = np.arange(source.images)
        rng.shuffle(images)
        plan[place : place + count, 0] = first + np.resize(images, count)
        place += count
    for turn, label in enumerate(present):
        count = uniform // len(present) + (turn < uniform % len(present))
        order = np.arange(len(by_class[label]))
        rng.shuffle(order)
        plan[place : place + count] = by_class[label][np.resize(order, count)]
        place += count
    return plan


def _check_index(source: EpochSource) -> None:
    # An old cache would lead to images that are not there; the loader's error would come an hour later.
    if source.index is not None and len(source.index.centroids):
        last = source.index.centroids[:, 0].max()
        if last >= source.images:
            raise ValueError(f"the index names image {last} of {source.images}")


def _places(first: int, source: EpochSource, classes: int) -> list[NDArray[np.int64]]:
    """The entries of each class in a source whose first image has the number ``first``."""
    centroids = np.empty((0, 4), np.int64) if source.index is None else source.index.centroids.astype(np.int64)
    centroids = centroids + np.array([first, 0, 0, 0])
    times = dict.fromkeys(range(classes), 1) if source.boost is None else source.boost
    return [np.tile(centroids[centroids[:, 1] == label], (times.get(label, 0), 1)) for label in range(classes)]


def _dealt(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a number by shares, as whole numbers; the largest remainders, the first of equals, get what is left."""
    if not sum(shares) > 0:
        raise ValueError("no source has a share")
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(one) for one in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _centroids_of(reader: MaskReader, tile: int, pair: ImageMaskPair) -> NDArray[np.int32]:
    return tile_centroids(_labels_of(reader, pair), tile, reader.classes)


def _labels_something(reader: MaskReader, pair: ImageMaskPair) -> bool:
    return bool((_labels_of(reader, pair) < reader.classes).any())


def _labels_of(reader: MaskReader, pair: ImageMaskPair) -> NDArray[np.uint8]:
    # The picture's size decides where a mask that is of another size belongs.
    return reader.read(pair, read_size(located(reader.root, pair.image)))


def _fingerprint(reader: MaskReader, pairs: Sequence[ImageMaskPair], tile: int) -> str:
    content = {
        "version": _VERSION,
        "tile": tile,
        "num_classes": reader.classes,
        **reader.signature(pairs),
        "pairs": [[pair.image, pair.mask, pair.encoding, file_bytes(reader.mask_path(pair))] for pair in pairs],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _load(path: Path, num_images: int, classes: int) -> NDArray[np.int32] | None:
    """Read the cache file: (n, 4) int32 centroids; None if it is missing or damaged."""
    try:
        # Opened here, because numpy leaves a damaged archive open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            centroids = file["centroids"]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    sound = centroids.dtype == np.int32 and centroids.ndim == 2 and centroids.shape[1] == 4
    if sound and len(centroids):
        sound = centroids.min() >= 0 and (centroids[:, :2].max(axis=0) < (num_images, classes)).all()
    return centroids if sound else None
