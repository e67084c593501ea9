"""The stage ``import-logits``: logits of another program become a store, so that any network can be a member."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ... import __version__
from ...datasets.layout.folder_layout import output_stem
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import ManifestError, StoreError, disk_error, reason
from ..config.manifest import Manifest
from ..runtime.progress import Progress
from ..storage.output_folder import store_path
from ..storage.run_record import record_gone, record_run
from ..storage.writer_lock import writer_lock
from ..store.identity import StoreIdentity
from ..store.logit_store import LogitStore
from .inputs import survey

SUFFIX = "_logits.npz"
KEY = "logits"


@dataclass
class ImportResult:
    """Result of an import.

    Attributes:
        failed: path -> reason.
        extra: number of files that belong to no photograph.
        interrupted: images are left because the run was told to stop.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    extra: int = 0
    interrupted: bool = False


def parse_channels(text: str) -> list[int]:
    """Parse ``0-18`` or ``0,2,5-20`` into channel numbers, one for each class.

    Raises:
        ManifestError: not of this form, or another number of channels than classes.
    """
    channels: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not numbers:
            raise ManifestError(f"--channels {text}: is no list of channels; write for example 0-18")
        channels += range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
    if len(channels) != len(CLASS_NAMES) or len(set(channels)) != len(channels):
        raise ManifestError(
            f"--channels {text}: selects {len(set(channels))} channels, {len(CLASS_NAMES)} different ones are needed"
        )
    return channels


def import_logits(
    manifest: Manifest,
    model: str,
    dataset: str,
    folder: Path,
    *,
    channels: Sequence[int] | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> ImportResult:
    """Fill the store of an external member from ``<relative path without suffix>_logits.npz`` files.

    Args:
        manifest: names the member (``arch: external``) and the dataset.
        model: name of the member.
        dataset: name of the dataset.
        folder: the tree of files, each with float16 ``logits`` of shape (C, H, W).
        channels: channels that become the classes, in train-id order; all if None.
        limit: photographs of the dataset to take, from the first; None for all.
        overwrite: start an existing store over.

    Raises:
        ManifestError: the member is not external.
        StoreError: no such folder, nothing in it that fits, or the store was filled from elsewhere.
    """
    member, entry = manifest.member(model), manifest.dataset(dataset)
    if not member.external:
        raise ManifestError(f"model '{model}': is dumped from a checkpoint; only 'arch: external' is imported")
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such folder of logits; check the path")
    photos = survey(manifest, entry, afresh=overwrite).photographs
    present = {photo.path for photo in photos}
    files = {photo.path: folder / f"{output_stem(photo.path)}{SUFFIX}" for photo in photos}
    expected = set(files.values())
    if not any(path.is_file() for path in expected):
        raise StoreError(
            f"{folder}: holds none of the {len(expected)} files that the photographs of {dataset} call for "
            f"(first: {min(expected).relative_to(folder).as_posix()}); check the path"
        )
    identity = StoreIdentity(
        model=member.name,
        architecture=member.arch,
        classes=CLASS_NAMES,
        preprocessing={"orientation": entry.orientation} if entry.exif else None,
        encoding=manifest.store.encoding,
        source={"folder": str(folder.resolve()), "channels": None if channels is None else list(channels)},
    )
    path = store_path(manifest.output, dataset, model)
    result = ImportResult(extra=sum(path not in expected for path in folder.rglob(f"*{SUFFIX}")))
    begun = time.monotonic()
    try:
        with writer_lock(path):
            # An empty store is started over, too: the first try may have had wrong channels.
            afresh = overwrite or not LogitStore.exists(path) or not any(LogitStore.open(path).complete())
            store = LogitStore.for_writing(path, identity, {"package_version": __version__}, overwrite=afresh)
            store.register(photos)
            listed = store.index.keys() - present
            complete = store.complete()
            wanted = [store.index[photo.path] for photo in photos[:limit]]
            todo = [i for i in wanted if not complete[i]]
            result.skipped = len(wanted) - len(todo)
            with Progress(len(todo)) as progress:
                progress.job(f"{dataset}/{model}", len(todo))
                _fill(store, todo, files, channels, result, progress)
    except OSError as error:
        raise disk_error(path, error) from error
    record_gone(manifest.output, dataset, listed, present)
    record_run(
        manifest.output,
        "import-logits",
        f"{dataset}/{model}",
        manifest.resolved(),
        images=len(wanted),
        done=result.done,
        skipped=result.skipped,
        failed=result.failed,
        looked_at={photo.path for photo in photos[:limit]} | listed,
        idle=not result.done and not result.failed,
        interrupted=result.interrupted,
        seconds=round(time.monotonic() - begun, 3),
    )
    return result


def _fill(
    store: LogitStore,
    todo: list[int],
    files: dict[str, Path],
    channels: Sequence[int] | None,
    result: ImportResult,
    progress: Progress,
) -> None:
    try:
        for index in todo:
            image = store.images[index]
            try:
                size = (image.height, image.width)
                store.write(index, _read(files[image.path], size, store.classes, channels))
                result.done += 1
            except StoreError as error:
                result.failed[image.path] = str(error)
            progress.advance()
    except KeyboardInterrupt:
        result.interrupted = True


def _read(
    path: Path, size: tuple[int | None, int | None], classes: int, channels: Sequence[int] | None
) -> np.ndarray:
    """Read logits (C, H, W) float16 from a file; StoreError that names the file if they do not fit."""
    try:
        with np.load(path, allow_pickle=False) as content:
            logits = np.asarray(content[KEY])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file; make it and import again") from error
    except KeyError as error:
        raise StoreError(f"{path}: has no array '{KEY}'") from error
    except Exception as error:  # numpy, zipfile and zlib each raise their own errors for a damaged file
        raise StoreError(f"{path}: is no readable .npz file ({reason(error)})") from error
    if logits.dtype != np.float16:
        raise StoreError(f"{path}: holds {logits.dtype}; float16 is needed")
    if size[0] is None:
        raise StoreError(f"{path}: belongs to a photograph that cannot be read; fix the photograph")
    if logits.ndim != 3 or logits.shape[1:] != size:
        raise StoreError(f"{path}: holds logits of shape {logits.shape}; the photograph is {size[0]}x{size[1]}")
    if channels is not None:
        if max(channels) >= logits.shape[0]:
            raise StoreError(f"{path}: has {logits.shape[0]} channels; --channels asks for {max(channels)}")
        logits = logits[list(channels)]
    if logits.shape[0] != classes:
        raise StoreError(f"{path}: has {logits.shape[0]} channels for {classes} classes; select with --channels")
    return np.ascontiguousarray(logits)
