"""The stage ``evaluate``: predictions and members against labels, image by image, in constant memory.

What is kept of an image are counts (see `metrics`), which add up over images, processes and machines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...datasets.layout.image_mask_pairs import ImageMaskPair, without_masks
from ...datasets.taxonomy import IGNORE
from ...errors import DatasetError, ManifestError, StoreError
from ..config.manifest import DatasetEntry, Manifest
from ..config.manifest import FusionFunctions as Functions
from ..fusion.ensemble_record import require_recorded_classes
from ..fusion.member_stores import (
    ENSEMBLE,
    MemberStore,
    scored_combinations,
    stores_of,
    voting_members,
)
from ..fusion.prediction_files import prediction_names, read_prediction, require_classes, require_predictions
from ..runtime.device import one_thread
from ..storage.output_folder import predictions_path
from ..text import without_nan
from .averages import DATASET
from .each_image import count_each_image
from .ground_truth import LABELLED, GroundTruth, has_labels, load_ground_truth
from .instance_masks import FIGURES as INSTANCES
from .instance_masks import SIZES, read_instances, reason_without_instances
from .pixel_counts import PixelCounts
from .resampling.bootstrap import Bootstrap, Replicates, Resampling, intervals
from .resampling.comparison import Difference, differences
from .store_answers import FIGURES as PROBABILITIES
from .store_answers import answers_from_stores, reason_without_probabilities


@dataclass(frozen=True)
class EvaluationPlan:
    """One dataset, ready to be scored.

    Attributes:
        dataset: its name; with ``/`` and the name of the part behind it, where parts are scored one by one.
        folder: the predictions.
        truth: images with masks.
        members: whose stores are scored.
        subjects: which of them together are scored under which name, with the functions of the manifest.
        left_out: figures that the data does not give -> why.
    """

    dataset: str
    folder: Path
    truth: GroundTruth
    members: tuple[MemberStore, ...]
    subjects: Mapping[str, tuple[int, ...]]
    functions: Functions
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str | None:
        """Message on images left out because they have no mask; None if there are none."""
        return without_masks(self.dataset, self.truth.left_out) if self.truth.left_out else None


@dataclass
class EvaluationResult:
    """Counts of each subject over one dataset.

    Attributes:
        dataset: its name.
        truth: its labels.
        counts: by subject.
        failed: images that were not scored -> reasons.
        resampling: how images were resampled; None if they were not.
        replicates: figures of the resamplings, by subject; None of fewer than two images.
        compare: the two subjects that are compared; None for none.
        left_out: figures that the data does not give -> why.
    """

    dataset: str
    truth: GroundTruth
    counts: dict[str, PixelCounts]
    failed: dict[str, str] = field(default_factory=dict)
    resampling: Resampling | None = None
    replicates: dict[str, Replicates | None] = field(default_factory=dict)
    compare: tuple[str, str] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Figures by subject; NaN where one is not defined."""
        return {name: counts.figures(self.truth.average) for name, counts in self.counts.items()}

    def intervals(self) -> dict[str, dict[str, Any]]:
        """The ends of the interval of each figure, by subject; no figures of fewer than two images."""
        return {name: intervals(found) for name, found in self.replicates.items()}

    def differences(self) -> dict[str, Difference | list[Difference]]:
        """Figures of the first subject that is compared minus those of the second; none without a comparison."""
        if self.compare is None:
            return {}
        figures = self.figures()
        one, other = self.compare
        return differences((figures[one], figures[other]), (self.replicates[one], self.replicates[other]))

    def as_json(self) -> dict[str, Any]:
        """Figures by subject; null where one is not defined."""
        found = {
            "dataset": self.dataset,
            "classes": list(self.truth.classes.names),
            "scores": {name: without_nan(figures) for name, figures in self.figures().items()},
            "failed": self.failed,
        }
        if not self.truth.ood:
            found["confusion"] = {name: counts.confusion.tolist() for name, counts in self.counts.items()}
            found["left_out"] = dict(self.left_out)
        if self.truth.left_out:
            found["without_mask"] = list(self.truth.left_out)
        if self.resampling is not None:
            found["bootstrap"] = self.resampling.as_json()
            found["intervals"] = {name: without_nan(ends) for name, ends in self.intervals().items()}
        if self.compare is not None:
            found["comparison"] = {
                "subjects": list(self.compare),
                "figures": {
                    name: [without_nan(each.as_json()) for each in one]
                    if isinstance(one, list)
                    else without_nan(one.as_json())
                    for name, one in self.differences().items()
                },
            }
        # Where pixels out of distribution are found there is no mean IoU.
        return found if self.truth.ood else found | {"average": self.truth.average.as_json()}


def plan_evaluation(
    manifest: Manifest,
    *,
    predictions: Path | None = None,
    per_model: bool = False,
    leave_one_out: bool = False,
    limit: int | None = None,
    average: str = DATASET,
    allow_unlabelled: bool = False,
    compare: Sequence[str] = (),
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
        compare: subjects that are scored whatever else is.

    Raises:
        ManifestError: no dataset has labels, or ``compare`` names what is no subject.
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
    members = voting_members(manifest)
    subjects = scored_combinations(members, per_model=per_model, leave_one_out=leave_one_out, named=compare)
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
    left_out: dict[str, str] = {}
    if not truth.ood:
        if reason := reason_without_instances(truth):
            left_out |= dict.fromkeys(INSTANCES, reason)
        others = predictions is not None
        if reason := reason_without_probabilities(subjects, manifest.ensemble, others=others):
            left_out |= dict.fromkeys(PROBABILITIES, reason)
    return EvaluationPlan(name, folder, truth, stores, subjects, manifest.ensemble, left_out)


def evaluate(
    plan: EvaluationPlan,
    workers: int | None = None,
    resampling: Resampling | None = None,
    compare: tuple[str, str] | None = None,
) -> EvaluationResult:
    """Score one dataset.

    An image that cannot be read is listed, the others are counted; DatasetError if a process was ended from outside.

    Args:
        plan: of the dataset.
        workers: how many processes work; None for one a usable core.
        resampling: how images are resampled for intervals; None for no intervals.
        compare: two subjects of the plan that are compared; None for none. Needs ``resampling``.
    """
    subjects = (ENSEMBLE, *plan.subjects)  # in the order of the table
    classes, ood = len(plan.truth.classes), plan.truth.ood
    counts = {name: PixelCounts.none(ood, classes) for name in subjects}
    result = EvaluationResult(
        plan.dataset, plan.truth, counts, resampling=resampling, compare=compare, left_out=plan.left_out
    )
    images = len(plan.truth.pairs)
    bootstrap = Bootstrap(subjects, images, resampling) if resampling else None
    for scored in count_each_image(plan.dataset, plan.truth.pairs, partial(_scored, plan), workers, result.failed):
        for name, counted in (scored or {}).items():
            result.counts[name] += counted
        if bootstrap:
            bootstrap.add(scored)
    if bootstrap:
        average = plan.truth.average
        result.replicates = {name: bootstrap.replicates(name, counts[name], average) for name in subjects}
    return result


@one_thread()
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
        instances = None
        if not plan.truth.ood and INSTANCES[0] not in plan.left_out:
            instances = read_instances(plan.truth.reader.root, pair, truth.shape), SIZES
        answers, sums = {ENSEMBLE: (label, confidence)}, None
        if plan.subjects:
            probable = not plan.truth.ood and PROBABILITIES[0] not in plan.left_out
            known = (truth, len(plan.truth.classes)) if probable else None
            found, sums = answers_from_stores(plan.members, pair.image, plan.subjects, plan.functions, known)
            answers |= found
    except (DatasetError, StoreError) as error:
        return str(error)
    for label, _ in answers.values():
        if label.shape != truth.shape:
            return (
                f"{plan.members[0][1]}: holds {pair.image} as {label.shape[0]}x{label.shape[1]}, its prediction is "
                f"{truth.shape[0]}x{truth.shape[1]}; score them one after the other"
            )
    image = plan.truth.labelled_image(truth, instances)
    counts = {name: image.count(label, confidence) for name, (label, confidence) in answers.items()}
    if sums is not None:
        for name, counted in counts.items():
            counted.losses, counted.classwise = sums.losses[name], sums.classwise[name]
    return counts
