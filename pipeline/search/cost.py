"""The cost of a combination of members at inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import HmsaError
from ..config.member import Member
from ..storage.run_record import read_runs
from .combinations import Weights, members_of

COSTS = ("members", "seconds")


@dataclass(frozen=True)
class Cost:
    """A cost of each member (M,), and its unit, ``members`` or ``seconds`` an image."""

    unit: str
    of_member: tuple[float, ...]

    def of(self, weights: Weights) -> float:
        """The cost of a combination: the sum over its members."""
        return sum(self.of_member[i] for i in members_of(weights))


def member_costs(output: Path, members: Sequence[Member], unit: str) -> Cost:
    """Cost of each member.

    Args:
        output: folder of the results, whose ``run.json`` has the seconds of every ``dump``.
        members: of the ensemble.
        unit: one of `COSTS`.

    Raises:
        HmsaError: an unknown unit, or a member whose time is not recorded.
    """
    if unit not in COSTS:
        raise HmsaError(f"--cost {unit}: is no cost; use {' or '.join(COSTS)}")
    if unit == "members":
        return Cost(unit, (1.0,) * len(members))
    runs = read_runs(output).get("dump", {})
    found = []
    for member in members:
        mine = [
            run for subject, run in runs.items() if isinstance(run, dict) and subject.split("/")[-1] == member.name
        ]
        done = sum(run.get("done") or 0 for run in mine)
        seconds = sum(run.get("seconds") or 0.0 for run in mine if run.get("done"))
        if not done or not seconds:
            raise HmsaError(
                f"--cost seconds: {output / 'run.json'} has no time of {member.name}, which 'hmsa-pipeline dump' "
                "records; use --cost members"
            )
        found.append(seconds / done)
    return Cost(unit, tuple(found))
