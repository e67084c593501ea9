"""BRAVO's subsets, each with the images that a search scores together."""

from __future__ import annotations

from pathlib import Path

from ....datasets.layout.image_mask_pairs import ImageMaskPair
from ....errors import HmsaError
from ...config.manifest import Manifest
from ...scoring.bravo_protocol import (
    MEANS,
    SUBSETS,
    WITHOUT_CLASSES,
    BravoImage,
    images_of,
    stores_by_image,
    subsets_of,
)
from ...scoring.ground_truth import BravoMaskReader, GroundTruth
from ..count_images import ScoredSet
from ..folds import UNDIVIDED
from ..objective import Objective
from .parts import BravoSubset


def bravo_sets(manifest: Manifest, objective: Objective, ground_truth: Path, samples: Path) -> tuple[ScoredSet, ...]:
    """BRAVO's subsets that have ground truth, with images that are not divided into folds yet.

    Args:
        manifest: whose datasets have the names of the challenge's folders, such as ``bravo_ACDC``.
        objective: what is searched for.
        ground_truth, samples: the challenge's tar files.

    Raises:
        HmsaError: a subset that the objective is a mean of has less than two images.
        ManifestError: the manifest lacks datasets.
        DatasetError: a tar file is none, or lacks images.
        StoreError: stores are missing, or lack images.
    """
    images = images_of(ground_truth, samples)
    of_subset: dict[str, list[BravoImage]] = {name: [] for name in SUBSETS}
    for image in images:
        of_subset[image.subset].append(image)
    _require_two(objective, {name: len(found) for name, found in of_subset.items()}, ground_truth)
    places = stores_by_image(manifest, [image.base for image in images])
    found = []
    for name, mine in of_subset.items():
        if not mine:
            continue
        pairs = tuple(ImageMaskPair(places[image.base][1], image.ids, "ids") for image in mine)
        reader = BravoMaskReader(ground_truth, mine[0].base.split("/", 1)[0])
        labels = GroundTruth(reader, pairs, ood=name in WITHOUT_CLASSES)
        subset = BravoSubset(name, ground_truth, samples)
        found.append(ScoredSet(name, labels, places[mine[0].base][0], UNDIVIDED, subset))
    return tuple(found)


def _require_two(objective: Objective, images: dict[str, int], ground_truth: Path) -> None:
    for mean in MEANS:
        wanted = subsets_of(mean)
        if mean in objective.weights and (few := [name for name in wanted if images[name] < 2]):
            held = ", ".join(f"{name} {images[name]}" for name in few)
            raise HmsaError(
                f"--by {objective.text}: {mean} is a mean over subsets that need two images each, one to choose by "
                f"and one to judge by, and {ground_truth} has fewer of some ({held}); name a file with more, or "
                "search by miou"
            )
