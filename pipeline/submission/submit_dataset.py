"""The stage ``upload``: a dataset's predictions become the files that its benchmark takes; and a look into such.

Every image of the dataset, or nothing. The same predictions give the same bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...datasets.decode.image_header import read_size
from ...datasets.layout.find_images import list_images
from ...datasets.layout.folder_layout import located
from ...errors import DatasetError, HmsaError, ManifestError, cannot_read, first_few, reason
from ...files import PARTIAL, atomic_path, guarded
from ..config.class_set_field import require_default
from ..config.manifest import Manifest
from ..fusion.prediction_files import require_predictions
from ..runtime.ordered_threads import usable
from ..storage.output_folder import own_folders, predictions_path
from .benchmark_formats import UploadFormat
from .packing import Packed, pack

ZIP = ".zip"


@dataclass(frozen=True)
class UploadPlan:
    """One dataset, ready to be written or to be compared with.

    Attributes:
        root: folder of the photographs.
        folder: of the predictions.
        files: path in the submission -> photograph, sorted by the former.
    """

    format: UploadFormat
    dataset: str
    root: Path
    folder: Path
    files: Mapping[str, str]


def plan_upload(manifest: Manifest, form: UploadFormat, predictions: Path | None = None) -> UploadPlan:
    """See that the benchmark knows every photograph of the manifest's only dataset.

    Args:
        manifest: must have one dataset, or have been narrowed to one.
        form: the benchmark's format.
        predictions: a tree of the dataset's ``_pred.png`` and ``_conf.png``; None for the manifest's.

    Raises:
        HmsaError: a package is missing.
        ManifestError: there is more than one dataset, or the benchmark has other classes.
        DatasetError: a photograph is none of the benchmark, or two would have the same file.
    """
    if form.package and importlib.util.find_spec(form.package[0]) is None:
        raise HmsaError(f"--format {form.name}: needs the package {form.package[0]}; install {form.package[1]}")
    if form.takes_classes:
        require_default(manifest.class_set, f"--format {form.name}")
    entry, *others = manifest.datasets
    if others:
        names = ", ".join(one.name for one in manifest.datasets)
        raise ManifestError(f"--format {form.name}: holds one dataset; name it with --datasets, one of {names}")
    root = entry.root_path()
    images = [image.path for image in list_images(root, entry.type, entry.split, own_folders(manifest.output))]
    files: dict[str, str] = {}
    strange = []
    for image in images:
        name = form.target(f"{root.resolve().name}/{image}")
        if name is None:
            strange.append(image)
        elif name in files:
            raise DatasetError(
                f"{root}: {files[name]} and {image} would both be {name}; {form.name} knows one of each, "
                "so give the dataset a split, or a folder that holds one of them"
            )
        else:
            files[name] = image
    if strange:
        raise DatasetError(
            f"{root}: {len(strange)} of {len(images)} photographs are not called as {form.name} calls its own "
            f"({form.photographs}): {first_few(strange, 2)}; choose another --datasets, split or --format"
        )
    folder = predictions_path(manifest.output, entry.name) if predictions is None else predictions
    return UploadPlan(form, entry.name, root, folder, dict(sorted(files.items())))


def write_upload(plan: UploadPlan, target: Path) -> Packed:
    """Write the files of all images into a ``.zip`` file or a folder; nothing if one prediction cannot be used.

    A folder that is there is replaced if it is empty or holds files of an earlier submission, and no others.

    Raises:
        StoreError: predictions are missing.
        HmsaError: the folder holds something else, photographs and predictions in particular.
        DiskError: the target cannot be written.
    """
    names = [name for image in plan.files.values() for name in plan.format.sources(image)]
    called = f"the {len(names)} files that --format {plan.format.name} is made of"
    require_predictions(
        plan.folder, names, called, "make them with 'hmsa-pipeline dump' and 'ensemble', or 'predict'"
    )
    _require_free(plan, target)

    def encode(name: str) -> bytes:
        image = plan.files[name]
        content, size = plan.format.encode(plan.folder, image)
        _require_size(plan, image, size)
        return content

    result = pack(target, [*plan.files], encode, _written(target))
    result.failed = {plan.files[name]: reason for name, reason in result.failed.items()}
    return result


def _require_size(plan: UploadPlan, image: str, size: tuple[int, int]) -> None:
    height, width = read_size(located(plan.root, image))
    if size != (height, width):
        raise DatasetError(
            f"is {size[0]}x{size[1]}, its photograph {height}x{width}; benchmarks take the photograph's own size"
        )


def _require_free(plan: UploadPlan, target: Path) -> None:
    """Raise HmsaError if what lies at ``target`` is not an earlier submission of the same files."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(target)):
        place = str(target).replace(":/", "://", 1)  # a path has no two slashes
        raise HmsaError(f"--output: {place} is a URL; name a folder or a {ZIP} file on a disk, and upload that")
    if _is_zip(target):
        if target.is_dir():
            raise HmsaError(f"--output: {target} is a folder; name a file, or a folder without {ZIP}")
        return
    if target.suffix in {".tar", ".gz", ".tgz", ".7z", ".rar"}:
        raise HmsaError(
            f"--output: {target} would be a folder; --format {plan.format.name} takes one, or a {ZIP} file"
        )
    if target.exists() and not target.is_dir():
        raise HmsaError(f"--output: {target} is a file; name a folder, or a {ZIP} file")
    # The folder is replaced: photographs and predictions may be called like the files of a submission.
    place = target.resolve()
    for what, other in (("photographs", plan.root), ("predictions", plan.folder)):
        here = other.resolve()
        if here in (place, *place.parents) or place in here.parents:
            raise HmsaError(f"--output: {target} and the {what} ({other}) lie in one another; name another folder")
    if others := [name for name in _below(target) if name not in plan.files]:
        raise HmsaError(
            f"--output: {target} holds {len(others)} files that are no part of this submission "
            f"({first_few(others, 1)}); name another folder"
        )


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ZIP


def _below(folder: Path) -> list[str]:
    """The files below a folder, relative to it, sorted; none if it is not there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _add_to_zip(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name)  # of 1980, whenever it is made
    member.create_system, member.external_attr = 3, 0o644 << 16
    file.writestr(member, content)  # not compressed again


def _add_to_folder(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yield a function that adds a file; all take the target's place when the block ends without an exception."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the target, so that what a killed run has left is found and removed.
    temporary, old = (target.with_name(f".{target.name}.{what}{PARTIAL}") for what in ("new", "old"))
    with guarded(target.with_name(f".{target.name}.guard")):
        if old.exists() and not target.exists():
            old.rename(target)  # killed between the two renames below
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)
        if _is_zip(target):
            try:
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
                    yield partial(_add_to_zip, file)
                with atomic_path(target) as last:
                    temporary.rename(last)
            finally:
                temporary.unlink(missing_ok=True)
            return
        temporary.mkdir()
        try:
            yield partial(_add_to_folder, temporary)
            if target.exists():
                target.rename(old)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


@dataclass
class UploadCheck:
    """How many images of a submission are sound, files that are not -> reasons, and photographs without a file."""

    images: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def check_upload(plan: UploadPlan, path: Path) -> UploadCheck:
    """Decode every file of a submission, a ``.zip`` file or a folder, and compare it with the dataset's photographs.

    The predictions of the plan need not be there; DatasetError if ``path`` is neither.
    """
    result = UploadCheck()
    wanted = {plan.format.key(name): image for name, image in plan.files.items()}
    with _opened(path) as (names, read):
        found: dict[str, str] = {}
        seen: set[str] = set()
        for name in names:
            key = plan.format.key(name)
            if key is None or key not in wanted:
                result.wrong[name] = f"belongs to no photograph of {plan.dataset}"
            elif wanted[key] in seen:
                result.wrong[name] = f"is a second file of {wanted[key]}"
            else:
                found[name] = wanted[key]
                seen.add(wanted[key])
        result.missing = sorted(set(plan.files.values()) - seen)

        def look(name: str) -> None:
            values = plan.format.decode(read(name), path / name)
            _require_size(plan, found[name], (values.shape[0], values.shape[1]))

        def count(name: str, _: None) -> None:
            result.images += 1

        result.wrong |= usable(path.name, [*found], look, count)
    return result


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    if path.is_dir():
        yield _below(path), lambda name: _content(path / name)
        return
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "it is neither a folder nor a zip file, or cut short"
        raise DatasetError(f"{path}: cannot be read as a submission ({reason})") from error
    with file:
        names = sorted(member.filename for member in file.infolist() if not member.is_dir())
        yield names, lambda name: _member(file, path, name)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error


def _member(file: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        return file.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DatasetError(f"{path}: {name} cannot be read ({reason(error)})") from error
