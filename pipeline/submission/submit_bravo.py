"""The stage ``submit``: predictions become the tar file that the BRAVO challenge takes; and a look into any such."""

from __future__ import annotations

import contextlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ...errors import DatasetError, disk_error, first_few
from ...files import atomic_path
from ..runtime.ordered_threads import map_in_order
from ..runtime.progress import Progress
from .bravo_archives import (
    ENCODED,
    TarArchive,
    plain_file,
    read_encoded,
    read_samples,
    require_sampled,
    sampled_bases,
    sampled_prediction,
)
from .bravo_codec import encode


@dataclass
class SubmissionResult:
    """What became of the images; ``failed`` maps bases to reasons, and without any the file was written."""

    images: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def submit_bravo(folder: Path, samples: Path, target: Path) -> SubmissionResult:
    """Write the submission of the predictions below ``folder``; nothing if one of them cannot be used.

    Members are sorted and carry no times or owners: the same predictions give the same bytes.

    Args:
        folder: of all predictions, as ``<folder>/bravo_ACDC/fog/..._pred.png``.
        samples: the challenge's sampling file.
        target: the tar file to write.

    Raises:
        DatasetError: the sampling file is none.
        StoreError: predictions are missing.
        DiskError: ``target`` cannot be written.
    """
    with TarArchive(samples, "a sampling file") as archive:
        bases = sampled_bases(archive)
        require_sampled(folder, bases)
        result = SubmissionResult()

        def one(base: str) -> bytes | str:
            try:
                return encode(*sampled_prediction(folder, base, archive))
            except DatasetError as error:
                return str(error)

        try:
            with atomic_path(target) as temporary, Progress(len(bases)) as progress:
                progress.job("submission", len(bases))
                with tarfile.open(temporary, "w") as tar:
                    for base, content in map_in_order(one, bases):
                        if isinstance(content, str):
                            result.failed[base] = content
                        else:
                            tar.addfile(plain_file(f"{base}{ENCODED}", len(content)), io.BytesIO(content))
                            result.images += 1
                        progress.advance()
                if result.failed:
                    raise _UnfinishedError
                result.bytes = temporary.stat().st_size
        except _UnfinishedError:
            pass
        except OSError as error:
            raise disk_error(target, error) from error
    return result


class _UnfinishedError(Exception):
    """Makes `atomic_path` leave the target as it was."""


@dataclass
class SubmissionCheck:
    """What a look into a submission found; ``wrong`` maps names to reasons.

    ``warnings`` tell what `evaluate` takes, and the challenge's own toolkit not, or not always.

    Attributes:
        images: that are sound.
        splits: images of each split.
        missing: bases that the sampling file lists and the submission lacks; None without a sampling file.
    """

    images: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    missing: list[str] | None = None
    warnings: list[str] = field(default_factory=list)


def check_bravo(path: Path, samples: Path | None) -> SubmissionCheck:
    """Decode every image of a submission.

    Args:
        path: the tar file.
        samples: the sampling file, to hold the numbers of confidences against; None to leave that out.

    Raises:
        DatasetError: one of the files is no such tar file.
    """
    result = SubmissionCheck()
    with contextlib.ExitStack() as opened:
        archive = opened.enter_context(TarArchive(path, "a submission"))
        sampling = opened.enter_context(TarArchive(samples, "a sampling file")) if samples else None
        wanted = set(sampled_bases(sampling)) if sampling else None
        bases = archive.bases(ENCODED)
        for name in archive.names:
            if not name.endswith(ENCODED) or name.removesuffix(ENCODED) not in bases:
                result.wrong[name] = "is no encoded prediction of a BRAVO split"
        if wanted is not None:
            result.missing = sorted(wanted - set(bases))

        result.warnings += _packing(archive)
        void: list[str] = []

        def one(base: str) -> str | None:
            try:
                if wanted is not None and base not in wanted:
                    return "is not in the sampling file"
                label, confidences = read_encoded(archive, base)
                if (label == IGNORE).any():
                    void.append(base)
                return _unfit(label, confidences, read_samples(sampling, base) if sampling else None)
            except DatasetError as error:
                return str(error)

        with Progress(len(bases)) as progress:
            progress.job(path.name, len(bases))
            for base, reason in map_in_order(one, bases):
                if reason is None:
                    result.images += 1
                    split = base.split("/")[0].removeprefix("bravo_")
                    result.splits[split] = result.splits.get(split, 0) + 1
                else:
                    result.wrong[f"{base}{ENCODED}"] = reason
                progress.advance()
        if void:
            result.warnings.append(
                f"{len(void)} images hold {IGNORE} ({first_few(sorted(void), 1)}): the toolkit takes it where the "
                "ground truth is void, and scores nothing at all if it stands on one pixel with a label"
            )
    return result


def _packing(archive: TarArchive) -> list[str]:
    """What of the way a submission was packed the challenge's toolkit may not take."""
    found = []
    if archive.compressed:
        found.append("is compressed: the toolkit reads it, but slowly; pack it as a plain tar")
    if archive.renamed:
        found.append(
            f"{len(archive.renamed)} names do not begin with the folder of their split ({archive.renamed[0]}): the "
            "toolkit finds none of them; pack the folders bravo_* themselves"
        )
    if archive.rubbish:
        found.append(
            f"{len(archive.rubbish)} files that macOS added are left out ({archive.rubbish[0]}); pack with "
            "COPYFILE_DISABLE=1"
        )
    return found


def _unfit(label: np.ndarray, confidences: np.ndarray, indices: np.ndarray | None) -> str | None:
    if (highest := int(label[label != IGNORE].max(initial=0))) >= len(CLASS_NAMES):
        return f"holds class {highest}, but predictions are train ids, 0 to {len(CLASS_NAMES) - 1}"
    if indices is not None and indices.size != confidences.size:
        return f"holds {confidences.size} confidences, and {indices.size} pixels are sampled"
    if indices is not None and indices[-1] >= label.size:
        return f"is {label.shape[0]}x{label.shape[1]}, but pixel {indices[-1]} is sampled"
    return None
