"""The stage ``search``: which members together, and is it real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config.manifest import Manifest
from ..config.member import Member
from ..scoring.bravo_protocol import MEANS
from ..text import without_nan
from .bravo.bounds import mean_errors
from .combinations import members_of
from .count_images import Candidate
from .levels import tied_pairs
from .nested import Interval, interval
from .plan import SearchPlan
from .record import verdict_words
from .stages import Search, Stage

SCORE = "score"
"""Name of a weighted sum of metrics among the figures."""


@dataclass(frozen=True)
class Row:
    """Figures of a way to choose, on images that each choice did not see.

    Attributes:
        name: of the way.
        final: what it chooses by all images.
        times: of the K choices without a fold, how many are the same.
        figures: metric, or `SCORE` -> figure and interval.
        difference: the searched figure, as it is shown, minus that of all members, paired.
        cost: of ``final``.
        efficient: whether no row of a lower or equal cost has a higher figure.
    """

    name: str
    final: Candidate
    times: int
    figures: dict[str, Interval]
    difference: Interval
    cost: float
    efficient: bool = False


@dataclass(frozen=True)
class SearchResult:
    """The findings of a search.

    Attributes:
        rows: best of every size or after every round, then the search itself, then all members.
        chosen: what is written.
        weighted: whether fitted weights are what is written; None if none were fitted.
        folds: (K,) what was chosen without each fold.
        candidates: N of the first pass, with the figures (N,) that they are chosen by.
        auroc_error: by how much an AUROC of 1,024 levels differs at most from that of 65,536.
        mean_errors: by how much each of BRAVO's means does so.
        undefined: folds without which no combination has the figure; K for that of all images.
    """

    plan: SearchPlan
    rows: list[Row]
    chosen: Candidate
    weighted: bool | None
    folds: tuple[Candidate, ...]
    candidates: list[Candidate]
    figures: dict[str, np.ndarray]
    auroc_error: float
    mean_errors: dict[str, float]
    undefined: tuple[int, ...]

    def names(self, candidate: Candidate) -> list[str]:
        """Names of the members that take part."""
        return [self.plan.members[i].name for i in members_of(candidate.weights)]

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def described(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate by names."""
        members = self.plan.members
        return {
            "members": {members[i].name: candidate.weights[i] for i in members_of(candidate.weights)},
            "label": candidate.functions.label,
            "confidence": candidate.functions.confidence,
            "cost": self.plan.cost.of(candidate.weights),
        }

    def as_json(self) -> dict[str, Any]:
        """All of it by name; null where a figure is not defined."""
        settings = self.plan.settings
        rows = [
            {
                "name": row.name,
                "figures": {name: without_nan(vars(one)) for name, one in row.figures.items()},
                "difference": without_nan(vars(row.difference)),
                "efficient": row.efficient,
                "same_choice": row.times,
                "chosen": self.described(row.final),
            }
            for row in self.rows
        ]
        return {
            "by": settings.objective.text,
            "metrics": dict(settings.objective.weights),
            "better": settings.objective.better,
            "method": "greedy" if self.plan.greedy else "exhaustive",
            "cost": self.plan.cost.unit,
            "folds": settings.folds,
            "seed": settings.seed,
            "resamples": settings.resamples,
            "sets": {one.name: len(one.truth.pairs) for one in self.plan.sets},
            "groups": {one.name: len(one.groups.folds) for one in self.plan.sets},
            "fold_of_image": {
                one.name: {
                    pair.image: int(one.groups.folds[group])
                    for pair, group in zip(one.truth.pairs, one.groups.of_image, strict=True)
                }
                for one in self.plan.sets
            },
            "without_mask": {name: list(images) for name, images in self.plan.left_out.items()},
            "members": [member.name for member in self.plan.members],
            "chosen": self.described(self.chosen),
            "weights_kept": self.weighted,
            "chosen_without_fold": [self.described(one) for one in self.folds],
            "held_out": rows,
            "error": {
                "ece": self.plan.sets[0].table.ece_error,
                **without_nan({"auroc": self.auroc_error, **self.mean_errors}),
            },
            "chosen_by": self.candidate_rows(),
        }

    def candidate_rows(self) -> list[dict[str, Any]]:
        """One flat row for each candidate, with its figures on all images: those that the choice is made by."""
        return [
            {
                "members": " ".join(self.names(one)),
                "label": one.functions.label,
                "confidence": one.functions.confidence,
                "size": len(members_of(one.weights)),
                "cost": self.plan.cost.of(one.weights),
                **without_nan({name: float(values[i]) for name, values in self.figures.items()}),
            }
            for i, one in enumerate(self.candidates)
        ]


def search(plan: SearchPlan, processes: int | None = None) -> SearchResult:
    """Search, and judge the choice by images that it did not see.

    Args:
        plan: of `plan_search`.
        processes: how many work on images at a time; None for one a usable core.

    Raises:
        StoreError, DatasetError: logits or masks cannot be read.
    """
    found = Search(plan, processes)
    stages, everybody = found.stages()
    chosen = found.best_of(stages)
    ways = [*stages, chosen]
    fitted = found.fit_weights(chosen) if plan.settings.weights else None
    if fitted:
        ways.append(fitted)
    ways.append(everybody)
    rows = _rows(found, ways, everybody)
    kept = None
    if fitted:
        scores = {row.name: _score(plan, row) for row in rows}
        kept = scores[fitted.name] > scores[chosen.name]
    winner = fitted if fitted and kept else chosen
    views = found.judge.views([total.sum() for total in everybody.groups])
    return SearchResult(
        plan=plan,
        rows=rows,
        chosen=winner.final,
        weighted=kept,
        folds=winner.chosen[:-1],
        candidates=found.candidates,
        figures=found.figures,
        auroc_error=float(np.nanmax([tied_pairs(view.totals.levels, view.table) for view in views])),
        undefined=tuple(np.flatnonzero(np.isneginf(winner.scores)).tolist()),
        mean_errors=mean_errors(views, [name for name in plan.metrics if name in MEANS]),
    )


def _score(plan: SearchPlan, row: Row) -> float:
    return float(plan.settings.objective.score({name: np.asarray(one.value) for name, one in row.figures.items()}))


def _rows(found: Search, ways: Sequence[Stage], everybody: Stage) -> list[Row]:
    plan, objective = found.plan, found.plan.settings.objective
    whole, drawn = found.judge.resampled(everybody.groups)
    baseline = objective.shown(whole), objective.shown(drawn)
    rows, scores = [], []
    for way in ways:
        whole, drawn = found.judge.resampled(way.groups)
        shown = {name: interval(float(whole[name]), drawn[name]) for name in whole}
        mine = objective.shown(whole), objective.shown(drawn)
        if not objective.is_one_metric:
            shown = {SCORE: interval(float(mine[0]), mine[1]), **shown}
        difference = interval(float(mine[0] - baseline[0]), mine[1] - baseline[1])
        times = sum(one == way.final for one in way.chosen[:-1])
        rows.append(Row(way.name, way.final, times, shown, difference, plan.cost.of(way.final.weights)))
        scores.append(float(objective.score(whole)))
    return [
        replace(
            row,
            efficient=not any(
                other.cost <= row.cost and score > own for other, score in zip(rows, scores, strict=True)
            ),
        )
        for row, own in zip(rows, scores, strict=True)
    ]


def chosen_manifest(manifest: Manifest, result: SearchResult) -> Manifest:
    """The manifest with the chosen members alone, their weights, and the functions of label and confidence."""
    weights = {result.plan.members[i].name: result.chosen.weights[i] for i in members_of(result.chosen.weights)}
    kept: list[Member] = [
        member.model_copy(update={"weight": weights[member.name]})
        for member in manifest.models
        if member.name in weights
    ]
    return manifest.model_copy(update={"models": tuple(kept), "ensemble": result.chosen.functions})


def search_table(result: SearchResult) -> list[str]:
    """For people."""
    plan, settings = result.plan, result.plan.settings
    tried = f"{len(result.candidates)} combinations" if not plan.greedy else "forward selection"
    sets = ", ".join(one.name for one in plan.sets)
    lines = [
        f"{tried} of {len(plan.members)} members by {settings.objective.text}, "
        f"{plan.images} images of {sets} in {settings.folds} folds",
        "figures of images that the choice did not see, with intervals of 95 % over images",
    ]
    names = [name for name in (SCORE, *plan.metrics) if name in result.rows[0].figures]
    cells = [["", *names, f"minus all {len(plan.members)}", plan.cost.unit, "chosen by all images", "in folds"]]
    for row in result.rows:
        figures = [_cell(row.figures[name]) for name in names]
        last = row is result.rows[-1]
        members = "every member" if last else ", ".join(result.names(row.final))
        if last or len(plan.functions) > 1:
            members += f"; {functions_text(row.final)}"
        folds = "" if last else f"{row.times} of {settings.folds}"
        difference = "" if last else _cell(row.difference, "+.4f")
        cells.append(
            [row.name, *figures, difference, f"{row.cost:.3g}{' *' if row.efficient else ''}", members, folds]
        )
    wide = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines += ["  ".join(f"{text:{w}}" for text, w in zip(line, wide, strict=True)).rstrip() for line in cells]
    lines.append(f"*: nothing that costs as many {plan.cost.unit} or fewer is better")
    return lines + _verdict(result)


def _verdict(result: SearchResult) -> list[str]:
    plan = result.plan
    weights = [result.chosen.weights[i] for i in members_of(result.chosen.weights)]
    names = result.names(result.chosen)
    if len(set(weights)) > 1:
        names = [f"{name} (weight {weight / max(weights):.3g})" for name, weight in zip(names, weights, strict=True)]
    lines = [f"chosen: {', '.join(names)}; {functions_text(result.chosen)}"]
    if result.undefined:
        folds = plan.settings.folds
        where = ", ".join(f"without fold {fold}" if fold < folds else "on all images" for fold in result.undefined)
        lines.append(
            f"{plan.settings.objective.text} is not defined {where}: the cheapest combination is taken there"
        )
    if result.weighted is False:
        lines.append("fitted weights are not kept: on images that they did not see they are no better")
    row = result.row("weights" if result.weighted else "search")
    objective, everybody = plan.settings.objective, result.rows[-1].final
    better = plan.settings.objective.better
    name = f"{objective.text} score" if not objective.is_one_metric else next(iter(objective.weights))
    lines.append(
        f"choosing is {verdict_words(vars(row.difference), better)} all {len(plan.members)} with "
        f"{functions_text(everybody)}: {name} {_cell(row.difference, '+.4f')}, {better} is better"
    )
    if row.final.weights == everybody.weights and row.final.functions != everybody.functions:
        lines.append(f"the chosen members are all {len(plan.members)}, too: only the functions differ")
    different = Counter(tuple(result.names(one)) for one in result.folds)
    if len(different) > 1:
        lines.append(
            f"the folds disagree on the members ({len(different)} choices in {len(result.folds)} folds): "
            "few images, or members that are alike"
        )
    return lines


def functions_text(candidate: Candidate) -> str:
    """The functions of a candidate, as tables and sentences name them."""
    return f"label {candidate.functions.label}, confidence {candidate.functions.confidence}"


def _cell(one: Interval, form: str = ".4f") -> str:
    if np.isnan(one.value):
        return "-"
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"
