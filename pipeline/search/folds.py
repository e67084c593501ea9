"""Which images a choice is made by, and which it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Groups:
    """The images of one set in G groups, none of which spans two folds.

    Attributes:
        of_image: the group of each image.
        folds: (G,) the fold of each group.
    """

    of_image: tuple[int, ...]
    folds: np.ndarray


UNDIVIDED = Groups((), np.zeros(0, np.int64))
"""Groups of images that are not divided yet."""


def divide(images: Sequence[int], folds: int, groups: int, seed: int) -> list[Groups]:
    """Deal the images of each set to the folds, and those of a fold to groups.

    Counts are kept for groups, and the bootstrap draws groups: with as many groups as images these are the images,
    with fewer each group is a random handful, and the variance of a mean is the same in expectation.

    Args:
        images: the number of images of each set.
        folds: K, at most the number of all images.
        groups: at most how many groups all sets have together, if that leaves one for each fold and set.
        seed: of the order in which images are dealt.
    """
    draw = np.random.default_rng(seed)
    most = max(1, groups // (folds * len(images)))
    found, dealt = [], 0
    for number in images:
        # Small sets begin where the last one ended, so that all folds get as many images.
        fold_of = np.empty(number, np.int64)
        fold_of[draw.permutation(number)] = (np.arange(number) + dealt) % folds
        dealt += number
        of_image, fold_of_group = np.empty(number, np.int64), []
        for fold in range(folds):
            here = np.flatnonzero(fold_of == fold)
            count = min(most, len(here))
            of_image[here[draw.permutation(len(here))]] = len(fold_of_group) + np.arange(len(here)) % max(1, count)
            fold_of_group += [fold] * count
        found.append(Groups(tuple(of_image.tolist()), np.array(fold_of_group, np.int64)))
    return found
