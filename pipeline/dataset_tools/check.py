"""Check that a dataset is fit for training: every image and mask is read once, counted, compared and shown.

Nothing here imports torch, so that the processes which read the files start fast.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...datasets.dataset_specs import DRAWN_MARK, SEE, TOTAL, UNKNOWN, DatasetSpec
from ...datasets.decode.arrays import decode_rgb
from ...datasets.labels.label_reader import LabelReader
from ...datasets.layout.find_images import part_of, split_folders
from ...datasets.layout.folder_layout import located, output_stem, parts_beside, walk
from ...datasets.layout.image_mask_pairs import ImageMaskPair, find_pairs, list_pairs, mask_places, panoptic_json
from ...datasets.parallel import map_files
from ...errors import DatasetError, ManifestError, StoreError, disk_error, reason
from ...files import write_json
from ..pictures.sheet import dataset_sheet
from ..runtime.progress import Progress
from ..text import plural
from .class_chart import draw_class_chart
from .findings import FIGURES, SLOTS, DatasetFindings, PairFindings, SplitFindings
from .guide import known_source

CLASS_CHART, SHEET = "classes.png", "contact_sheet.png"
OUTPUT = Path("runs") / "datasets"
"""Below the current folder; each dataset has a folder of its own in it."""

_PICTURES = 12


@dataclass(frozen=True)
class CheckPlan:
    """A dataset that can be looked at, and what will be read of it; ``limit`` and ``workers`` as in `plan_check`.

    Attributes:
        root: its folder.
        output: where the figures and pictures go.
        splits: split -> its images with masks, and its images without.
    """

    spec: DatasetSpec
    root: Path
    output: Path
    splits: Mapping[str, tuple[list[ImageMaskPair], list[str]]]
    limit: int | None
    workers: int | None


def plan_check(
    name: str,
    *,
    data_root: Path | None = None,
    root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    output: Path | None = None,
    workers: int | None = None,
) -> CheckPlan:
    """List what is there to be read; whatever makes a check impossible is found here.

    Args:
        name: which dataset.
        data_root: wins over the environment variable HMSA_DATA_ROOT.
        root: the dataset's own folder; wins over both.
        split: which split; None for all that have masks and a folder.
        limit: only the first images of each split.
        output: folder for what is found; None for one of the dataset's name below `OUTPUT`.
        workers: processes that read; None for one per core.

    Raises:
        DatasetError: unknown dataset or split; the folder is missing or only half unpacked.
        ManifestError: HMSA_DATA_ROOT is needed and not set.
        StoreError: the output cannot be written.
    """
    spec = known_source(name)
    folder = _root_of(spec, data_root, root)
    wanted = [split] if split else _own(_all_labelled(spec), spec, folder)
    splits = {each: _listed(folder, spec, each) for each in wanted}
    output = output or OUTPUT / name
    _require_writable(output)
    return CheckPlan(spec, folder, output, splits, limit, workers)


def run_check(plan: CheckPlan) -> DatasetFindings:
    """Read everything, and write `FIGURES` and, where anything can be trained on, `CLASS_CHART` and `SHEET`.

    Raises:
        DatasetError: a folder cannot be read; a process that reads was ended from outside.
        DiskError: the output cannot be written.
    """
    reader = LabelReader(plan.root, plan.spec)
    wanted = {split: pairs[: plan.limit] for split, (pairs, _) in plan.splits.items()}
    splits: list[SplitFindings] = []
    with Progress(sum(map(len, wanted.values()))) as progress:
        for split, pairs in wanted.items():
            found, alone = plan.splits[split]
            expected = expected_images(plan.root, plan.spec, split, len(found) + len(alone))
            splits.append(SplitFindings(split, plan.spec, len(found), alone, expected))
            progress.job(f"{plan.spec.name} {split}", len(pairs))
            for pair, found_in_pair in zip(
                pairs, map_files(partial(inspect_pair, reader), pairs, plan.workers), strict=True
            ):
                splits[-1].add(pair, found_in_pair)
                progress.advance()
    strays = find_strays(plan.root, plan.spec, [*wanted])
    all_there = _all_images(plan.root, plan.spec)
    beside = _beside(plan.root, plan.spec)
    report = DatasetFindings(plan.spec, plan.root, plan.limit, tuple(splits), tuple(strays), all_there, beside)
    try:
        write_json(plan.output / FIGURES, report.figures())
        _draw(plan.output, reader, report)
    except OSError as error:
        raise disk_error(plan.output, error) from error
    return report


def expected_images(root: Path, spec: DatasetSpec, split: str, found: int) -> int | None:
    """How many images of a split its authors distribute; None where it is not known, or the dataset was drawn.

    Args:
        root: the dataset's folder.
        spec: which dataset it is.
        split: which split.
        found: how many are there; if it is one of the dataset's parts, that part is what is expected.
    """
    if (root / DRAWN_MARK).is_file():
        return None
    parts = spec.layout.joined.get(split, (split,)) if "_cv" not in split else ()
    known = [spec.counts[part] for part in parts if part in spec.counts]
    if not known or len(known) < len(parts):
        return None
    alone = any(found == part.get(split) for part in spec.parts.values())
    return found if alone else sum(known)


def _all_images(root: Path, spec: DatasetSpec) -> int | None:
    """The images of all splits, where their number is known but not that of each split; else None."""
    if TOTAL not in spec.counts or (root / DRAWN_MARK).is_file():
        return None
    folders = {folder for split in spec.layout.splits for folder in split_folders(root, spec.layout, split)}
    return sum(1 for folder in folders for _ in walk(root, folder, spec.layout, ()))


def _beside(root: Path, spec: DatasetSpec) -> tuple[str, ...]:
    """Further parts of the dataset that lie beside its folder, and are read from there."""
    folders = {folder for more in spec.layout.more.values() for folder in more}
    return tuple(part for part in parts_beside(root) if any(folder.startswith(f"{part}/") for folder in folders))


def inspect_pair(reader: LabelReader, pair: ImageMaskPair) -> PairFindings:
    """Read an image and its mask; problems are listed in the result and not raised."""
    unreadable: list[str] = []
    size = raw = None
    try:
        height, width, _ = decode_rgb(located(reader.root, pair.image)).shape
        size = height, width
    except DatasetError as error:
        unreadable.append(str(error))
    try:
        raw = reader.raw(pair)
    except DatasetError as error:
        unreadable.append(str(error))
    if raw is None:
        return PairFindings(size, None, tuple(unreadable))
    table = reader.source.lookup(pair.encoding)
    found = np.bincount(raw.ravel(), minlength=256)
    unknown = tuple(np.flatnonzero((table == UNKNOWN) & (found > 0)).tolist())
    mask_size = raw.shape[0], raw.shape[1]
    pixels = None
    if size is not None and not unknown and (mask_size == size or reader.source.resize_masks):
        if mask_size != size:
            table, found = np.arange(256), np.bincount(reader.read(pair, size).ravel(), minlength=256)
        pixels = np.bincount(table, weights=found, minlength=256)[[*SLOTS]].astype(np.int64)
    return PairFindings(size, mask_size, tuple(unreadable), unknown, pixels)


def find_strays(root: Path, spec: DatasetSpec, splits: Sequence[str]) -> list[str]:
    """Masks that belong to no image, wherever masks of these splits may lie: paths relative to the root, sorted.

    Linked folders are not followed. Images count that lie in the folder of the split, whether they belong to
    it or not. DatasetError if a folder of images cannot be read.

    Args:
        root: the dataset's folder.
        spec: its specification.
        splits: the splits whose masks are looked for.
    """
    strays: set[str] = set()
    wanted: set[str] = set()
    layout = spec.layout
    for part in {part: None for split in splits for part in layout.joined.get(split, (split,))}:
        for folder in split_folders(root, layout, part):
            names = (output_stem(path)[len(folder) + 1 :] for path, _ in walk(root, folder, layout, (), part))
            stems = {name.removesuffix(layout.ending(part)) for name in names}
            for path, _ in mask_places(spec, part, part_of(layout, part, folder), "", "\0"):
                base, _, ending = path.partition("\0")
                strays |= {base + stem + ending for stem in _stems_below(located(root, base), ending)}
                wanted |= {base + stem + ending for stem in stems}
    return sorted(strays - wanted)


def _stems_below(folder: Path, ending: str) -> Iterator[str]:
    """Paths below ``folder``, with forward slashes, of the files whose name ends so, without that ending."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name.removesuffix(ending) for name in names if name[0] != "." and name.endswith(ending))


def spread(counts: Sequence[int], total: int) -> list[list[int]]:
    """Ascending places in lists of the lengths ``counts``, as many in each and far apart, up to ``total`` in all.

    Short lists leave their part to the others.
    """
    shares = [0] * len(counts)
    while sum(shares) < min(total, sum(counts)):
        shares[min((taken, place) for place, taken in enumerate(shares) if taken < counts[place])[1]] += 1
    return [
        [place * (length - 1) // max(1, share - 1) for place in range(share)]
        for length, share in zip(counts, shares, strict=True)
    ]


def _draw(output: Path, reader: LabelReader, report: DatasetFindings) -> None:
    if not report.sound:
        # Pictures of an earlier check would be taken for those of this one.
        for name in (CLASS_CHART, SHEET):
            (output / name).unlink(missing_ok=True)
        return
    title = f"{report.spec.title}: {', '.join(split.name for split in report.splits)}"
    draw_class_chart(output / CLASS_CHART, title, report.pixels, report.images, report.sound)
    places = spread([len(split.sound) for split in report.splits], _PICTURES)
    shown = [
        (split.name, split.sound[place])
        for split, chosen in zip(report.splits, places, strict=True)
        for place in chosen
    ]
    dataset_sheet(
        output / SHEET, f"{title}; labels over {len(shown)} of {plural(report.sound, 'image')}", reader, shown
    )


def _all_labelled(spec: DatasetSpec) -> list[str]:
    """The splits that together hold every image with a mask once."""
    layout = spec.layout
    # Joined splits hold the images of others once more, but where those may be missing they are looked at together.
    return [split for split in spec.labelled if (split in layout.joined) == layout.any_part]


def _root_of(spec: DatasetSpec, data_root: Path | None, root: Path | None) -> Path:
    from ..config.path_variables import PathContext, expand, expand_home, resolved_path

    if root is not None:
        if data_root is not None:
            raise ManifestError("--data-root: changes nothing beside --root; leave it out")
        return Path.cwd() / expand_home(str(root))
    variables = PathContext.of(Path.cwd(), data_root).variables
    try:
        place = expand(f"${{HMSA_DATA_ROOT}}/{spec.folder}", Path.cwd(), variables)
    except ValueError as error:
        raise ManifestError(f"--data-root: {error}") from error
    return resolved_path(place, f"{spec.name}: ")


def _own(splits: Sequence[str], spec: DatasetSpec, root: Path) -> list[str]:
    """Select the splits to look at: of variants and of those in archives of their own, only what is there."""
    layout = spec.layout
    optional = {*layout.variants, *layout.apart}
    plain = [split for split in splits if split not in optional]
    there = [split for split in splits if split in optional and split_folders(root, layout, split)]
    none = there and not any(split_folders(root, layout, split) for split in plain)
    return there if none else [*plain, *there]


def _listed(root: Path, spec: DatasetSpec, split: str) -> tuple[list[ImageMaskPair], list[str]]:
    """Images with and without masks; an error if it is no use to look at any of them."""
    if split in spec.unlabelled:
        return list_pairs(root, spec.name, split), []  # which says that they are not published
    pairs, alone = find_pairs(root, spec.name, split)
    if not pairs:
        return list_pairs(root, spec.name, split), []  # which says where the masks would lie
    for beside in sorted({panoptic_json(pair.mask) for pair in pairs if pair.encoding == "panoptic"}):
        if not (root / beside).is_file():
            raise DatasetError(
                f"{root / beside}: there is no such file, which says what the colours of masks mean; "
                f"unpack {spec.mask_archive}; {SEE}"
            )
    return pairs, alone


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({reason(error)}); choose another --output") from error
