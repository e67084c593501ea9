"""Components of what is out of distribution: figures of the benchmark SegmentMeIfYouCan.

Chan et al., SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation, NeurIPS 2021 (arXiv 2104.14812), section 3.2. An
area of labelled pixels is a component of the truth; one of pixels whose score reaches a threshold, of the prediction.
Neighbours are also those at a corner. Let g be the pixels of a component of the truth, and P the pixels of all
predicted components that share some with it:

=======  ==========================================================================
sIoU(g)  pixels of g in P, divided by those of g and of P, without those of P that
         other components of the truth have
PPV(p)   share of a predicted component's pixels that any component of the truth has
F1(t)    2 TP / (2 TP + FN + FP): TP and FN are the components of the truth with an
         sIoU of at least t and below it, FP the predicted ones with a PPV below t
=======  ==========================================================================

As in its toolkit, road-anomaly-benchmark: pixels without a label are never predicted; then predicted components that
are too small vanish, then the pixels of components of the truth that are too small count as not labelled. sIoU and
PPV are means over the components of all images, and F1 is the mean over t = 0.25, 0.30, ..., 0.75 of F1(t) of all
images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ....datasets.taxonomy import IGNORE

THRESHOLDS = np.linspace(0.25, 0.75, 11)
"""Thresholds of sIoU and PPV, (11,) float64."""


@dataclass(frozen=True)
class LeastSizes:
    """Pixels that a component has at least; smaller ones are left out.

    Attributes:
        predicted: for components of the prediction.
        truth: for components of the truth.
    """

    predicted: int
    truth: int


ANOMALIES = LeastSizes(500, 100)
"""Sizes of the toolkit's ``SegEval-AnomalyTrack``."""
OBSTACLES = LeastSizes(50, 10)
"""Sizes of the toolkit's ``SegEval-ObstacleTrack``."""


@dataclass
class ComponentCounts:
    """Sums over components, which add up over images.

    Where images were resampled, they are weighted sums.

    Attributes:
        siou: sum of sIoU over the ``truth`` components.
        ppv: sum of PPV over the ``predicted`` components.
        hits, misses, false: (11,) int64 TP, FN and FP at each of `THRESHOLDS`.
    """

    siou: float = 0.0
    ppv: float = 0.0
    truth: float = 0
    predicted: float = 0
    hits: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    misses: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    false: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))

    def __iadd__(self, other: ComponentCounts) -> ComponentCounts:
        self.siou += other.siou
        self.ppv += other.ppv
        self.truth += other.truth
        self.predicted += other.predicted
        self.hits += other.hits
        self.misses += other.misses
        self.false += other.false
        return self

    def row(self) -> np.ndarray:
        """All of it as a row, (37,) float64."""
        return np.concatenate(
            [(self.siou, self.ppv, self.truth, self.predicted), self.hits, self.misses, self.false], dtype=np.float64
        )

    @classmethod
    def of_row(cls, row: np.ndarray) -> ComponentCounts:
        """Read a row, or a weighted sum of rows."""
        siou, ppv, truth, predicted = row[:4].tolist()
        return cls(siou, ppv, truth, predicted, *row[4:].reshape(3, -1))

    def figures(self) -> dict[str, float]:
        """Mean ``siou``, ``ppv`` and ``f1`` by name; NaN where there is no component."""
        with np.errstate(invalid="ignore"):
            f1 = 2 * self.hits / (2 * self.hits + self.misses + self.false)
        return {
            "siou": self.siou / self.truth if self.truth else math.nan,
            "ppv": self.ppv / self.predicted if self.predicted else math.nan,
            "f1": float(f1.mean()),
        }


def label_components(marked: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the areas of marked pixels, which also touch at corners, in reading order of their first pixels.

    Args:
        marked: (H, W) bool.

    Returns:
        (H, W) int32, 0 where nothing is marked and 1, 2, ... in the areas, and how many areas there are.
    """
    height, width = marked.shape
    # Pixels in a row are a run; a column of background behind each row ends the last one.
    wide = np.zeros((height, width + 1), np.int8)
    wide[:, :-1] = marked
    edges = np.flatnonzero(np.diff(wide.ravel(), prepend=0))
    starts, ends = edges[::2], edges[1::2]
    count = len(starts)
    if not count:
        return np.zeros((height, width), np.int32), 0
    # A run touches those of the row below that end behind its first pixel's left and begin before its end's right.
    step = width + 1
    first = np.searchsorted(ends, starts + step, side="left")
    last = np.searchsorted(starts, ends + step, side="right")
    touching = np.maximum(last - first, 0)
    parent = _joined(count, np.repeat(np.arange(count), touching), _ranges(first, touching))
    _, number = np.unique(parent, return_inverse=True)  # a component's parent is its first run
    found = np.zeros(height * step, np.int32)
    found[_ranges(starts, ends - starts)] = np.repeat(number + 1, ends - starts)
    return found.reshape(height, step)[:, :-1], int(number.max()) + 1


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... of each length, one behind the other."""
    return np.repeat(starts - lengths.cumsum() + lengths, lengths) + np.arange(lengths.sum())


def _joined(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return for each of ``count`` nodes the lowest one that edges ``one`` -- ``other`` lead to, (count,) int64."""
    parent = np.arange(count)
    while True:
        a, b = parent[one], parent[other]
        apart = a != b
        if not apart.any():
            return parent
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (parent[parent] != parent).any():
            parent = parent[parent]


def count_components(predicted: np.ndarray, mask: np.ndarray, least: LeastSizes) -> ComponentCounts:
    """Compare the components of one image's prediction and truth.

    Args:
        predicted: (H, W) bool, True where the score says out of distribution.
        mask: (H, W) uint8, 1 out of distribution, 0 in it, 255 where nothing is known.
        least: the sizes below which components are left out.
    """
    truth, true_number = label_components(mask == 1)
    found, found_number = label_components(predicted & (mask != IGNORE))
    found = np.where(np.bincount(found.ravel(), minlength=1) < least.predicted, 0, np.arange(found_number + 1))[found]
    true_sizes = np.bincount(truth.ravel(), minlength=1)
    too_small = true_sizes < least.truth
    # The toolkit takes the background for a component, too, where so little of it is there.
    known = (mask != IGNORE) & ~too_small[truth]
    truth, found = truth[known], found[known]
    true_sizes = np.bincount(truth, minlength=true_number + 1)
    found_sizes = np.bincount(found, minlength=found_number + 1)

    both = (truth > 0) & (found > 0)
    pairs, shared = np.unique(truth[both].astype(np.int64) * (found_number + 1) + found[both], return_counts=True)
    of_truth, of_found = pairs // (found_number + 1), pairs % (found_number + 1)
    covered = np.bincount(of_found, shared, found_number + 1)
    outside = (found_sizes - covered)[of_found]  # pixels of the prediction that no component of the truth has
    inside = np.bincount(of_truth, shared, true_number + 1)
    union = true_sizes + np.bincount(of_truth, outside, true_number + 1)
    true_there, found_there = true_sizes > 0, found_sizes > 0
    true_there[0] = found_there[0] = False
    siou = inside[true_there] / union[true_there]
    ppv = covered[found_there] / found_sizes[found_there]
    hits = (siou[:, None] >= THRESHOLDS).sum(0)
    return ComponentCounts(
        float(siou.sum()),
        float(ppv.sum()),
        len(siou),
        len(ppv),
        hits,
        len(siou) - hits,
        (ppv[:, None] < THRESHOLDS).sum(0),
    )


def best_f1(counts: np.ndarray) -> tuple[float, int]:
    """Return the highest F1 of pixels over all thresholds, and the highest level that reaches it.

    Args:
        counts: (2, L) int64 of `metrics.level_counts`, what is out of distribution in row 1.

    Returns:
        F1, NaN without positives, and the level from which on (inclusive) a pixel is predicted; L - 1 if NaN.
    """
    negatives, positives = counts[:, ::-1].cumsum(1)
    if not positives[-1]:
        return math.nan, counts.shape[1] - 1
    f1 = 2 * positives / (negatives + positives + positives[-1])
    best = int(np.argmax(f1))
    return float(f1[best]), counts.shape[1] - 1 - best
