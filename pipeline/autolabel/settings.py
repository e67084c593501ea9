"""Settings of a run of ``autolabel``, checked, and their thresholds as levels of the confidence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ...datasets.auto_labels import CITYSCAPES, FORMATS, MAX_THRESHOLD, confidence_level
from ...datasets.auto_labels import CONFIDENCE_LEVELS as STORED_LEVELS
from ...datasets.taxonomy import CLASS_NAMES
from ...errors import ManifestError, nearest
from ..fusion.prediction_files import CONFIDENCE_LEVELS

THRESHOLD, PRECISION, KEEP = "threshold", "precision", "keep"
DEFAULT_THRESHOLD = 0.9
HIGHEST_THRESHOLD = 0.9999
MOST_EROSION = 100
COARSE_RULES = ("keep", "drop")
"""Values of ``--respect-coarse``."""
NOTHING = CONFIDENCE_LEVELS
"""Level of a class of which nothing is kept: no confidence reaches it."""


@dataclass(frozen=True, kw_only=True)
class AutolabelSettings:
    """How a teacher's answer becomes labels.

    Attributes:
        rule: one of `THRESHOLD`, `PRECISION` and `KEEP`: how the classes' thresholds are found.
        value: the threshold, the target precision, or the share of each class.
        agree: number of members whose highest logit the label must be; None if that does not matter.
        erode: pixels within this distance of a border of classes are left out.
        format: one of `auto_labels.FORMATS`.
        coarse: one of `COARSE_RULES`; None if the dataset's own labels are not looked at.
    """

    rule: str = THRESHOLD
    value: float = DEFAULT_THRESHOLD
    agree: int | None = None
    erode: int = 0
    format: str = FORMATS[0]
    coarse: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all of them by name."""
        return asdict(self)

    def require_fitting(self, members: int, classes: tuple[str, ...]) -> None:
        """Raise ManifestError if the stores have too few members to agree, or classes that the format does not know.

        Args:
            members: number of members of a weight above 0.
            classes: names of the stores' classes.
        """
        if self.agree is not None and self.agree > members:
            raise ManifestError(f"--agree {self.agree}: there are {members} members; give at most that many")
        if self.format == CITYSCAPES and classes != CLASS_NAMES:
            raise ManifestError(
                f"--format {CITYSCAPES}: the stores have {len(classes)} classes, which are not those of Cityscapes; "
                "leave it out for train ids"
            )


def make_settings(
    *,
    threshold: float | None,
    precision: float | None,
    keep: float | None,
    fit: str | None,
    agree: int | None,
    erode: int,
    format: str,
    coarse: str | None,
) -> AutolabelSettings:
    """Check the options of the command line; `DEFAULT_THRESHOLD` where none of the first three is given.

    Args:
        threshold, precision, keep: at most one of them.
        fit: name of the labelled dataset, which a precision needs.
        agree, erode, format, coarse: see `AutolabelSettings`.

    Raises:
        ManifestError: they exclude each other, or one is out of range.
    """
    given = {THRESHOLD: threshold, PRECISION: precision, KEEP: keep}
    chosen = {rule: value for rule, value in given.items() if value is not None}
    if len(chosen) > 1:
        flags = " and ".join(f"--{rule}" for rule in chosen)
        raise ManifestError(f"{flags}: each of them decides what is kept; give one")
    rule, value = next(iter(chosen.items()), (THRESHOLD, DEFAULT_THRESHOLD))
    ranges = {
        THRESHOLD: (0 < value <= HIGHEST_THRESHOLD, f"above 0 and at most {HIGHEST_THRESHOLD}"),
        PRECISION: (0 < value < 1, "between 0 and 1"),
        KEEP: (0 < value <= 1, "above 0 and at most 1"),
    }
    inside, words = ranges[rule]
    if not inside:
        raise ManifestError(f"--{rule} {value:g}: is out of range; give a number {words}")
    if rule == PRECISION and fit is None:
        raise ManifestError(
            f"--precision {value:g}: needs labels to be measured on; name a labelled dataset of the manifest by --fit"
        )
    if agree is not None and agree < 1:
        raise ManifestError(f"--agree {agree}: is out of range; give 1 or more")
    if not 0 <= erode <= MOST_EROSION:
        raise ManifestError(f"--erode {erode}: is out of range; give 0 to {MOST_EROSION} pixels")
    if format not in FORMATS:
        raise ManifestError(f"--format {format}: is no format; {nearest(format, FORMATS)}")
    if coarse is not None and coarse not in COARSE_RULES:
        raise ManifestError(f"--respect-coarse {coarse}: is no rule; {nearest(coarse, COARSE_RULES)}")
    return AutolabelSettings(rule=rule, value=value, agree=agree, erode=erode, format=format, coarse=coarse)


def threshold_level(threshold: float) -> int:
    """Compute the lowest of 65536 levels that a threshold keeps.

    It is rounded up to a multiple of 1/256, as `auto_labels.confidence_level` does, so that the stored 8 bits decide
    alike; above 255/256 to one of 1/65536.
    """
    if threshold <= MAX_THRESHOLD:
        return confidence_level(threshold) * (CONFIDENCE_LEVELS // STORED_LEVELS)
    return min(math.ceil(threshold * CONFIDENCE_LEVELS), CONFIDENCE_LEVELS - 1)


def level_threshold(level: int) -> float | None:
    """Convert a level back to the confidence from which pixels are kept; None for `NOTHING`."""
    return None if level >= NOTHING else level / CONFIDENCE_LEVELS
