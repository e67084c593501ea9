"""Sources of a training run: their photographs and labels, and how many of them an epoch takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...datasets.auto_labels import RECORD, AutoLabels, read_auto_labels
from ...datasets.class_set import ClassSet
from ...datasets.class_set_labels import FOLDER, describe_labels
from ...datasets.class_uniform import CentroidIndex, EpochSource
from ...datasets.labels.label_reader import LabelReader
from ...datasets.labels.mask_reader import AutoLabelReader, MaskReader, NoLabels, auto_label_pairs
from ...datasets.layout.find_images import list_images
from ...datasets.layout.image_mask_pairs import ImageMaskPair, labelled_pairs
from ...errors import DatasetError, ManifestError, nearest
from ..config.recipe import Recipe
from ..config.recipe_data import NONE, OWN, Data
from ..text import plural


@dataclass(frozen=True)
class Source:
    """A source of the recipe, found on the disk.

    Attributes:
        data: its settings.
        root: the dataset's folder.
        pairs: photographs, with their masks if it has its own.
        auto_labels: the labels that it has instead; None for its own, or none.
        left_out: photographs without a mask that were left out.
        classes: of the recipe.
    """

    data: Data
    root: Path
    pairs: list[ImageMaskPair]
    auto_labels: AutoLabels | None
    left_out: list[str]
    classes: ClassSet

    @property
    def has_labels(self) -> bool:
        """False if nothing but soft targets is learnt here."""
        return self.data.labels != NONE

    def reader(self, cache: Path) -> MaskReader:
        """Make the reader of its labels; drawn polygons are kept in ``cache``."""
        if self.auto_labels is not None:
            data = self.data
            return AutoLabelReader(self.root, self.auto_labels, data.threshold, weigh=data.weight_by_confidence)
        if not self.has_labels:
            return NoLabels(self.root, len(self.classes))
        return own_reader(self.data, self.root, cache, self.classes)

    def is_active(self, epoch: int) -> bool:
        """Say whether epoch ``epoch``, from 0, learns from here."""
        return self.data.until_epoch is None or epoch < self.data.until_epoch

    def describe(self) -> str:
        """Describe labels and rules in a few words."""
        said = {OWN: "own labels", NONE: "no labels"}.get(self.data.labels, "auto-labels")
        if self.auto_labels is not None:
            said += f" of {self.auto_labels.folder}"
        if self.data.threshold is not None:
            said += f" from confidence {self.data.threshold:g}"
        if self.data.weight_by_confidence:
            said += ", weighed by confidence"
        if boost := self.data.boost:
            said += f", looked through for {', '.join(boost.classes)}" + (f" (x{boost.factor})" * (boost.factor > 1))
        return said


def own_reader(data: Data, root: Path, cache: Path, classes: ClassSet) -> LabelReader:
    """Make the reader of a dataset's own masks.

    Args:
        data: its settings.
        root: its folder.
        cache: where drawn polygons are kept.
        classes: whose ids the labels become; DatasetError if the dataset has none of them.
    """
    return LabelReader(root, describe_labels(data.type, data.mapping, data.masks_path(), classes), cache)


def find_split(data: Data, split: str, classes: ClassSet) -> tuple[list[ImageMaskPair], list[str]]:
    """List the photographs of a split with their masks, and those that are left out since they have none.

    Args:
        data: the dataset.
        split: its name.
        classes: of the recipe.

    Raises:
        DatasetError: as `labelled_pairs`, or there are none.
    """
    pairs, left_out = labelled_pairs(
        data.root_path(),
        data.type,
        split,
        leave_out=data.without_masks,
        facts=describe_labels(data.type, data.mapping, data.masks_path(), classes),
        allow_unlabelled=data.allow_unlabelled,
        all_there=False,
    )
    if not pairs:
        raise _empty(data, split)
    return pairs[: data.limit], left_out


def find_source(data: Data, classes: ClassSet) -> Source:
    """Find the photographs of a source and their labels, which are of ``classes``.

    Raises:
        DatasetError: photographs, masks or auto-labels are missing, changed, or of other classes.
        ManifestError: a class of its boost is not known, or a variable in a path is not set.
    """
    root = data.root_path()
    for name in data.boost.classes if data.boost else ():
        if name not in classes.names:
            raise ManifestError(f"data: boost.classes names '{name}'; {nearest(name, classes.names)}")
    if data.labels == OWN:
        pairs, left_out = find_split(data, data.train, classes)
        return Source(data, root, pairs, None, left_out, classes)
    # Photographs that were left out for want of a mask may have other labels.
    photographs = _photographs(data, root)[: data.limit]
    if not photographs:
        raise _empty(data, data.train)
    folder = data.labels_path()
    if folder is None:
        return Source(data, root, [ImageMaskPair(path, "", NONE) for path in photographs], None, [], classes)
    labels = read_auto_labels(folder)
    labels.require_classes(classes.names)
    if data.threshold is not None:
        labels.require_threshold(data.threshold)
    return Source(data, root, auto_label_pairs(labels, root, photographs), labels, [], classes)


def _photographs(data: Data, root: Path) -> list[str]:
    """The paths of a split's photographs; the splits of a folder are folders in it."""
    if data.type == FOLDER:
        return [image.path for image in list_images(root, FOLDER) if image.path.startswith(f"{data.train}/")]
    return [image.path for image in list_images(root, data.type, data.train)]


def _empty(data: Data, split: str) -> DatasetError:
    return DatasetError(f"{data.root_path()}: split '{split}' is empty; check the folder or the split lists")


def epoch_sources(
    sources: Sequence[Source], indices: Sequence[CentroidIndex | None], epoch: int
) -> list[EpochSource]:
    """List what an epoch draws from.

    Args:
        sources: all sources.
        indices: where the classes are in each.
        epoch: from 0.
    """
    found = []
    for source, index in zip(sources, indices, strict=True):
        boost = source.data.boost
        factors = (
            None if boost is None else {source.classes.names.index(name): boost.factor for name in boost.classes}
        )
        share = len(source.pairs) if source.data.share is None else source.data.share
        found.append(EpochSource(len(source.pairs), index, share, factors, source.is_active(epoch)))
    return found


def fingerprint(sources: Sequence[Source], taught_by: Sequence[str] = ()) -> str:
    """Fingerprint what is learnt from; saved epochs refer to images by their numbers.

    Args:
        sources: images and labels.
        taught_by: teachers, a line each.
    """
    lines = [pair.image for pair in sources[0].pairs]
    for source in sources[1:]:
        lines += ["", *(pair.image for pair in source.pairs)]
    for source in sources:
        if source.auto_labels is not None:
            record = (source.auto_labels.folder / RECORD).read_bytes()
            lines.append(f"labels {hashlib.sha256(record).hexdigest()}")
    lines += taught_by
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def epoch_plan(recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """Describe what the epochs take of each source, a line each; nothing for a single source.

    Args:
        recipe: the recipe.
        sources: its sources.
    """
    if len(sources) == 1:
        return []
    length = len(sources[0].pairs)
    ends = sorted({min(s.data.until_epoch, recipe.epochs) for s in sources if s.data.until_epoch} | {recipe.epochs})
    lines, first = [], 0
    for end in ends:
        active = epoch_sources(sources, [None] * len(sources), first)
        total = sum(one.share for one in active if one.is_active)
        uniform = recipe.sampling.class_uniform
        said = [
            f"{_percent((1 - uniform) * one.share / total)} of [{number}]"
            for number, one in enumerate(active)
            if one.is_active
        ]
        span = f"epoch {end}" if end == first + 1 else f"epochs {first + 1} to {end}"
        line = f"{span}: {plural(length, 'image')} each, at random {', '.join(said)}"
        if uniform:
            pooled = ", ".join(f"[{number}]" for number, one in enumerate(active) if one.is_active)
            line += f"; {_percent(uniform)} class-uniform over {pooled}"
        lines.append(line)
        first = end
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
