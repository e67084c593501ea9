"""Counts all combinations of members on an image's labelled pixels, each to the bits of `fuse`.

Where every member's probability of the same class is clearly the highest, that class is every combination's, and only
its plane is summed up, one of C. Elsewhere the planes of those classes are summed up that a combination could choose,
mostly two to four. A class counts as one of them where rounding could decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import StoreError
from ..fusion.kernel.softmax import softmax
from ..fusion.member_stores import CACHED_PIXELS
from ..fusion.member_sums import LogitMap
from ..fusion.prediction_files import CONFIDENCE_LEVELS
from .combinations import RunningSums, Weights
from .counts import Counts
from .levels import EVEN, LEVELS, LevelTable

_VECTOR = 64
_FEW = (2, 4)
"""Numbers of classes that pixels are gathered by; pixels with more are summed up in all classes."""
_PLANE_PIXELS = 16384
"""Pixels times classes of a round of sums: few enough for the cache, many enough for the calls not to count."""


class PixelCounter:
    """Counts pixels of one image, a strip after the other, for mean softmax as label and as confidence.

    Args:
        combinations: N combinations of M members.
        temperatures: (M,) of the members.
        maps: (M,) changes of their logits before they are divided, None for none; empty for none at all.
        classes: C.
        ood: whether the labels are 1 for out of distribution and 0, and not classes.
        nll: whether the likelihood of the label is summed up.
        by_class: whether the pixels of each class are counted, which is never so for ``ood``.
        by_level: whether those of each level of confidence are counted.
        table: of the levels.
    """

    def __init__(
        self,
        combinations: Sequence[Weights],
        temperatures: Sequence[float],
        classes: int,
        maps: Sequence[LogitMap | None] = (),
        *,
        ood: bool = False,
        nll: bool = False,
        by_class: bool = True,
        by_level: bool = True,
        table: LevelTable = EVEN,
    ) -> None:
        self._counts = Counts.none(len(combinations), 1, classes)
        self._sums = RunningSums(combinations)
        self._temperatures = temperatures
        self._maps = maps or [None] * len(temperatures)
        self._classes = classes
        self._ood = ood
        self._place_of = table.place_of
        self._by_class, self._by_level = by_class and not ood, by_level
        self._nll = nll and self._by_class
        # How far sums of M members can be rounded apart, and more.
        self._near = 1.0 - (len(temperatures) + 1) * 2.0**-22
        self._code = np.uint8 if 2 * classes + 1 < 256 else np.int16
        self._falling = np.arange(classes, 0, -1, dtype=self._code)[:, None]
        self._rising = np.arange(1, classes + 1, dtype=self._code)[:, None]
        self._waiting: dict[int, list[tuple[Tensor, np.ndarray]]] = {}

    def add(self, logits: Sequence[Tensor], labels: np.ndarray) -> None:
        """Count some pixels.

        Args:
            logits: of each member (C, P) float16.
            labels: (P,) uint8, none of them 255.

        Raises:
            StoreError: logits are not finite.
        """
        for start in range(0, len(labels), CACHED_PIXELS):
            part = slice(start, start + CACHED_PIXELS)
            self._divide([one[:, part] for one in logits], labels[part])

    def finish(self) -> Counts:
        """Return the counts of all pixels, in one group."""
        for width in list(self._waiting):
            self._count(width)
        return self._counts

    def _divide(self, logits: Sequence[Tensor], labels: np.ndarray) -> None:
        """Compute the members' probabilities, and sort the pixels by the number of classes that they can be."""
        pixels, classes = len(labels), self._classes
        z = torch.zeros(classes, -(-pixels // _VECTOR) * _VECTOR)
        p = torch.empty(len(logits), *z.shape)
        marks, near = np.empty(z.shape, np.bool_), np.zeros(z.shape, np.bool_)
        for given, temperature, change, plane in zip(logits, self._temperatures, self._maps, p, strict=True):
            z[:, :pixels].copy_(given)
            if change is not None:
                change(z)
            softmax(z, temperature, out=plane)
            highest = plane.amax(0).numpy()
            if not np.isfinite(highest[:pixels]).all():
                raise StoreError("a member's logits are not finite; find it with 'hmsa-pipeline verify'")
            near |= np.greater_equal(plane.numpy(), highest * np.float32(self._near), out=marks)
        marked = near[:, :pixels].view(np.uint8)
        first, last = classes - (marked * self._falling).max(0), (marked * self._rising).max(0) - 1
        if self._by_class:
            self._counts.labelled[0] += np.bincount(labels, minlength=classes)
        if self._nll:
            self._sum_likelihood(_gathered(p, torch.from_numpy(labels)[None].long())[:, 0])
        agreed, disputed = np.flatnonzero(first == last), np.flatnonzero(first != last)
        if len(agreed):
            said = first[None, agreed].astype(np.int64)
            if self._by_level:
                self._wait(1, _gathered(_taken(p, agreed), torch.from_numpy(said)), said, labels[agreed])
            else:
                self._count_codes(slice(None), self._codes(said, labels[agreed])[0])
        if len(disputed):
            self._divide_disputed(_taken(p, disputed), labels[disputed])

    def _divide_disputed(self, p: Tensor, labels: np.ndarray) -> None:
        # A class that one member prefers to another one can win, unless all members give less to it than all members
        # give to the other, or each member less than itself to the one that is highest on average.
        live = np.greater_equal(p.amax(0).numpy(), (p.amin(0).amax(0) * self._near).numpy())
        total = p.sum(0).numpy()
        leader = self._classes - ((total == total.max(0)).view(np.uint8) * self._falling).max(0).astype(np.int64)
        leader = _gathered(p, torch.from_numpy(leader)[None]) * self._near
        live &= np.greater_equal(p.numpy(), leader.numpy()).any(0)
        number = live.sum(0, dtype=np.int64)
        least = 0
        for width in _FEW:
            here = np.flatnonzero((number > least) & (number <= width))
            least = width
            if len(here):
                chosen = _filled(live[:, here], width)
                ids = np.nonzero(chosen.T)[1].reshape(-1, width).T
                planes = _gathered(_taken(p, here), torch.from_numpy(ids.copy()))
                self._wait(width, planes, ids, labels[here])
        here = np.flatnonzero(number > least)
        if len(here):
            ids = np.broadcast_to(np.arange(self._classes)[:, None], (self._classes, len(here)))
            self._wait(self._classes, _taken(p, here), ids, labels[here])

    def _wait(self, width: int, planes: Tensor, ids: np.ndarray, labels: np.ndarray) -> None:
        """Keep pixels until there are enough of their kind.

        Args:
            width: K, number of their classes.
            planes: (M, K, P) float32 probabilities.
            ids: (K, P) of the classes, ascending.
            labels: (P,) uint8.
        """
        codes = (labels == 0).astype(self._code)[None] if self._ood else self._codes(ids, labels)
        waiting = self._waiting.setdefault(width, [])
        waiting.append((planes, codes))
        if sum(codes.shape[-1] for _, codes in waiting) * width >= 4 * _PLANE_PIXELS:
            self._count(width)

    def _codes(self, ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One number for class and whether that is right; the highest of equal ones is that of the first class.

        Args:
            ids: (K, P) of the classes.
            labels: (P,) uint8.
        """
        return (2 * (self._classes - ids) + (ids == labels)).astype(self._code)

    def _count(self, width: int) -> None:
        """Count the pixels that wait."""
        parts = self._waiting.pop(width)
        planes = torch.cat([part for part, _ in parts], -1)
        codes = np.concatenate([part for _, part in parts], -1)
        step = max(_VECTOR, _PLANE_PIXELS // width // _VECTOR * _VECTOR)
        for start in range(0, planes.shape[-1], step):
            part = codes[:, start : start + step]
            count = self._count_sums if width > 1 and not self._ood else self._count_fixed
            count(planes[:, :, start : start + step], part)

    def _count_fixed(self, planes: Tensor, codes: np.ndarray) -> None:
        """Count pixels of which is known if they are right, whatever the combination."""
        pixels = codes.shape[1]
        offsets = (codes[0] & 1).astype(np.int32) * CONFIDENCE_LEVELS
        if self._by_class:
            self._count_codes(slice(None), codes[0])
        for number, total in self._sums.visit(_padded(planes)):
            self._count_levels(number, total.numpy().max(0)[:pixels], offsets)

    def _count_sums(self, planes: Tensor, codes: np.ndarray) -> None:
        pixels = codes.shape[1]
        marks = np.empty(codes.shape, np.bool_)
        marked = np.empty_like(codes)
        for number, total in self._sums.visit(_padded(planes)):
            scores = total.numpy()[:, :pixels]
            highest = scores.max(0)
            np.multiply(np.equal(scores, highest, out=marks), codes, out=marked)
            found = marked.max(0)
            if self._by_class:
                self._count_codes(number, found)
            if self._by_level:
                self._count_levels(number, highest, (found & 1).astype(np.int32) * CONFIDENCE_LEVELS)

    def _count_codes(self, number: int | slice, codes: np.ndarray) -> None:
        found = np.bincount(codes, minlength=2 * self._classes + 2).reshape(-1, 2)[:0:-1]
        self._counts.predicted[number, 0] += found.sum(1)
        self._counts.hits[number, 0] += found[:, 1]

    def _count_levels(self, number: int, confidence: np.ndarray, offsets: np.ndarray) -> None:
        places = (confidence * np.float32(CONFIDENCE_LEVELS)).astype(np.int32)
        # Sums of shares may pass 1 by a digit.
        np.minimum(places, CONFIDENCE_LEVELS - 1, out=places)
        places += offsets
        self._counts.levels[number, 0] += np.bincount(self._place_of.take(places), minlength=2 * LEVELS).reshape(
            2, LEVELS
        )

    def _sum_likelihood(self, planes: Tensor) -> None:
        pixels = planes.shape[1]
        for number, total in self._sums.visit(_padded(planes)):
            likely = total[:pixels].clamp(min=torch.finfo(torch.float32).tiny)
            self._counts.nll[number, 0] -= likely.log().sum(dtype=torch.float64).item()


def _taken(planes: Tensor, pixels: np.ndarray) -> Tensor:
    """Some pixels of planes (M, C, P), (M, C, number of them); five times as fast as `torch.index_select`."""
    return torch.from_numpy(np.take(planes.numpy(), pixels, axis=2))


def _gathered(planes: Tensor, ids: Tensor) -> Tensor:
    """Planes (M, K, P) of the classes ids (K, P) int64, of planes (M, C, P or more)."""
    return planes.gather(1, ids.expand(len(planes), *ids.shape))


def _filled(live: np.ndarray, width: int) -> np.ndarray:
    """Marks (C, P) with others added, the first that are not set, so that every pixel has ``width`` of them."""
    chosen, columns = live.copy(), np.arange(live.shape[1])
    while (lacking := chosen.sum(0) < width).any():
        chosen[chosen.argmin(0)[lacking], columns[lacking]] = True
    return chosen


def _padded(planes: Tensor) -> Tensor:
    """The planes (..., P), contiguous, with P as a multiple of 64."""
    more = -planes.shape[-1] % _VECTOR
    return torch.nn.functional.pad(planes, (0, more)) if more else planes.contiguous()
