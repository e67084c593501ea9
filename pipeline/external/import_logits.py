"""The stage ``import-logits``: outputs of another program become a store, so that any network can be a member.

The softmax of what a store holds is the member's belief, so what is no logits is turned into some.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ... import __version__
from ...datasets.layout.folder_layout import output_stem
from ...errors import ManifestError, StoreError, disk_error, nearest
from ...models.adapters.class_table import ClassTable, channels_of, class_table
from ...models.member_output import KINDS, MemberLogits, enlarge, reduction, to_logits
from ..config.class_set_field import member_choice
from ..config.manifest import Manifest
from ..inference.inputs import survey
from ..runtime.progress import Progress
from ..storage.other_shares import forget_other_shares, record_other_shares
from ..storage.output_folder import store_path
from ..storage.run_record import record_gone, record_run
from ..storage.writer_lock import writer_lock
from ..store.identity import StoreIdentity
from ..store.logit_store import LogitStore
from .logit_files import ForeignOutput, foreign_outputs

_LARGEST = torch.finfo(torch.float16).max


@dataclass
class ImportResult:
    """Result of an import.

    Attributes:
        failed: path -> reason.
        extra: number of files that belong to no photograph.
        uniform: pixels that no class had a score for, and that became uniform.
        others: path -> share of the probability of channels that were not taken, where some were not.
        interrupted: images are left because the run was told to stop.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    extra: int = 0
    uniform: int = 0
    others: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False


def parse_channels(text: str, count: int | None) -> list[int]:
    """Parse ``0-18`` or ``0,2,5-20`` into channel numbers.

    Raises:
        ManifestError: not of this form, the same channel twice, or another number of them than ``count``.
    """
    channels: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not numbers:
            raise ManifestError(f"--channels {text}: is no list of channels; write for example 0-18")
        channels += range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1)
    different = len(set(channels))
    if not different or different != len(channels) or count not in (None, different):
        needed = f"{count or len(channels)} different ones are needed"
        raise ManifestError(f"--channels {text}: selects {different} channels, {needed}")
    return channels


@dataclass(frozen=True)
class _Form:
    """How the files of one import are read.

    Attributes:
        kind: what they hold.
        channels: that become the classes; all if None.
        step: they are as many times smaller than the photographs.
        classes: how many channels are needed.
        table: how these become the manifest's classes; None if they are.
    """

    kind: str
    channels: tuple[int, ...] | None
    step: int
    classes: int
    table: ClassTable | None = None


def import_logits(
    manifest: Manifest,
    model: str,
    dataset: str,
    folder: Path,
    *,
    kind: str | None = None,
    channels: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
) -> ImportResult:
    """Fill the store of an external member from files such as ``<relative path without suffix>_logits.npz``.

    Args:
        manifest: names the member (``arch: external``) and the dataset.
        model: name of the member.
        dataset: name of the dataset.
        folder: the tree of files, or a Zarr group, see `logit_files.foreign_outputs`; each holds (C, H, W), or is
            2, 4, 8, 16 or 32 times smaller, and is then enlarged.
        kind: what they hold, one of `member_output.KINDS`; None for what their names say.
        channels: channels that become the classes, or those of which the member's ``classes`` speak, in their order,
            see `parse_channels`; all if None.
        limit: photographs of the dataset to take, from the first; None for all.
        overwrite: start an existing store over.

    Raises:
        ManifestError: the member is not external, or there is no such kind.
        StoreError: no such folder, nothing in it that fits, called logits but hardly any, or the store was filled
            from elsewhere.
    """
    member, entry = manifest.member(model), manifest.dataset(dataset)
    if not member.external:
        raise ManifestError(f"model '{model}': is dumped from a checkpoint; only 'arch: external' is imported")
    if kind is not None and kind not in KINDS:
        raise ManifestError(f"--kind {kind}: is unknown; {nearest(kind, KINDS)}")
    choice = member_choice(member.classes, manifest.class_set)
    count = len(manifest.class_set) if choice is None else channels_of(choice)
    taken = None if channels is None else tuple(parse_channels(channels, count))
    count = count if taken is None else len(taken)
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such folder of logits; check the path")
    photos = survey(manifest, entry, afresh=overwrite).photographs
    present = {photo.path for photo in photos}
    files, extra = foreign_outputs(folder, [photo.path for photo in photos], count)
    if not files:
        first = min(f"{output_stem(photo.path)}_logits.npz" for photo in photos)
        raise StoreError(
            f"{folder}: holds none of the {len(photos)} files that the photographs of {dataset} call for "
            f"(first: {first}, or .npy or .safetensors); check the path"
        )
    sizes = {photo.path: photo.size for photo in photos}
    form = _form_of(files, sizes, kind, taken, count)
    if choice is not None:
        where = f"model '{member.name}'"
        form = replace(form, table=class_table(where, form.classes, None, choice, manifest.class_set.names))
    source: dict[str, object] = {
        "folder": str(folder.resolve()),
        "channels": None if taken is None else list(taken),
        "kind": form.kind,
    }
    if form.step > 1:
        source["enlarged"] = f"{form.step} times, bilinearly"
    if form.table is not None:
        source |= form.table.as_json(manifest.class_set.names)
    identity = StoreIdentity(
        model=member.name,
        architecture=member.arch,
        classes=manifest.class_set.names,
        preprocessing={"orientation": entry.orientation} if entry.exif else None,
        encoding=manifest.store.encoding,
        source=source,
    )
    path = store_path(manifest.output, dataset, model)
    result = ImportResult(extra=extra)
    begun = time.monotonic()
    try:
        with writer_lock(path):
            # An empty store is started over, too: the first try may have had wrong channels.
            afresh = overwrite or not LogitStore.exists(path) or not LogitStore.open(path).shards().complete.any()
            store = LogitStore.for_writing(path, identity, {"package_version": __version__}, overwrite=afresh)
            if afresh:
                forget_other_shares(path)
            store.register(photos)
            listed = {entry.path for entry in store.images if entry.path not in present}
            complete = store.shards().complete
            wanted = store.images.locate([photo.path for photo in photos[:limit]]).tolist()
            todo = [i for i in wanted if not complete[i]]
            result.skipped = len(wanted) - len(todo)
            with Progress(len(todo)) as progress:
                progress.job(f"{dataset}/{model}", len(todo))
                _fill(store, todo, folder, files, form, kind is not None, result, progress)
            record_other_shares(path, result.others)
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


def _form_of(
    files: dict[str, ForeignOutput],
    sizes: dict[str, tuple[int, int] | None],
    kind: str | None,
    taken: tuple[int, ...] | None,
    count: int | None,
) -> _Form:
    """Read the kind, the size and the unknown ``count`` of channels off the first file that can be read."""
    for image, file in files.items():
        found = kind or file.kind
        if (size := sizes[image]) is None:
            continue
        try:
            values = file.read()
        except StoreError:
            continue  # it is listed when its turn comes
        if kind is None and (doubt := _doubt(found, values)):
            raise StoreError(f"{file.path}: {doubt}")
        step = reduction(size, (values.shape[1], values.shape[2])) if values.ndim == 3 else None
        return _Form(found, taken, step or 1, count or len(values))
    return _Form(kind or "logits", taken, 1, count or 0)


def _doubt(kind: str, values: torch.Tensor) -> str | None:
    """Say why ``values`` may be no logits; None if nothing speaks against it."""
    if kind != "logits" or not values.numel() or not 0 <= values.min() <= values.max() < math.inf:
        return None
    return (
        "no value is below zero, so these are hardly logits; say what they are with --kind probabilities, "
        "--kind scores (which do not add up to one) or --kind logits"
    )


def _fill(
    store: LogitStore,
    todo: list[int],
    folder: Path,
    files: dict[str, ForeignOutput],
    form: _Form,
    sure: bool,
    result: ImportResult,
    progress: Progress,
) -> None:
    """Write the images of ``todo``; ``sure``: the user named the kind."""
    try:
        for index in todo:
            image = store.images[index]
            try:
                if image.path not in files:
                    missing = folder / f"{output_stem(image.path)}_logits.npz"
                    raise StoreError(f"{missing}: there is no such file; make it and import again")
                size = (image.height, image.width)
                logits, found = _read(files[image.path], size, form, sure)
                store.write(index, logits)
                result.done += 1
                result.uniform += found.uniform
                if found.other is not None:
                    result.others[image.path] = found.other
            except StoreError as error:
                result.failed[image.path] = str(error)
            progress.advance()
    except KeyboardInterrupt:
        result.interrupted = True


def _read(
    file: ForeignOutput, size: tuple[int | None, int | None], form: _Form, sure: bool
) -> tuple[np.ndarray, MemberLogits]:
    """Read logits (C, H, W) float16, and what was found of them; StoreError names a file that does not fit."""
    values, path = file.read(), file.path
    if not values.is_floating_point():
        raise StoreError(
            f"{path}: holds {str(values.dtype).removeprefix('torch.')}; floating-point numbers are needed"
        )
    height, width = size
    if height is None or width is None:
        raise StoreError(f"{path}: belongs to a photograph that cannot be read; fix the photograph")
    if values.ndim != 3 or reduction((height, width), (values.shape[1], values.shape[2])) is None:
        raise StoreError(
            f"{path}: holds {form.kind} of shape {tuple(values.shape)}; the photograph is {height}x{width}, so save "
            f"(classes, {height}, {width}), or 2, 4, 8, 16 or 32 times smaller"
        )
    if not sure and (doubt := _doubt(form.kind, values)):
        raise StoreError(f"{path}: {doubt}")
    if form.channels is not None and max(form.channels) >= len(values):
        raise StoreError(f"{path}: has {len(values)} channels; --channels asks for {max(form.channels)}")
    if (len(values) if form.channels is None else len(form.channels)) != form.classes:
        raise StoreError(f"{path}: has {len(values)} channels for {form.classes} classes; select with --channels")
    try:
        if form.step > 1:
            values = enlarge(values, (height, width))
        found = to_logits(values, form.kind, None if form.channels is None else list(form.channels))
    except StoreError as error:
        raise StoreError(f"{path}: holds {error}") from error
    logits = found.values
    if form.table is not None:
        found = found._replace(other=_other(form.table, found))
        logits = form.table.apply(logits[None])[0]
    if logits.dtype != torch.float16 and logits.abs().max() > _LARGEST:
        raise StoreError(f"{path}: holds logits beyond {_LARGEST:.0f}, the largest float16")
    return np.ascontiguousarray(logits.half().numpy()), found


def _other(table: ClassTable, found: MemberLogits) -> float | None:
    """Mean share of the probability of what is none of our classes: of channels left out, and by the table."""
    share = table.other_share(found.values[None], "logits")
    if share is None:
        return found.other
    before = found.other or 0.0
    return round(before + (1 - before) * share.mean().item(), 6)
