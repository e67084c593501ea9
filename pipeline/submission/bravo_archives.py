"""The BRAVO challenge's tar files: which images there are, and what belongs to each.

An image is known by its base, such as ``bravo_ACDC/fog/test_ref/GOPR0475/GOPR0475_frame_000041``.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from ...datasets.class_set import CITYSCAPES19
from ...datasets.decode.arrays import decode_grey
from ...datasets.layout.folder_layout import output_stem
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, disk_error
from ...files import atomic_path
from ..fusion.prediction_files import CONFIDENCE, LABEL, read_prediction, require_predictions
from .bravo_codec import decode, decode_samples, encode_samples

SAMPLES, ENCODED = "_samples.bin", "_encoded.bin"
SPLITS = ("ACDC", "SMIYC", "outofcontext", "synflare", "synobjs", "synrain")
_MIDDLE = {"ACDC": "_rgb_anon", "outofcontext": "_leftImg8bit", "synflare": "_leftImg8bit", "synrain": "_leftImg8bit"}
_TRUTH = {"SMIYC": "_labels_semantic_fake.png", "synobjs": "_gt.png"}
_INVALID = {"SMIYC": "_labels_semantic.png", "synobjs": "_mask.png"}


def split_of(name: str) -> str | None:
    """The split that a base or a file belongs to, by its folder ``bravo_<split>``; None if it is none."""
    split = name.split("/", 1)[0].removeprefix("bravo_")
    return split if name.startswith("bravo_") and split in SPLITS else None


def prediction_files(base: str) -> tuple[str, str]:
    """Class map and confidence of an image, below the folder of all predictions."""
    middle = _MIDDLE.get(split_of(base) or "", "")
    return f"{base}{middle}{LABEL}", f"{base}{middle}{CONFIDENCE}"


def base_of(dataset: str, image: str) -> str:
    """The base of a photograph, from the folder of its split and its path in there."""
    middle = _MIDDLE.get(split_of(f"{dataset}/") or "", "")
    return f"{dataset}/{output_stem(image)}".removesuffix(middle)


def truth_endings(split: str) -> tuple[str, str]:
    """How the files of train ids and of invalid pixels end."""
    return _TRUTH.get(split, "_gt_labelTrainIds.png"), _INVALID.get(split, "_gt_invIds.png")


_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open))
"""How compressed files begin, and what unpacks them."""


def _is_rubbish(name: str) -> bool:
    """True if macOS has added the file to those that were packed."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def plain_name(name: str) -> str:
    """A member's name from the folder of its split on: without ``./`` and without folders above."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    start = next((number for number in range(len(parts) - 1) if split_of("/".join(parts[number:]))), 0)
    return "/".join(parts[start:])


class TarArchive:
    """A tar file whose members are read by name, from several threads, however it was packed.

    It may be compressed (gzip, bzip2, xz), as the challenge's toolkit takes it too; names are those of `plain_name`,
    and what macOS adds is left out.

    Args:
        path: the file.
        what: what it should be, for people.

    Attributes:
        compressed: whether it is.
        renamed: names in the file of the members whose `plain_name` is another.
        rubbish: names of those left out.

    Raises:
        DatasetError: it is not there, or no tar file, or damaged.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()
        try:
            tar = tarfile.open(fileobj=self._content(), mode="r:")  # noqa: SIM115  closed with the others
            self._tar = self._opened.enter_context(tar)
            files = [member for member in tar.getmembers() if member.isfile()]
        except (OSError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            self._opened.close()
            reason = getattr(error, "strerror", None) or "it is no plain tar file nor a compressed one, or cut short"
            raise DatasetError(f"{path}: cannot be read as {what} ({reason}); fetch it again") from error
        self.rubbish = [member.name for member in files if _is_rubbish(member.name)]
        kept = [member for member in files if not _is_rubbish(member.name)]
        self._members = {plain_name(member.name): member for member in kept}
        self.renamed = [member.name for member in kept if plain_name(member.name) != member.name]

    def _content(self) -> IO[bytes]:
        """The file, unpacked: members of a compressed one cannot be found without unpacking all before them."""
        file = self._opened.enter_context(self.path.open("rb"))
        start = file.read(6)
        file.seek(0)
        opener = next((opener for magic, opener in _OPENERS if start.startswith(magic)), None)
        self.compressed = opener is not None
        if opener is None:
            return file
        unpacked = self._opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed with the others
        with opener(file, "rb") as packed:
            shutil.copyfileobj(packed, unpacked, 2**20)
        unpacked.seek(0)
        return unpacked

    def __enter__(self) -> TarArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def names(self) -> list[str]:
        """Sorted member names."""
        return sorted(self._members)

    def bases(self, ending: str) -> list[str]:
        """Bases of the files of a BRAVO split that end like this, sorted."""
        return [name.removesuffix(ending) for name in self.names if name.endswith(ending) and split_of(name)]

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> bytes:
        """The content of a file; DatasetError if it is not there or cut short."""
        if name not in self._members:
            raise DatasetError(f"{self.path}: lacks {name}")
        try:
            with self._lock:
                file = self._tar.extractfile(self._members[name])
                content = b"" if file is None else file.read()
        except (OSError, tarfile.TarError) as error:
            raise DatasetError(f"{self.path}: {name} cannot be read ({error})") from error
        if len(content) != self._members[name].size:
            raise DatasetError(f"{self.path}: {name} is cut short; fetch the file again")
        return content


_opened: dict[str, TarArchive] = {}


def opened(path: Path, what: str) -> TarArchive:
    """The archive, which stays open in this process: an open file cannot be sent to another one.

    Args:
        path, what: as of `TarArchive`, which raises DatasetError.
    """
    if str(path) not in _opened:
        _opened[str(path)] = TarArchive(path, what)
    return _opened[str(path)]


def read_mask(archive: TarArchive, name: str) -> np.ndarray:
    """A picture of 8 bits a pixel, (H, W) uint8; DatasetError if it is not there, damaged, or something else."""
    pixels = decode_grey(archive.read(name), archive.path / name)
    if pixels.dtype != np.uint8:
        raise DatasetError(f"{archive.path}: {name} holds 16 bits a pixel; 8 are expected")
    return pixels


def plain_file(name: str, size: int) -> tarfile.TarInfo:
    """A member of an archive that is the same wherever and whenever it is made."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def sampled_bases(samples: TarArchive) -> list[str]:
    """The images that a submission must hold; DatasetError if the file lists none."""
    bases = samples.bases(SAMPLES)
    if not bases:
        raise DatasetError(f"{samples.path}: holds no '*{SAMPLES}' of a BRAVO split; is it bravo_SAMPLING.tar?")
    return bases


def require_sampled(folder: Path, bases: Iterable[str]) -> None:
    """Raise StoreError, with their number, if predictions of ``bases`` are missing below ``folder``."""
    names = [name for base in bases for name in prediction_files(base)]
    called = f"the {len(names)} files that the sampling file calls for"
    require_predictions(folder, names, called, "make them with 'hmsa-pipeline dump' and 'ensemble'")


def sampled_prediction(
    folder: Path, base: str, samples: TarArchive, *, checked: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Class map (H, W) uint8 of an image, and its confidences (N,) uint16 at the sampled pixels.

    DatasetError if a file is missing, damaged or something else, or another picture's.

    Args:
        folder: of the predictions.
        base: which image.
        samples: says which pixels are sampled.
        checked: whether every pixel of the class map must be a train id.
    """
    names = prediction_files(base)
    label, confidence = read_prediction(folder, names, CITYSCAPES19 if checked else None)
    return label, at_samples(samples, base, label, confidence, folder / names[0])


def at_samples(samples: TarArchive, base: str, label: np.ndarray, confidence: np.ndarray, source: Path) -> np.ndarray:
    """Select the confidences at an image's sampled pixels.

    Args:
        samples: the challenge's sampling file.
        base: the image.
        label: (H, W) uint8 train ids.
        confidence: (H, W) uint16.
        source: the file of the class map, for errors.
    """
    indices = read_samples(samples, base)
    if indices[-1] >= label.size:
        raise DatasetError(
            f"{source}: is {label.shape[0]}x{label.shape[1]}, but pixel {indices[-1]} is sampled; "
            "predict the challenge's own photographs, unscaled, or take the sampling file of their release"
        )
    return confidence.ravel()[indices]


def read_samples(samples: TarArchive, base: str) -> np.ndarray:
    """Which pixels of an image are sampled, (N,) int64; DatasetError if that is not told."""
    name = f"{base}{SAMPLES}"
    try:
        return decode_samples(samples.read(name))
    except DatasetError as error:
        raise _named(error, samples, name) from error


def _named(error: DatasetError, archive: TarArchive, name: str) -> DatasetError:
    said = str(error)
    return error if said.startswith(str(archive.path)) else DatasetError(f"{archive.path}: {name} {said}")


def read_encoded(submission: TarArchive, base: str) -> tuple[np.ndarray, np.ndarray]:
    """Class map and confidences of an image of a submission; DatasetError that names it if they are damaged."""
    name = f"{base}{ENCODED}"
    try:
        return decode(submission.read(name))
    except DatasetError as error:
        raise _named(error, submission, name) from error


def write_samples(ground_truth: Path, target: Path, *, most: int = 100_000, seed: int = 1) -> None:
    """Sample the pixels that have a label, as the challenge's toolkit does; the same seed gives the same bytes.

    Args:
        ground_truth: the tar file of train ids; DatasetError if it is none, or an image has no label.
        target: the sampling file to write.
        most: pixels of an image; if fewer have a label, all of them.
        seed: of the random numbers, which start again with every image.
    """
    with TarArchive(ground_truth, "ground truth") as truth:
        contents = {}
        for name in truth.names:
            ending, _ = truth_endings(split_of(name) or "")
            if not split_of(name) or not name.endswith(ending):
                continue
            indices = np.flatnonzero(read_mask(truth, name) != IGNORE)
            if not indices.size:
                raise DatasetError(f"{ground_truth}: {name} has no label that could be sampled")
            if indices.size > most:
                draw = np.random.RandomState(seed)  # the toolkit's generator
                indices = np.sort(draw.choice(indices, most, replace=False))
            contents[f"{name.removesuffix(ending)}{SAMPLES}"] = encode_samples(indices)
    try:
        with atomic_path(target) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in sorted(contents.items()):
                tar.addfile(plain_file(name, len(content)), io.BytesIO(content))
    except OSError as error:
        raise disk_error(target, error) from error
