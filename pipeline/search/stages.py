"""Stages of a search: the best combinations of one size, each chosen without a fold and scored on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .combinations import Weights, members_of, subsets
from .count_images import Candidate, count
from .counts import Counts, Totals
from .nested import Judge, best
from .plan import SearchPlan

_PATIENCE = 2
"""Rounds of forward selection without a gain after which it ends."""
_FACTORS = (2.0, 2.0**0.5, 2.0**0.25)
"""By which a weight is multiplied or divided, one after the other as long as nothing gets better."""
_MOST_PASSES = 9


@dataclass(frozen=True)
class Stage:
    """The choices of one stage, K + 1 of them: without each fold, and by all images.

    Attributes:
        name: of the stage.
        chosen: (K + 1,) candidates, the last one by all images.
        scores: (K + 1,) float64 their scores on the images that they were chosen by.
        groups: for each set, counts of its groups (G,): each by what was chosen without its fold.
    """

    name: str
    chosen: tuple[Candidate, ...]
    scores: np.ndarray
    groups: list[Totals]

    @property
    def final(self) -> Candidate:
        """The choice by all images."""
        return self.chosen[-1]


class Search:
    """Runs a search's passes over the stores.

    Args:
        plan: of `plan_search`.
        processes: how many work on images at a time; None for one a usable core.

    Attributes:
        judge: of the plan's folds.
        candidates: those of the first pass: every subset, or, for forward selection, every member.
        figures: metric -> (N,) figures of them on all images, which they are chosen by.
    """

    def __init__(self, plan: SearchPlan, processes: int | None = None) -> None:
        self.plan = plan
        self.judge = Judge(plan)
        self._processes = processes
        self._given = tuple(member.weight for member in plan.members)
        self.candidates: list[Candidate] = []
        self.figures: dict[str, np.ndarray] = {}

    def stages(self) -> tuple[list[Stage], Stage]:
        """Count, and return the best of every size, or after every round of forward selection, and all members."""
        most = self.plan.settings.most
        first = subsets(self._given, 1 if self.plan.greedy else most)
        given = Candidate(self._given, self.plan.functions[0])
        self.candidates = [Candidate(weights, functions) for functions in self.plan.functions for weights in first]
        # Those of the first functions come first, so that candidates of the same ones stay together.
        tried = self.candidates if given in self.candidates else [given, *self.candidates]
        counts = self._count(tried, "search" if not self.plan.greedy else "round 1")
        folds = self.plan.settings.folds
        none = np.full(folds + 1, np.nan)
        groups = self.judge.held_out(counts, [tried.index(given)] * folds)
        everybody = Stage(f"all {len(self._given)}", (given,) * (folds + 1), none, groups)
        if tried is not self.candidates:
            counts = [part.without_first() for part in counts]
        scores, whole = self.judge.scores(counts)
        self.figures = self.judge.figures(whole)
        if self.plan.greedy:
            return self._forward(counts, scores), everybody
        sizes = np.array([len(members_of(one.weights)) for one in self.candidates])
        sorts = [
            self._stage(f"best {size}", self.candidates, counts, np.where(sizes == size, scores, -np.inf))
            for size in sorted(set(sizes.tolist()))
        ]
        return sorts, everybody

    def _count(self, candidates: Sequence[Candidate], title: str) -> list[Counts]:
        nll = "nll" in self.plan.metrics
        sums = self.plan.probabilities
        return count(self.plan.sets, candidates, title=title, nll=nll, probabilities=sums, processes=self._processes)

    def _stage(self, name: str, tried: Sequence[Candidate], counts: Sequence[Counts], scores: np.ndarray) -> Stage:
        """The best of the candidates ``tried`` (N,), by scores (K + 1, N)."""
        picks = [best(row, lambda i: (self.plan.cost.of(tried[i].weights), i)) for row in scores]
        groups = self.judge.held_out(counts, picks[:-1])
        picked = scores[np.arange(len(picks)), picks]
        return Stage(name, tuple(tried[i] for i in picks), picked, groups)

    def _forward(self, counts: Sequence[Counts], scores: np.ndarray) -> list[Stage]:
        """Forward selection with replacement: Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004.

        Every fold, and all images, have a path for each pair of functions.
        """
        tried = self.candidates
        stages = [self._stage("after 1", tried, counts, scores)]
        paths = [self._by_functions(tried, row) for row in scores]
        since, number = 0, 1
        while since < _PATIENCE and number < len(self._given) + 5:
            number += 1
            longer = {one: self._grown(one) for path in paths for one in path}
            tried = _together(grown for many in longer.values() for grown in many)
            if not tried:
                break
            counts = self._count(tried, f"round {number}")
            scores, _ = self.judge.scores(counts)
            place = {one: i for i, one in enumerate(tried)}
            allowed = np.full(scores.shape, -np.inf)
            for row, path in enumerate(paths):
                here = sorted({place[grown] for one in path for grown in longer[one]})
                allowed[row, here] = scores[row, here]
            stages.append(self._stage(f"after {number}", tried, counts, allowed))
            paths = [self._by_functions(tried, row) for row in allowed]
            before = np.max([stage.scores for stage in stages[:-1]], axis=0)
            since = 0 if (stages[-1].scores > before).any() else since + 1
        return stages

    def _by_functions(self, tried: Sequence[Candidate], scores: np.ndarray) -> list[Candidate]:
        """The best candidate of each pair of functions."""
        found = []
        for functions in self.plan.functions:
            own = np.array([one.functions == functions for one in tried])
            row = np.where(own, scores, -np.inf)
            if np.isfinite(row.max()):
                found.append(tried[best(row, lambda i: (self.plan.cost.of(tried[i].weights), i))])
        return found

    def _grown(self, one: Candidate) -> list[Candidate]:
        """The candidate with each member once more."""
        most = self.plan.settings.most or len(self._given)
        found = []
        for i, weight in enumerate(self._given):
            if one.weights[i] or len(members_of(one.weights)) < most:
                grown = (*one.weights[:i], one.weights[i] + weight, *one.weights[i + 1 :])
                found.append(replace(one, weights=grown))
        return found

    def best_of(self, stages: Sequence[Stage], name: str = "search") -> Stage:
        """The best stage, chosen as each of them is: without every fold, and by all images."""
        scores = np.stack([stage.scores for stage in stages])
        picks = scores.argmax(0)  # of equal ones the first, which has the fewest members
        groups = []
        for number, one in enumerate(self.plan.sets):
            parts = [stages[picks[fold]].groups[number].at([at]) for at, fold in enumerate(one.groups.folds)]
            groups.append(Totals(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
        chosen = tuple(stages[pick].chosen[i] for i, pick in enumerate(picks))
        return Stage(name, chosen, scores.max(0), groups)

    def fit_weights(self, stage: Stage) -> Stage:
        """Fit the weights of what a stage chose, by coordinate ascent: without every fold, and by all images.

        In a round, one weight of each choice is doubled or halved, that which helps most; where nothing does, the
        factor becomes its root.
        """
        at, scores, groups = list(stage.chosen), stage.scores.copy(), list(stage.groups)
        factor = passes = 0
        while factor < len(_FACTORS) and passes < _MOST_PASSES:
            moves = {one: _moved(one, _FACTORS[factor]) for one in at}
            tried = _together(moved for many in moves.values() for moved in many)
            if not tried:
                break
            passes += 1
            counts = self._count(tried, f"weights, round {passes}")
            found, _ = self.judge.scores(counts)
            place = {one: i for i, one in enumerate(tried)}
            gained = False
            for row, one in enumerate(at):
                here = [place[moved] for moved in moves[one]]
                if not here or not found[row, here].max() > scores[row]:
                    continue
                gained = True
                pick = here[int(found[row, here].argmax())]
                at[row], scores[row] = tried[pick], found[row, pick]
                if row < self.plan.settings.folds:
                    groups = self._replaced(groups, counts, row, pick)
            factor += not gained
        return Stage("weights", tuple(at), scores, groups)

    def _replaced(self, groups: Sequence[Totals], counts: Sequence[Counts], fold: int, pick: int) -> list[Totals]:
        """The groups with those of one fold as candidate ``pick`` counts them."""
        found = []
        for old, part, one in zip(groups, counts, self.plan.sets, strict=True):
            mine = one.groups.folds == fold
            new = part.of(np.full(len(mine), pick))
            found.append(
                Totals(
                    *(
                        np.where(mine.reshape(-1, *[1] * (was.ndim - 1)), now, was)
                        for was, now in zip(old, new, strict=True)
                    )
                )
            )
        return found


def _together(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each candidate once, those of the same functions next to one another."""
    once = list(dict.fromkeys(candidates))
    order = {one.functions: None for one in once}
    return [one for functions in order for one in once if one.functions == functions]


def _moved(one: Candidate, factor: float) -> list[Candidate]:
    """The candidate with one weight multiplied or divided, each way, if there are two to weigh against each other."""
    chosen = members_of(one.weights)
    if len(chosen) < 2:
        return []
    return [replace(one, weights=_scaled(one.weights, i, times)) for i in chosen for times in (factor, 1 / factor)]


def _scaled(weights: Weights, member: int, times: float) -> Weights:
    return (*weights[:member], weights[member] * times, *weights[member + 1 :])
