"""The stage ``report``: one folder of pages and pictures that opens from the disk, without a network.

<folder>/index.html      one photograph as all members see it, summary, plots, gallery
<folder>/report.css, report.js
<folder>/plots/          SVG
<folder>/pictures/<key>/ one image's pictures and figures; what did not change is not made again
<folder>/story/          the members' class maps of the photograph on top, and a sheet of all its pictures
<folder>/report.json     the figures
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...datasets.layout.find_images import list_images
from ...datasets.layout.image_mask_pairs import without_masks
from ...datasets.parallel import map_files
from ...errors import DiskError, HmsaError, ManifestError, StoreError, disk_error
from ...files import write_json
from ..config.class_set_field import require_default
from ..config.manifest import Manifest
from ..fusion.ensemble_record import require_recorded_classes
from ..fusion.member_stores import stores_of, voting_members
from ..fusion.prediction_files import prediction_names, require_predictions
from ..fusion.prediction_sets import thresholds_of
from ..runtime.progress import Progress, say
from ..scoring.averages import DATASET, PLAIN
from ..scoring.detection.score_components import AUTO, ComponentPlan, least_sizes, score_components
from ..scoring.ground_truth import BRAVO, GroundTruth, has_labels, load_bravo_ground_truth, load_ground_truth
from ..scoring.instance_masks import FIGURES as INSTANCES
from ..scoring.instance_masks import reason_without_instances
from ..scoring.store_answers import FIGURES as PROBABILITIES
from ..scoring.store_answers import reason_without_probabilities
from ..storage.filesystem import remove_partials
from ..storage.output_folder import own_folders, predictions_path
from ..storage.writer_lock import writer_lock
from .image_summary import load_cached, summarise_image
from .page import FIGURES, write_page
from .records import PICTURES, RESAMPLING, DatasetSetup, DatasetSummary, Item
from .story import Story, choose_story, draw_story


def plan_report(
    manifest: Manifest,
    folder: Path,
    *,
    members: bool,
    width: int,
    limit: int | None = None,
    ground_truth: Path | None = None,
    average: str = DATASET,
    confidences: Sequence[str] = (),
    components: str = AUTO,
) -> list[tuple[DatasetSetup, list[Item]]]:
    """Check that photographs, predictions, labels and stores are there, and list each dataset's images.

    Args:
        manifest: whose predictions and stores.
        folder: of the report; a new or empty one, or one that holds a report.
        members: whether the members' stores are looked at.
        width: of the pictures.
        limit: images per dataset, from the first; None for all.
        ground_truth: BRAVO's tar file, for its datasets; None for none.
        average: one of `averages.AVERAGES`.
        confidences: functions whose uncertainty is shown as maps, from the members' stores.
        components: the track whose least sizes count, see `score_components.least_sizes`.

    Raises:
        HmsaError: the folder holds something else.
        DatasetError: photographs or masks are missing.
        StoreError: predictions or stores are missing, or lack images.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / FIGURES).is_file():
            raise HmsaError(f"--write {folder}: holds other things than a report; name another folder")
    except OSError as error:
        raise disk_error(folder, error) from error
    thresholds = _thresholds(manifest) if members else None
    pages = []
    for entry in manifest.datasets:
        root = entry.root_path()
        files = list_images(root, entry.type, entry.split, own_folders(manifest.output))[:limit]
        images = [file.path for file in files]
        predictions = predictions_path(manifest.output, entry.name)
        names = [name for image in images for name in prediction_names(image)]
        fix = "make them with 'hmsa-pipeline ensemble', or take --limit"
        require_predictions(predictions, names, f"{len(names)} predictions", fix)
        require_recorded_classes(predictions, manifest.class_set)
        truths: Mapping[str | None, GroundTruth | None] = {None: None}
        if has_labels(entry):
            found = load_ground_truth(entry, manifest.class_set, average=average)
            if left_out := {path for truth in found.values() for path in truth.left_out}:
                say(without_masks(entry.name, sorted(left_out)))
            truths = found
        if entry.type == BRAVO and ground_truth is not None:
            require_default(manifest.class_set, "--ground-truth")
            truths = {None: load_bravo_ground_truth(entry, images, ground_truth, average)}
        member_stores = stores_of(manifest, entry.name, images) if members else ()
        parts = [None] if None in truths else list(dict.fromkeys(file.split for file in files))
        for part in parts:
            truth = truths.get(part)
            pairs = {pair.image: pair for pair in truth.pairs} if truth else {}
            setup = DatasetSetup(
                dataset=entry.name if part is None else f"{entry.name}/{part}",
                root=root,
                predictions=predictions,
                truth=truth.without_pairs() if truth else None,
                members=member_stores,
                functions=manifest.ensemble,
                folder=folder,
                width=width,
                exif=entry.exif,
                classes=manifest.class_set,
                confidences=tuple(confidences),
                left_out=_left_out(truth, manifest, members) if truth else {},
                least=least_sizes(truth, components) if truth and truth.ood else None,
                thresholds=thresholds,
            )
            selected = [file.path for file in files if part is None or file.split == part]
            pages.append((setup, [(image, pairs.get(image)) for image in selected]))
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        if not (folder / FIGURES).is_file():
            write_json(folder / FIGURES, {})  # marks it as a report's
    except OSError as error:
        raise disk_error(folder, error) from error
    return pages


def run_report(
    pages: Sequence[tuple[DatasetSetup, list[Item]]], manifest: Manifest, processes: int | None = None
) -> list[DatasetSummary]:
    """Make the pictures, the plots and the page; an image that cannot be read is listed, the others are shown.

    Args:
        pages: of `plan_report`.
        manifest: that they were made of; it is shown.
        processes: how many work; None for one a usable core.

    Raises:
        DatasetError: a process was ended from outside.
        StoreError: another run makes the same report now.
        DiskError: a file cannot be written.
    """
    folder = pages[0][0].folder
    with writer_lock(folder):  # two at once would remove one another's pictures
        summaries = _draw_pictures(pages, processes)
        shown = {entry.key for summary in summaries for entry in summary.gallery.values()}
        try:
            _count_components(pages, summaries, processes)
            story = _draw_story(pages, summaries)
            write_page(folder, manifest, summaries, story, processes)
            for old in (folder / PICTURES).iterdir():
                if re.fullmatch("[0-9a-f]{20}", old.name) and old.name not in shown:
                    shutil.rmtree(old)
            remove_partials(folder)
        except OSError as error:
            raise disk_error(folder, error) from error
    return summaries


def _thresholds(manifest: Manifest) -> tuple[float, ...] | None:
    """Thresholds of the manifest's prediction sets; None if it has none of this ensemble."""
    if manifest.sets is None:
        return None
    try:
        return thresholds_of(manifest)
    except ManifestError as error:
        say(f"note: no coverage of prediction sets: {error}")
        return None


def _left_out(truth: GroundTruth, manifest: Manifest, members: bool) -> dict[str, str]:
    """Figures that the labels or the members do not give -> why."""
    if truth.ood:
        return {}
    found: dict[str, str] = {}
    if reason := reason_without_instances(truth):
        found |= dict.fromkeys(INSTANCES, reason)
    subjects = {member.name: (number,) for number, member in enumerate(voting_members(manifest))}
    reason = reason_without_probabilities(subjects, manifest.ensemble, others=False)
    if not members:
        reason = "probabilities are read from the members' stores, which --no-members leaves out"
    if reason:
        found |= dict.fromkeys(PROBABILITIES, reason)
    return found


def _count_components(
    pages: Sequence[tuple[DatasetSetup, list[Item]]], summaries: Sequence[DatasetSummary], processes: int | None
) -> None:
    """Count the components of what is out of distribution, at the threshold that all pixels of a dataset give."""
    for (setup, items), summary in zip(pages, summaries, strict=True):
        if setup.least is None or setup.truth is None or not summary.counts:
            continue
        plan = ComponentPlan(
            setup.dataset,
            setup.predictions,
            replace(setup.truth, pairs=tuple(pair for _, pair in items if pair)),
            setup.members,
            {member.name: (number,) for number, (member, _) in enumerate(setup.members)},
            setup.functions,
            setup.least,
        )
        summary.components = score_components(plan, summary.counts, summary.failed, processes, RESAMPLING)
        summary.failed |= summary.components.failed


def _draw_pictures(pages: Sequence[tuple[DatasetSetup, list[Item]]], processes: int | None) -> list[DatasetSummary]:
    """Draw the pictures that are not there yet; summarise every dataset."""
    setups = [setup for setup, _ in pages]
    summaries = []
    # Sums of logarithms depend on their order: images are added in that of the dataset, whichever was there before.
    waiting: list[tuple[int, Item, bool]] = []
    for number, (setup, items) in enumerate(pages):
        average = setup.truth.average if setup.truth else PLAIN
        summaries.append(
            DatasetSummary(
                setup.dataset,
                [member.name for member, _ in setup.members],
                average,
                setup.classes,
                left_out=setup.left_out,
            )
        )
        if setup.truth:
            summaries[number].resample([image for image, pair in items if pair])
        for item in items:
            cached = load_cached(setup, item)
            if cached and not waiting:
                summaries[number].add(item[0], cached)
            else:
                waiting.append((number, item, cached is None))
    remaining = [(number, item) for number, item, missing in waiting if missing]
    # The same processes for all datasets: they take seconds to start.
    with Progress(len(remaining)) as progress:
        progress.job("pictures", len(remaining))
        drawn = map_files(partial(summarise_image, setups), remaining, processes, together=1)
        for number, item, missing in waiting:
            if found := next(drawn) if missing else load_cached(setups[number], item):
                summaries[number].add(item[0], found)
            if missing:
                progress.advance()
    return summaries


def _draw_story(
    pages: Sequence[tuple[DatasetSetup, list[Item]]], summaries: Sequence[DatasetSummary]
) -> Story | None:
    """Draw the picture on top of the page; None if there is no image to choose from."""
    choice = choose_story(summaries)
    if choice is None:
        return None
    (setup, items), summary = pages[choice.number], summaries[choice.number]
    item = next(item for item in items if item[0] == choice.image)
    cached = load_cached(setup, item)  # its counts, of which the summary keeps only the sums
    counts = {name: one for name, one in cached.counts.items() if not one.ood} if cached else {}
    wrong = {name: 1 - one.confusion.trace() / max(1, one.confusion.sum()) for name, one in counts.items()}
    try:
        return draw_story(setup, summary, choice, wrong)
    except StoreError as error:  # it was drawn before, and its logits were damaged since
        if isinstance(error, DiskError):
            raise
        summary.failed[choice.image] = str(error)
        return None
