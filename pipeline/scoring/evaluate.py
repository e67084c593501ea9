"""The stage ``evaluate``: predictions and members against labels, image by image, in constant memory.

What is kept of an image are counts (see `metrics`), which add up over images, processes and machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.layout.image_mask_pairs import ImageMaskPair, without_masks
from ...datasets.parallel import map_files
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, ManifestError, StoreError
from ..config.manifest import DatasetEntry, Manifest
from ..config.manifest import FusionFunctions as Functions
from ..fusion.ensemble_record import require_recorded_classes
from ..fusion.member_stores import (
    ENSEMBLE,
    MemberStore,
    predict_from_stores,
    scored_combinations,
    stores_of,
    voting_members,
)
from ..fusion.prediction_files import prediction_names, read_prediction, require_classes, require_predictions
from ..runtime.progress import Progress
from ..storage.output_folder import predictions_path
from ..text import figure, plural, without_nan
from .averages import DATASET
from .ground_truth import LABELLED, GroundTruth, has_labels, load_ground_truth
from .pixel_counts import PixelCounts


@dataclass(frozen=True)
class EvaluationPlan:
    """One dataset, ready to be scored.

    Attributes:
        dataset: its name; with ``/`` and the name of the part behind it, where parts are scored one by one.
        folder: the predictions.
        truth: images with masks.
        members: whose stores are scored.
        subjects: which of them together are scored under which name, with the functions of the manifest.
    """

    dataset: str
    folder: Path
    truth: GroundTruth
    members: tuple[MemberStore, ...]
    subjects: Mapping[str, tuple[int, ...]]
    functions: Functions

    @property
    def note(self) -> str | None:
        """Message on images left out because they have no mask; None if there are none."""
        return without_masks(self.dataset, self.truth.left_out) if self.truth.left_out else None


@dataclass
class EvaluationResult:
    """Counts of each subject over one dataset, and images that were not scored -> reasons."""

    dataset: str
    truth: GroundTruth
    counts: dict[str, PixelCounts]
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Figures by subject; null where one is not defined."""
        average = self.truth.average
        scores = {name: without_nan(counts.figures(average)) for name, counts in self.counts.items()}
        found = {
            "dataset": self.dataset,
            "classes": list(self.truth.classes.names),
            "scores": scores,
            "failed": self.failed,
        }
        if self.truth.left_out:
            found["without_mask"] = list(self.truth.left_out)
        # Where pixels out of distribution are found there is no mean IoU.
        return found if self.truth.ood else found | {"average": average.as_json()}


def plan_evaluation(
    manifest: Manifest,
    *,
    predictions: Path | None = None,
    per_model: bool = False,
    leave_one_out: bool = False,
    limit: int | None = None,
    average: str = DATASET,
    allow_unlabelled: bool = False,
) -> list[EvaluationPlan]:
    """Check that labels, predictions and stores are there.

    Args:
        manifest: its datasets of a type that has labels are scored; there must be one.
        predictions: a tree of ``_pred.png`` and ``_conf.png`` for the only dataset; None for ours.
        per_model: whether each member is scored from its store too.
        leave_one_out: whether the ensemble without each member is scored from the stores too.
        limit: images per dataset, from the first; None for all.
        average: which classes a mean IoU runs over, one of `averages.AVERAGES`.
        allow_unlabelled: leave out images that have no mask, whatever the manifest says of them.

    Raises:
        ManifestError: no dataset has labels.
        DatasetError: masks or images are missing.
        StoreError: predictions or stores are missing, or lack images.
    """
    labelled = [entry for entry in manifest.datasets if has_labels(entry)]
    if not labelled:
        raise ManifestError(
            f"no dataset of the manifest has labels (types: {', '.join(d.type for d in manifest.datasets)}); types "
            f"that have: {', '.join(LABELLED)}, and folder with 'masks'; BRAVO is scored with --ground-truth and "
            "--samples"
        )
    if predictions is not None and len(labelled) > 1:
        names = ", ".join(entry.name for entry in labelled)
        raise ManifestError(f"--predictions: belongs to one dataset; name it with --datasets, of {names}")
    subjects = scored_combinations(voting_members(manifest), per_model=per_model, leave_one_out=leave_one_out)
    return [
        _plan_dataset(manifest, entry, part, truth, predictions, subjects)
        for entry in labelled
        for part, truth in load_ground_truth(
            entry, manifest.class_set, limit, average, allow_unlabelled=allow_unlabelled
        ).items()
    ]


def _plan_dataset(
    manifest: Manifest,
    entry: DatasetEntry,
    part: str | None,
    truth: GroundTruth,
    predictions: Path | None,
    subjects: Mapping[str, tuple[int, ...]],
) -> EvaluationPlan:
    folder = predictions_path(manifest.output, entry.name) if predictions is None else predictions
    if predictions is None:
        require_recorded_classes(folder, manifest.class_set)
    names = [name for pair in truth.pairs for name in prediction_names(pair.image)]
    called = f"the {len(names)} predictions that the labels call for"
    fix = "make them with 'hmsa-pipeline dump' and 'ensemble', or take --limit"
    require_predictions(folder, names, called, fix)
    stores = stores_of(manifest, entry.name, [pair.image for pair in truth.pairs]) if subjects else ()
    name = entry.name if part is None else f"{entry.name}/{part}"
    return EvaluationPlan(name, folder, truth, stores, subjects, manifest.ensemble)


def evaluate(plan: EvaluationPlan, workers: int | None = None) -> EvaluationResult:
    """Score one dataset in ``workers`` processes, None for one a usable core.

    An image that cannot be read is listed, the others are counted; DatasetError if a process was ended from outside.
    """
    subjects = (ENSEMBLE, *plan.subjects)  # in the order of the table
    result = EvaluationResult(
        plan.dataset,
        plan.truth,
        {name: PixelCounts.none(plan.truth.ood, len(plan.truth.classes)) for name in subjects},
    )
    with Progress(len(plan.truth.pairs)) as progress:
        progress.job(plan.dataset, len(plan.truth.pairs))
        found: Iterator[dict[str, PixelCounts] | str] = map_files(
            partial(_scored, plan), plan.truth.pairs, workers, together=1
        )
        for pair, counts in zip(plan.truth.pairs, found, strict=True):
            if isinstance(counts, str):
                result.failed[pair.image] = counts
            else:
                for name, counted in counts.items():
                    result.counts[name] += counted
            progress.advance()
    return result


def _scored(plan: EvaluationPlan, pair: ImageMaskPair) -> dict[str, PixelCounts] | str:
    """The image's counts for each subject, or why there are none."""
    try:
        # What a class map says where nothing is labelled counts nowhere, as with BRAVO: often 255.
        names = prediction_names(pair.image)
        label, confidence = read_prediction(plan.folder, names, None)
        truth = plan.truth.reader.read(pair, (label.shape[0], label.shape[1]))
        if not plan.truth.ood:
            require_classes(
                label[truth != IGNORE], str(plan.folder / names[0]), plan.truth.classes, " on labelled pixels"
            )
        answers = {ENSEMBLE: (label, confidence)}
        if plan.subjects:
            answers |= predict_from_stores(plan.members, pair.image, plan.subjects, plan.functions)
    except (DatasetError, StoreError) as error:
        return str(error)
    for label, _ in answers.values():
        if label.shape != truth.shape:
            return (
                f"{plan.members[0][1]}: holds {pair.image} as {label.shape[0]}x{label.shape[1]}, its prediction is "
                f"{truth.shape[0]}x{truth.shape[1]}; score them one after the other"
            )
    return {name: plan.truth.count(label, confidence, truth) for name, (label, confidence) in answers.items()}


def evaluation_table(result: EvaluationResult) -> list[str]:
    """A line for each subject and, where there are classes, one for each with its IoU in every subject."""
    truth = result.truth
    figures = {name: counts.figures(truth.average) for name, counts in result.counts.items()}
    wide = max(map(len, [*figures, *truth.classes.names]))
    pixels = max(row["pixels"] for row in figures.values())
    images = max(row["images"] for row in figures.values())
    whose = "it should have by others' count" if truth.unsure else "its authors label"
    of = f" of the {truth.official} that {whose}" if images < (truth.official or 0) else ""
    lines = [f"{result.dataset}: {plural(images, 'image')}{of}, {pixels} labelled pixels"]
    if not truth.ood:
        lines.append(f"mIoU {truth.average.words()}; miou_classes says how many")
    columns = [name for name in next(iter(figures.values())) if name not in ("images", "pixels", "iou")]
    lines.append(f"{'':{wide}}  " + "  ".join(f"{name:>13}" for name in columns))
    lines += [
        f"{name:{wide}}  " + "  ".join(f"{figure(row[column]):>13}" for column in columns)
        for name, row in figures.items()
    ]
    if not any("iou" in row for row in figures.values()):
        return lines
    across = [max(7, len(name)) for name in figures]
    lines.append(f"{'IoU':{wide}}  " + "  ".join(f"{n:>{w}}" for n, w in zip(figures, across, strict=True)))
    for number, name in enumerate(truth.classes.names):
        values = [row["iou"][number] for row in figures.values()]
        lines.append(f"{name:{wide}}  " + "  ".join(f"{figure(v):>{w}}" for v, w in zip(values, across, strict=True)))
    return lines


def evaluation_rows(results: Sequence[EvaluationResult]) -> list[dict[str, Any]]:
    """One flat row for each dataset and subject, IoU by class name; empty where a figure is not defined."""
    found = []
    for result in results:
        for name, counts in result.counts.items():
            figures = without_nan(counts.figures(result.truth.average))
            iou = {
                f"iou {c}": value
                for c, value in zip(result.truth.classes.names, figures.pop("iou", ()), strict=False)
            }
            rule = {} if counts.ood else {"average": result.truth.average.name}
            found.append({"dataset": result.dataset, "subject": name, **figures, **rule, **iou})
    return found
