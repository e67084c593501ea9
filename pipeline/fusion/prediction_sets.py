"""Prediction sets: the classes that a pixel may be of, from the fused probabilities and a threshold for each class.

A class is in the set of a pixel if its fused probability reaches its threshold (least ambiguous set-valued
classifier: Sadinle, Lei and Wasserman, JASA 2019, arXiv 1609.00451). A set can be empty, where no class is likely
enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ...errors import ManifestError
from ..config.manifest import Manifest
from ..config.member import Member
from .calibrated_logits import calibrated_logits
from .member_stores import MemberStore, member_strips, open_store, voting_members

PROBABILITIES = ("mean-softmax", "mean-logit")
"""Functions of the label that give probabilities."""


def fused_probabilities(logits: Sequence[Tensor], members: Sequence[Member], label: str) -> Tensor:
    """Compute the ensemble's probabilities (C, ...) float32.

    Args:
        logits: of each member, (C, ...).
        members: as they are calibrated on the dataset.
        label: one of `PROBABILITIES`.
    """
    total = sum(member.weight for member in members)
    found: Tensor | None = None
    for own, member in zip(logits, members, strict=True):
        z = calibrated_logits(own, member)
        part = (z.softmax(0) if label == "mean-softmax" else z) * (member.weight / total)
        found = part if found is None else found.add_(part)
    if found is None:
        raise ValueError("there is no member to fuse")
    return found if label == "mean-softmax" else found.softmax(0)


def in_set(probabilities: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Mark the classes of each pixel's set, (C, ...) bool.

    Args:
        probabilities: (C, ...) float32.
        thresholds: (C,) least probabilities.
    """
    least = torch.tensor(thresholds, dtype=torch.float64).to(probabilities.device)
    return probabilities.double() >= least.view(-1, *[1] * (probabilities.ndim - 1))


def set_sizes(members: Sequence[MemberStore], image: str, label: str, thresholds: Sequence[float]) -> np.ndarray:
    """Count the classes in the set of each pixel of an image, (H, W) uint8; StoreError if logits cannot be read.

    Args:
        members: with their stores.
        image: its path in the dataset.
        label: one of `PROBABILITIES`.
        thresholds: (C,) least probabilities.
    """
    voting = [member for member, _ in members]
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for _, logits in member_strips([open_store(path) for _, path in members], image, pool.map):
            sizes = in_set(fused_probabilities(logits, voting, label), thresholds).sum(0)
            rows.append(sizes.to(torch.uint8).numpy())
    return np.concatenate(rows)


def ensemble_digest(manifest: Manifest) -> str:
    """Name what probabilities depend on besides the stores: the label's function, and the voting members' numbers."""
    numbers = [
        [m.name, m.weight, m.temperature, [one.resolved() for one in m.calibration]] for m in voting_members(manifest)
    ]
    return hashlib.sha256(json.dumps([manifest.ensemble.label, numbers]).encode()).hexdigest()


def thresholds_of(manifest: Manifest) -> tuple[float, ...]:
    """Return the thresholds (C,) of a manifest; ManifestError if it has none, or they are of another ensemble."""
    fix = "make them with 'hmsa-pipeline calibrate --sets 0.9'"
    if manifest.sets is None:
        raise ManifestError(f"sets: the manifest has no thresholds of prediction sets; {fix}")
    if manifest.sets.ensemble != ensemble_digest(manifest):
        raise ManifestError(
            "sets: the thresholds were fitted to other members, weights, temperatures, calibrations or another "
            f"ensemble.label; {fix}"
        )
    return manifest.sets.thresholds
