"""The stage ``submit``: predictions become the tar file that the BRAVO challenge takes; and a look into any such."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...datasets.taxonomy import CLASS_NAMES, IGNORE
from ...errors import DatasetError, first_few
from ...files import atomic_path
from ..runtime.ordered_threads import usable
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
from .packing import Packed, pack


def submit_bravo(folder: Path, samples: Path, target: Path) -> Packed:
    """Write the submission of the predictions below ``folder``; nothing if one of them cannot be used.

    Members are sorted and carry no times or owners: the same predictions give the same bytes.

    Args:
        folder: of all predictions, as ``<folder>/bravo_ACDC/fog/..._pred.png``.
        samples: the challenge's sampling file; DatasetError if it is none.
        target: the tar file to write.
    """
    with TarArchive(samples, "a sampling file") as archive:
        bases = sampled_bases(archive)
        require_sampled(folder, bases)
        result = pack(
            target, bases, lambda base: encode(*sampled_prediction(folder, base, archive)), _written(target)
        )
    if not result.failed:
        result.bytes = target.stat().st_size
    return result


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Callable[[str, bytes], None]]:
    with atomic_path(target) as temporary, tarfile.open(temporary, "w") as tar:
        yield lambda base, content: tar.addfile(plain_file(f"{base}{ENCODED}", len(content)), io.BytesIO(content))


@dataclass
class SubmissionCheck:
    """Result of checking a submission; ``wrong`` maps names to reasons.

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
    """Decode every image of a submission, and hold its confidences against ``samples``, None to leave that out.

    DatasetError if one of the files is no such tar file.
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

        def look(base: str) -> None:
            if wanted is not None and base not in wanted:
                raise DatasetError("is not in the sampling file")
            label, confidences = read_encoded(archive, base)
            if (label == IGNORE).any():
                void.append(base)
            if (highest := int(label[label != IGNORE].max(initial=0))) >= len(CLASS_NAMES):
                raise DatasetError(
                    f"holds class {highest}, but predictions are train ids, 0 to {len(CLASS_NAMES) - 1}"
                )
            if sampling is None:
                return
            indices = read_samples(sampling, base)
            if indices.size != confidences.size:
                raise DatasetError(f"holds {confidences.size} confidences, and {indices.size} pixels are sampled")
            if indices[-1] >= label.size:
                raise DatasetError(f"is {label.shape[0]}x{label.shape[1]}, but pixel {indices[-1]} is sampled")

        def count(base: str, _: None) -> None:
            result.images += 1
            split = base.split("/")[0].removeprefix("bravo_")
            result.splits[split] = result.splits.get(split, 0) + 1

        reasons = usable(path.name, bases, look, count)
        result.wrong |= {f"{base}{ENCODED}": reason for base, reason in reasons.items()}
        if void:
            result.warnings.append(
                f"{len(void)} images hold {IGNORE} ({first_few(sorted(void), 1)}): the toolkit takes it where the "
                "ground truth is void, and scores nothing at all if it stands on one pixel with a label"
            )
    return result


def _packing(archive: TarArchive) -> list[str]:
    """List how the submission's packing may trouble the challenge's toolkit."""
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
