"""Names of the figures of `evaluate`: which are shown, which are lists, and which are better low."""

from __future__ import annotations

from collections.abc import Sequence

from ....datasets.taxonomy import CATEGORIES
from ....errors import HmsaError, nearest

BASIC: tuple[str, ...] = (
    *("miou", "miou_classes", "accuracy", "ece", "auroc", "auprc", "auprc_success", "auprc_error", "fpr95", "iou"),
)
"""Shown unless others are asked for."""

LISTS: tuple[str, ...] = ("iou", "precision", "recall", "boundary_iou", "iiou", "category_iou")
"""Figures that have a value for each class, or, the last one, for each category."""

NUMBERS: tuple[str, ...] = (
    *(name for name in BASIC if name not in LISTS),
    *("mean_precision", "mean_recall", "category_miou", "boundary_miou", "miiou"),
    *("adaptive_ece", "smooth_ece", "mce"),
    *("aurc", "eaurc", "augrc", "risk_at_80_coverage", "coverage_at_5_risk"),
    *("nll", "brier", "classwise_ece"),
)
"""Figures that are one number."""

LOWER_IS_BETTER = frozenset(
    {
        *("ece", "fpr95", "adaptive_ece", "smooth_ece", "mce"),
        *("aurc", "eaurc", "augrc", "risk_at_80_coverage"),
        *("nll", "brier", "classwise_ece"),
    }
)

TITLES: dict[str, str] = {
    "iou": "IoU",
    "precision": "precision",
    "recall": "recall",
    "boundary_iou": "boundary IoU",
    "iiou": "iIoU",
    "category_iou": "category IoU",
}
"""Headings of the lists."""


def chosen_figures(text: str) -> tuple[str, ...] | None:
    """The names of ``basic``, ``all`` (None), or of a comma-separated list; HmsaError for an unknown name."""
    if text == "all":
        return None
    if text == "basic":
        return BASIC
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise HmsaError("--figures: names nothing; take basic, all, or names of figures")
    known = ("basic", "all", *NUMBERS, *LISTS)
    if unknown := [name for name in names if name not in known[2:]]:
        raise HmsaError(f"--figures {unknown[0]}: is no figure; {nearest(unknown[0], known)}")
    return names


def row_names(name: str, classes: Sequence[str]) -> Sequence[str]:
    """Names of the values of one of `LISTS`: categories, or ``classes``."""
    return tuple(CATEGORIES) if name == "category_iou" else classes
