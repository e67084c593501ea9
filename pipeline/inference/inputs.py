"""Checks a manifest's checkpoints, and lists the photographs of its datasets with their sizes."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...datasets.decode.image_header import header_of
from ...datasets.layout.find_images import survey_images
from ...datasets.layout.folder_layout import PlacedImage, located, locator, parts_beside
from ...errors import DatasetError, HmsaError, StoreError, cannot_read, first_few
from ...files import sha256
from ...models.checkpoint_files.quick_check import is_surely_sound
from ...models.registry import ADAPTERS
from ..config.class_set_field import member_choice
from ..config.manifest import DatasetEntry, Manifest
from ..config.member import Member
from ..storage.output_folder import own_folders, store_path
from ..store.image_table import BYTES, CHUNK_ROWS, HEIGHT, ROW, WIDTH, Photograph

if TYPE_CHECKING:
    from .member_check import MemberChecks


@dataclass(frozen=True)
class InputStatus:
    """Status of one checkpoint or dataset.

    Attributes:
        kind: ``model`` or ``dataset``.
        found: what was found, for people.
        problem: why it cannot be used; None if it can.
        state: ``ok``, ``MISSING`` or ``WRONG``.
    """

    kind: str
    name: str
    found: str
    problem: str | None = None
    state: str = "ok"

    @property
    def description(self) -> str:
        """The problem, or what was found."""
        return self.problem or self.found


def check_inputs(manifest: Manifest) -> Iterator[InputStatus]:
    """Check every checkpoint against its network, precision and sha256, and list every dataset; decode nothing.

    Torch is loaded for the first checkpoint that needs it: one in an unusual layout, of another library, or wrong.
    """
    checks: MemberChecks | None = None
    for member in manifest.models:
        found = _status_at_once(manifest, member)
        if found is None:
            from .member_check import MemberChecks

            checks = checks or MemberChecks(manifest.class_set)
            found = _checkpoint_status(member, member.options(manifest.inference).precision, checks)
        yield found
    for dataset in manifest.datasets:
        try:
            looked = survey(manifest, dataset, afresh=True)
        except HmsaError as error:
            yield InputStatus("dataset", dataset.name, "", str(error), "MISSING")
            continue
        photos = looked.photographs
        unreadable = [photo.path for photo in photos if photo.size is None]
        text = f"{len(photos)} images in {dataset.root_path()}"
        if unreadable:
            text += f", {len(unreadable)} of them unreadable (first: {unreadable[0]})"
        yield InputStatus("dataset", dataset.name, "; ".join([text, *looked.remarks]))


_RIGHT_DIGEST = "its sha256 is that of the manifest"


def _status_at_once(manifest: Manifest, member: Member) -> InputStatus | None:
    """Return the status of a checkpoint that is not there, or has nothing against it; None if it needs a closer look.

    A checkpoint that is sound in every precision needs no look at the device that there is.
    """
    if member.external:
        return InputStatus("model", member.name, "external, filled by import-logits")
    try:
        path = member.checkpoint_path()
    except HmsaError as error:
        return InputStatus("model", member.name, "", str(error), "MISSING")
    if not path.exists():
        problem = f"{path}: there is no such checkpoint; put it there or correct --assets"
        return InputStatus("model", member.name, "", problem, "MISSING")
    classes, precision = manifest.class_set, member.options(manifest.inference).precision
    drops = member.sample is not None and member.sample.dropout is not None
    if drops or precision == "bf16" or member_choice(member.classes, classes) is not None:
        return None
    if not is_surely_sound(path, member.arch, classes.names):
        return None
    if member.sha256 and sha256(path) != member.sha256:
        return None
    notes = [_RIGHT_DIGEST] if member.sha256 else []
    return InputStatus("model", member.name, "; ".join([_file_size(path, path.stat().st_size), *notes]))


def _file_size(path: Path, count: int) -> str:
    return f"{path} ({count / 1e6:.1f} MB)"


def _checkpoint_status(member: Member, precision: str, checks: MemberChecks) -> InputStatus:
    from ...models.precision import check_range
    from ..runtime.device import AUTOCAST, resolve_device, resolve_precision
    from .member_network import checkpoint_bytes, network_classes

    path, notes = member.checkpoint_path(), []
    try:
        # The precision of this machine; another one, which has that of the manifest, may refuse the checkpoint.
        used, _ = resolve_precision(precision, resolve_device("auto"))
        if note := checks.check(member, used).note:
            notes.append(note)
        if member.sha256:
            checks.digest(member)
            notes.append(_RIGHT_DIGEST)
    except (HmsaError, OSError) as error:
        problem = cannot_read(error.filename, error) if isinstance(error, OSError) else str(error)
        return InputStatus("model", member.name, "", problem, "WRONG")
    if used != precision and member.arch not in ADAPTERS:
        try:
            count, _ = network_classes(member, checks.classes)
            check_range(path, member.arch, AUTOCAST[precision], num_classes=count)
        except HmsaError as error:
            notes.append(f"of no use on a GPU: {error}")
    return InputStatus("model", member.name, "; ".join([_file_size(path, checkpoint_bytes(member)), *notes]))


_THREADS = 8
_HEADERS_OF_A_BATCH = 4096
_HEADERS_OF_A_THREAD = 64
_HEADERS_TIMED = 16
_SLOW_HEADER = 5e-4
"""Seconds; see `_read_headers`."""

_AS_STORED = "their pixels are taken as stored, which is what labels fit"
_NOT_TURNED = {"folder": "their pixels are taken as stored; 'orientation: exif' on the dataset turns them"}


@dataclass(frozen=True)
class Survey:
    """Files of a dataset as they are on the disk now.

    Attributes:
        photographs: sorted by path.
        left_out: description of files that are no photographs of the dataset -> number of files.
        beside: folder of a part that lies beside the root and is read as if it lay in it -> number of photographs.
    """

    dataset: DatasetEntry
    photographs: tuple[Photograph, ...]
    left_out: Mapping[str, int]
    beside: Mapping[Path, int] = field(default_factory=dict)

    @property
    def remarks(self) -> list[str]:
        """Lines for the user about what may be unexpected."""
        found = [f"{count} files left out: {what}" for what, count in self.left_out.items()]
        found += [
            f"{count} of the photographs lie beside the root, in {place}" for place, count in self.beside.items()
        ]
        turned = [photo.path for photo in self.photographs if photo.turned]
        if turned:
            done = "they are turned so" if self.dataset.exif else _NOT_TURNED.get(self.dataset.type, _AS_STORED)
            found.append(
                f"EXIF asks viewers to turn {len(turned)} of the photographs ({first_few(turned, 3)}); {done}"
            )
        return found


def survey(manifest: Manifest, dataset: DatasetEntry, *, afresh: bool = False) -> Survey:
    """List all photographs of a dataset, sorted by path, with the sizes that their headers give.

    Args:
        manifest: its stores know the sizes of photographs.
        dataset: one of its datasets.
        afresh: read every header, not only those of files that no store of the dataset knows.

    Raises:
        DatasetError: the folder is missing, empty, or not as its layout says.
        ManifestError: the root holds an environment variable that is not set.
    """
    root = dataset.root_path()
    listing = survey_images(root, dataset.type, dataset.split, own_folders(manifest.output))
    images = listing.images
    known = [None] * len(images) if afresh else _known_sizes(manifest, dataset, images)

    found = [size and Photograph(image.path, image.bytes, size) for image, size in zip(images, known, strict=True)]
    place, sizes = locator(root), _SharedSizes()

    def look_at(some: Sequence[int]) -> None:
        for i in some:
            found[i] = _photograph(images[i], place(images[i].path), dataset.exif, sizes)

    _read_headers(array("q", (i for i, photo in enumerate(found) if photo is None)), look_at)
    photographs = tuple(photo for photo in found if photo is not None)
    firsts = Counter(image.path.partition("/")[0] for image in listing.images)
    beside = {located(root, part): firsts[part] for part in parts_beside(root) if firsts[part]}
    return Survey(dataset, photographs, listing.left_out, beside)


class _SharedSizes(dict[tuple[int, int], tuple[int, int]]):
    """Sizes that many photographs have, each kept once."""

    def __missing__(self, size: tuple[int, int]) -> tuple[int, int]:
        self[size] = size
        return size


def _photograph(image: PlacedImage, place: str, exif: bool, sizes: _SharedSizes) -> Photograph:
    try:
        header = header_of(place, late_exif=exif)
    except DatasetError:
        return Photograph(image.path, image.bytes, None)
    size = header.turned_size if exif else (header.height, header.width)
    return Photograph(image.path, image.bytes, sizes[size], header.orientation != 1)


def _read_headers(wanted: Sequence[int], read: Callable[[Sequence[int]], None]) -> None:
    """Read the headers of ``wanted`` images, by several threads where the disk is slow.

    A header that the system has in memory is read in some 15 us, all of it with Python's lock held: threads would
    take two to four times as long. So the first few of each batch are timed.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(wanted), _HEADERS_OF_A_BATCH):
            batch = wanted[start : start + _HEADERS_OF_A_BATCH]
            timed, rest = batch[:_HEADERS_TIMED], batch[_HEADERS_TIMED:]
            begun = time.perf_counter()
            read(timed)
            if time.perf_counter() - begun < _SLOW_HEADER * len(timed):
                read(rest)
            else:
                step = min(_HEADERS_OF_A_THREAD, -(-len(rest) // _THREADS) or 1)
                list(pool.map(read, [rest[i : i + step] for i in range(0, len(rest), step)]))


def _known_sizes(
    manifest: Manifest, dataset: DatasetEntry, images: Sequence[PlacedImage]
) -> list[tuple[int, int] | None]:
    """Return the (height, width) of each image that a store knows with the same size in bytes; None for others."""
    from ..store.logit_store import LogitStore  # here, because `manifest check` needs neither it nor Zarr

    for member in manifest.models:
        path = store_path(manifest.output, dataset.name, member.name)
        # A store that cannot be read is reported where it is needed; here sizes come from the files instead.
        with contextlib.suppress(StoreError):
            store = LogitStore.open(path)
            # A store of photographs as stored does not know the sizes of turned ones.
            if store.identity.exif == dataset.exif:
                rows = store.images.locate([image.path for image in images])
                return _sizes_at(rows, store.images.numbers(), [image.bytes for image in images])
    return [None] * len(images)


def _sizes_at(rows: np.ndarray, numbers: np.ndarray, now: Sequence[int]) -> list[tuple[int, int] | None]:
    """Return the sizes at ``rows`` of a table's ``numbers`` where its size in bytes is that of ``now``."""
    found: list[tuple[int, int] | None] = [None] * len(rows)
    shared = _SharedSizes()
    for start in range(0, len(rows), CHUNK_ROWS):
        for i, row in enumerate(rows[start : start + CHUNK_ROWS].tolist(), start):
            if row >= 0 and numbers[row, BYTES] == now[i] and numbers[row, ROW] >= 0:
                found[i] = shared[int(numbers[row, HEIGHT]), int(numbers[row, WIDTH])]
    return found
