"""The stage ``autolabel``: thresholds, then labels image by image, then the record of what was kept."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets.auto_labels import (
    CONFIDENCE,
    LABELS,
    PHOTOGRAPHS,
    RECORD,
    SHEET,
    AutoLabels,
    PhotographFacts,
    label_name,
)
from ...datasets.layout.image_mask_pairs import ImageMaskPair
from ...errors import ManifestError, StoreError, disk_error, first_few
from ...files import is_partial
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from ..fusion.prediction_folder import PredictionJob
from ..pictures.sheet import dataset_sheet
from ..storage.filesystem import (
    listing,
    read_bytes,
    remove,
    remove_all,
    remove_folder,
    remove_partials,
    size,
    write_json,
)
from ..storage.writer_lock import writer_lock
from ..workers.jobs import JobImage, JobResult, JobSummary
from ..workers.protocol import Workers
from ..workers.recorded_jobs import run_recorded_jobs
from .block import COUNTS, AutolabelBlock
from .measure import measure_fit, measure_levels
from .pixels import LabelCounts
from .plan import AutolabelPlan, DatasetPlan, required_paths
from .record import begun_record, ended_record, levels_of, read_labels_record, require_same_labels
from .settings import KEEP, NOTHING, PRECISION, AutolabelSettings, threshold_level
from .thresholds import FitCounts, keep_levels

_THREADS = 8
_PICTURES = 12


@dataclass(kw_only=True)
class AutolabelResult(JobResult):
    """Result of one dataset; ``labels`` is its complete record, None as long as there is none."""

    labels: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the counts for ``--json``, and what was kept of each class."""
        counts = {name: getattr(self, name) for name in ("dataset", "done", "skipped", "failed", "seconds")}
        names = ("labelled", "pixels", "kept", "share", "fit", "classes")
        return counts | {name: self.labels[name] if self.labels else None for name in names}

    def record(self) -> dict[str, Any]:
        """Return the entries for ``run.json``."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }


def run_autolabel(
    plan: AutolabelPlan,
    workers: Workers,
    on_result: Callable[[AutolabelResult], None],
    *,
    processes: int | None = None,
    overwrite: bool = False,
    allow_empty: bool = False,
) -> list[AutolabelResult]:
    """Label what the plan lists; damaged images are reported, and the others are labelled.

    Args:
        plan: see `plan_autolabel`.
        workers: who labels.
        on_result: called with each dataset's result when it ends.
        processes: number of those that measure thresholds and precision; None for one a core, 0 as 1.
        overwrite: remove existing labels before the first image is labelled.
        allow_empty: a threshold may keep nothing of a class.

    Raises:
        ManifestError: a threshold keeps nothing of a class; labels that were made are kept.
        StoreError: as `run_jobs`; thresholds cannot be measured.
        DatasetError: masks or photographs cannot be read.
    """
    if overwrite:
        for one in plan.datasets:
            _remove_labels(one.folder)
    records = _begun_records(plan, processes, allow_empty)
    results = run_recorded_jobs(
        "autolabel",
        [AutolabelJob(one, record, plan.settings) for one, record in zip(plan.datasets, records, strict=True)],
        workers,
        on_result,
        todo=sum(len(one.tasks) for one in plan.datasets),
        output=plan.write,
        manifest=plan.manifest.resolved(),
        required_paths=required_paths(plan),
    )
    by_name = {one.entry.name: one for one in plan.datasets}
    for result in results:
        one = by_name[result.dataset]
        if not result.interrupted and not result.failed.keys() - one.absent.keys():
            result.labels = _finish(one, plan.settings, allow_empty)
    return results


def _begun_records(plan: AutolabelPlan, processes: int | None, allow_empty: bool) -> list[dict[str, Any]]:
    """Find the thresholds of each dataset, or take those of an interrupted run."""
    settings, fit = plan.settings, plan.fit
    fitted: FitCounts | None = None
    if fit is not None and not all(one.before for one in plan.datasets):
        fitted = measure_fit(fit, processes)
        if settings.rule == PRECISION and not allow_empty:
            _require_reached(fitted, plan, fit.teacher.classes)
    records = []
    for one in plan.datasets:
        classes = one.teacher.classes
        if one.before:
            records.append({**one.before, "complete": False})
            continue
        if settings.rule == KEEP:
            counts = measure_levels(one.entry.name, one.teacher, list(one.images), processes)
            levels = keep_levels(counts, settings.value)
        elif settings.rule == PRECISION and fitted is not None:
            levels = fitted.levels(settings.value)
        else:
            levels = (threshold_level(settings.value),) * len(classes)
        precision = [fitted.precision(place, level) if fitted else None for place, level in enumerate(levels)]
        records.append(begun_record(one.work, classes, levels, precision))
    return records


def _require_reached(fitted: FitCounts, plan: AutolabelPlan, classes: Sequence[str]) -> None:
    """Raise ManifestError if a class that is predicted on the labelled images has the precision nowhere."""
    target, fit = plan.settings.value, plan.fit
    missed = []
    for place, level in enumerate(fitted.levels(target)):
        best = fitted.best(place)
        if level >= NOTHING and best is not None:
            missed.append(f"{classes[place]} (best {best[0]:.3f}, at confidence {best[1] / CONFIDENCE_LEVELS:.3f})")
    if missed and fit is not None:
        raise ManifestError(
            f"--precision {target:g}: no threshold reaches it on {fit.entry.name} for {first_few(missed, 3)}; "
            "lower it, or leave such classes out by --allow-empty"
        )


class AutolabelJob(PredictionJob):
    """The scheduler's job of labelling one dataset."""

    def __init__(self, plan: DatasetPlan, record: dict[str, Any], settings: AutolabelSettings) -> None:
        super().__init__(plan.entry.name, plan.folder, key=plan.entry.name)
        self._plan, self._record, self._settings = plan, record, settings
        self._tasks = {task.entry.path: task for task in plan.tasks}
        self._is_opened = False

    def open(self) -> list[JobImage]:
        """Lock the folder, begin the record, and return the images that have no labels."""
        self._is_opened = True
        try:
            self._token = self._held.enter_context(writer_lock(self._folder))
            if self._tasks:
                self._begin()
        except OSError as error:
            raise disk_error(self._folder, error) from error
        return [JobImage(task.entry.path, max(1, task.entry.pixels)) for task in self._plan.tasks]

    def _begin(self) -> None:
        before = read_labels_record(self._folder)
        require_same_labels(self._folder, before, self._plan.work)
        stale = {self._label_name(image) for image in self._tasks}
        unwanted = [found.name for found in listing(self._folder) if is_partial(found.name) or found.name in stale]
        remove_all(self._folder, unwanted)
        if before != self._record:
            write_json(self._folder / RECORD, self._record)

    def _label_name(self, image: str) -> str:
        return label_name(image, self._settings.format)

    def incomplete(self, paths: Iterable[str]) -> list[str]:
        """Return the images whose class map is missing; it is written after the confidence."""
        return [path for path in paths if size(self._folder / self._label_name(path)) is None]

    def block(self, paths: Sequence[str]) -> AutolabelBlock:
        plan = self._plan
        return AutolabelBlock(
            self._folder,
            plan.teacher.members,
            plan.teacher.functions,
            tuple(self._tasks[path] for path in paths),
            self._token,
            self._settings,
            levels_of(self._record),
            plan.reader,
            {path: plan.pairs[path] for path in paths} if plan.reader else {},
        )

    def result(self, summary: JobSummary) -> AutolabelResult:
        """Make the dataset's result; a problem ends the run."""
        if summary.problem:
            raise StoreError(summary.problem)
        result = AutolabelResult(name=self.name, dataset=self.name, **vars(summary))
        if self._is_opened:
            result.skipped = self._plan.skipped
            result.failed = self._plan.absent | result.failed
        return result


@dataclass(frozen=True)
class _Shown:
    """Reads the labels of a sheet's pictures."""

    root: Path
    labels: AutoLabels = field(repr=False)

    def read(self, pair: ImageMaskPair, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Read the labels of a photograph, (H, W) uint8."""
        return self.labels.read(pair.image)


def _finish(plan: DatasetPlan, settings: AutolabelSettings, allow_empty: bool) -> dict[str, Any]:
    """Count what all class maps hold, and write the record, the photographs and the sheet; return the record."""
    folder = plan.folder
    if plan.before.get("complete") and not plan.tasks:
        return plan.before
    try:
        with writer_lock(folder):
            remove_partials(folder)
            record = read_labels_record(folder)
            facts = _labelled_photographs(plan, settings)
            with ThreadPoolExecutor(_THREADS) as pool:
                each = pool.map(lambda image: _counts_of(folder / label_name(image, settings.format)), facts)
                counts = reduce(add, each, LabelCounts.zero(len(plan.teacher.classes)))
            ended = ended_record(record, counts, len(facts))
            if not allow_empty:
                _require_kept(counts, ended, plan, settings)
            write_json(folder / PHOTOGRAPHS, {path: list(vars(one).values()) for path, one in facts.items()})
            _draw_sheet(plan, settings, ended, facts)
            write_json(folder / RECORD, ended)
    except OSError as error:
        raise disk_error(folder, error) from error
    return ended


def _labelled_photographs(plan: DatasetPlan, settings: AutolabelSettings) -> dict[str, PhotographFacts]:
    """List all photographs with labels: this run's, and those beyond its limit that an earlier run labelled."""
    found = {
        path: PhotographFacts(entry.bytes, entry.height or 0, entry.width or 0) for path, entry in plan.images.items()
    }
    try:
        known: Mapping[str, Any] = json.loads(read_bytes(plan.folder / PHOTOGRAPHS))
        earlier = {path: PhotographFacts(*(int(fact) for fact in known[path])) for path in known}
    except FileNotFoundError:
        earlier = {}
    except (TypeError, ValueError) as error:
        raise StoreError(f"{plan.folder / PHOTOGRAPHS}: cannot be read ({error}); use --overwrite") from error
    for path, one in earlier.items():
        if path not in found and size(plan.folder / label_name(path, settings.format)) is not None:
            found[path] = one
    return {path: found[path] for path in sorted(found)}


def _counts_of(path: Path) -> LabelCounts:
    try:
        with Image.open(io.BytesIO(read_bytes(path)), formats=["png"]) as file:
            return LabelCounts.from_text(file.info[COUNTS])
    except (KeyError, TypeError, ValueError, SyntaxError, OSError) as error:
        raise StoreError(
            f"{path}: is damaged, or was not written by this command ({error}); remove it and run the command again"
        ) from error


def _require_kept(
    counts: LabelCounts, record: Mapping[str, Any], plan: DatasetPlan, settings: AutolabelSettings
) -> None:
    """Raise ManifestError if a class is predicted and nothing of it was kept."""
    empty = []
    for place, one in enumerate(record["classes"]):
        if counts.predicted[place] and not counts.kept[place] and not counts.coarse[place]:
            best = counts.best[place]
            why = "no pixel is left by --agree and --erode"
            if best >= 0:
                why = f"best confidence {best / CONFIDENCE_LEVELS:.3f}"
            if one["threshold"] is None:
                why = f"not predicted on {record['fit']['dataset']}" if record["fit"] else why
            empty.append(f"{one['name']} ({why})")
    if empty:
        raise ManifestError(
            f"--{settings.rule} {settings.value:g}: keeps nothing of {first_few(empty, 3)} in {plan.entry.name}; "
            "lower it, or run the same command with --allow-empty, which takes the labels as they are"
        )


def _draw_sheet(
    plan: DatasetPlan, settings: AutolabelSettings, record: dict[str, Any], facts: dict[str, PhotographFacts]
) -> None:
    labels = AutoLabels(
        plan.folder,
        plan.entry.name,
        settings.format,
        plan.teacher.classes,
        tuple(one["threshold"] for one in record["classes"]),
        facts,
        record,
    )
    # Some are left out that the dataset's folder does not hold any more.
    paths = [path for path in facts if path in plan.images]
    count = min(_PICTURES, len(paths))
    chosen = [paths[place * (len(paths) - 1) // max(1, count - 1)] for place in range(count)]
    shown = [(plan.entry.name, ImageMaskPair(path, "", "")) for path in chosen]
    title = f"{plan.entry.name}: auto-labels over {count} of {len(facts)} images"
    dataset_sheet(plan.folder / SHEET, title, _Shown(plan.root, labels), shown, plan.classes)


def _remove_labels(folder: Path) -> None:
    """Remove all labels and their record; StoreError if the folder is in use."""
    try:
        with writer_lock(folder):
            for name in (RECORD, PHOTOGRAPHS, SHEET):
                remove(folder / name)
            for name in (LABELS, CONFIDENCE):
                remove_folder(folder / name)
    except OSError as error:
        raise disk_error(folder, error) from error
