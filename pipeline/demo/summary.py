"""The last lines of a demonstration: figures of members and ensemble, and where the results are."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .plan import PAGE, DemoPlan


def summary(plan: DemoPlan) -> list[str]:
    """List the lines."""
    raw, calibrated = (json.loads((plan.folder / f"{name}.json").read_text()) for name in ("scores", "calibrated"))
    rows = [(name, _means(raw[name])) for name in raw]
    rows.append(("calibrated", _means(calibrated)))
    wide = max(len(name) for name, _ in rows)
    lines = ["", "On the target set (means over its subsets):", f"{'':{wide}}   mIoU  AUROC    ECE"]
    lines += [f"{name:{wide}}  " + "  ".join(f"{value:.3f}" for value in values) for name, values in rows]
    by_member = _held_out_miou(plan)
    best = max((name for name in by_member if name != "ensemble"), key=by_member.__getitem__)
    return [
        *lines,
        "",
        f"On held-out streets of the training datasets, the ensemble has mIoU {by_member['ensemble']:.3f}, "
        f"the best member ({best}) {by_member[best]:.3f}.",
        _all_against_four(plan),
        "",
        f"report:      {plan.folder / PAGE}",
        f"predictions: {plan.folder / 'run' / 'predictions'}",
        f"submission:  {plan.folder / 'submission.tar'}",
        "",
        f"Every command runs again with --manifest {shlex.quote(str(plan.manifest))}",
    ]


def _all_against_four(plan: DemoPlan) -> str:
    """All members against the best four that a search finds, on images that the choice did not see."""
    found = json.loads(plan.searched.read_text())
    four = next(row for row in found["held_out"] if row["name"] == "best 4")["difference"]
    if None in four.values():
        return "Seven members minus the best four: mIoU is not known."
    ahead, least, most = (-four[name] for name in ("value", "high", "low"))
    verdict = "seven are better" if least > 0 else "four are better" if most < 0 else "not told apart"
    interval = f"95 % interval {least:+.4f} to {most:+.4f}"
    return f"Seven members minus the best four: mIoU {ahead:+.4f}, {interval}: {verdict}."


def _means(figures: dict[str, Any]) -> tuple[float, float, float]:
    """mIoU, AUROC and ECE of a subject, each as the mean over the subsets that have it."""
    found = []
    for name in ("miou", "auroc", "ece"):
        values = [value for key, value in figures.items() if key.endswith(f"_{name}_valid") and value is not None]
        found.append(sum(values) / max(1, len(values)))
    return found[0], found[1], found[2]


def _held_out_miou(plan: DemoPlan) -> dict[str, float]:
    """mIoU of the calibrated ensemble and of the members on the held-out sets, the mean over the sets."""
    report = json.loads((plan.folder / PAGE).with_name("report.json").read_text())
    rows = [one["scores"] for one in report["datasets"] if one["dataset"].endswith("_val")]
    return {name: sum(row[name]["miou"] or 0.0 for row in rows) / len(rows) for name in rows[0]}
