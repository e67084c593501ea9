"""The demo's ensemble against its best member, on target sets drawn from ten seeds.

Each target set is drawn as `hmsa-pipeline demo --seed N` draws it. The networks run here by themselves, in float32
and without stores, so that the figures do not rest on the pipeline. The best member is picked with hindsight, for
each figure and each set; intervals are of 1,000 bootstrap resamples of the set's images, the same for both.

    python benchmarks/demo_exams.py --manifest demo/calibrated.yaml --seeds 0 1 2 3 4 5 6 7 8 9
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.synthetic.write_bravo import write_bravo
from hmsa_pipeline.models.checkpoint import load_weights
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.demo.plan import FULL
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_curve

CLASSES = 19
LEVELS = 4096  # of confidence
BINS = 15
RESAMPLES = 1000
FIGURES = ("mIoU", "AUROC", "ECE")
SMALLER_IS_BETTER = {"ECE"}
Predictions = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Subject -> class (H, W) and confidence (H, W)."""


@dataclass
class Counts:
    """Of one subject, by image: confusion (N, 361), wrong and right pixels by confidence (N, 2 * LEVELS)."""

    confusion: list[NDArray[np.float32]]
    levels: list[NDArray[np.float32]]


def main() -> None:
    """Draw, predict, count, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="of a finished demo, calibrated.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--json", type=Path, help="write the figures there")
    words = parser.parse_args()
    manifest = load_manifest(words.manifest)
    networks = {}
    for member in manifest.models:
        networks[member.name] = build(member.arch)
        load_weights(networks[member.name], member.checkpoint_path(), member.arch)
    temperatures = {member.name: member.temperature for member in manifest.models}
    weights = {member.name: member.weight for member in manifest.models}
    scales = list(manifest.inference.scales)
    found = []
    for seed in words.seeds:
        with tempfile.TemporaryDirectory() as folder:
            found.append(one_set(seed, Path(folder), networks, scales, temperatures, weights))
        print_set(seed, found[-1])
    print_all(found)
    if words.json:
        words.json.write_text(json.dumps(found, indent=1))


def one_set(seed: int, folder: Path, networks: dict, scales: list[float], temperatures: dict, weights: dict) -> dict:
    """Figures of one target set."""
    truth = folder / "truth.tar"
    paths = write_bravo(folder / "bravo", seed=seed, size=FULL.test_size, each=FULL.test_dozens, truth=truth)
    masks = read_masks(truth)
    counts: dict[str, Counts] = {}
    objects: dict[str, list[NDArray[np.float32]]] = {}
    foreign: list[NDArray[np.bool_]] = []
    for path in paths:
        pixels = normalise(decode_image(path)[None])
        with torch.inference_mode():
            logits = torch.stack([network.predict(pixels, scales)[0].float() for network in networks.values()])
        ids, invalid = masks_of(str(path.relative_to(folder / "bravo")), masks)
        answers, scores = subjects(logits, list(networks), temperatures, weights)
        if not path.is_relative_to(folder / "bravo" / "bravo_SMIYC"):  # nobody labelled the classes there
            known = (ids != 255) & (invalid != 1)
            for name, (label, confidence) in answers.items():
                count(counts.setdefault(name, Counts([], [])), label.numpy(), confidence.numpy(), ids, known)
        if path.relative_to(folder / "bravo").parts[0] in ("bravo_SMIYC", "bravo_synobjs"):
            known = (ids != 255) | (invalid == 1)
            foreign.append((invalid == 1)[known])
            for name, score in scores.items():
                objects.setdefault(name, []).append(score.numpy()[known])
    positive = np.concatenate(foreign)
    return {
        "seed": seed,
        "images": len(paths),
        "figures": {name: dict(zip(FIGURES, map(float, figures(one)), strict=True)) for name, one in counts.items()},
        "differences": {ours: differences(counts, ours) for ours in ("ensemble", "calibrated")},
        "objects": {name: found_by(np.concatenate(score), positive) for name, score in objects.items()},
    }


def subjects(
    logits: torch.Tensor, names: list[str], temperatures: dict, weights: dict
) -> tuple[Predictions, dict[str, torch.Tensor]]:
    """Predictions of the members and of the ensemble, and the ensemble's scores of unknown objects (large: unknown).

    Args:
        logits: (M, C, H, W).
        names: of the M members.
        temperatures, weights: of the members by name, after calibration.
    """
    beliefs = logits.double().softmax(1)
    mean = beliefs.mean(0)
    heat = torch.tensor([temperatures[name] for name in names], dtype=torch.float64).view(-1, 1, 1, 1)
    share = torch.tensor([weights[name] for name in names], dtype=torch.float64).view(-1, 1, 1, 1)
    calibrated = ((logits.double() / heat).softmax(1) * share).sum(0) / share.sum()
    answers: Predictions = {"ensemble": top(mean), "calibrated": top(calibrated)}
    answers |= {name: top(belief) for name, belief in zip(names, beliefs, strict=True)}
    entropy, expected = entropies(mean[None])[0], entropies(beliefs).mean(0)
    votes = torch.nn.functional.one_hot(beliefs.argmax(1), CLASSES).double().mean(0).amax(-1)
    scores = {
        "mean-softmax": 1 - mean.amax(0),
        "predictive entropy": entropy,
        "expected entropy": expected,
        "mutual information": entropy - expected,
        "variation ratio": 1 - votes,
        "energy": -logits.double().mean(0).logsumexp(0),
        "max-logit": -logits.double().mean(0).amax(0),
        "rba": -logits.double().mean(0).tanh().sum(0),
    }
    return answers, scores


def top(belief: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and confidence of probabilities (C, H, W)."""
    confidence, label = belief.max(0)
    return label, confidence


def entropies(belief: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of probabilities (M, C, H, W), (M, H, W)."""
    return torch.special.entr(belief).sum(1)


def count(into: Counts, label: NDArray, confidence: NDArray, ids: NDArray, known: NDArray) -> None:
    """Add an image."""
    truth, label = ids[known].astype(np.int64), label[known].astype(np.int64)
    level = np.minimum((confidence[known] * LEVELS).astype(np.int64), LEVELS - 1)
    into.confusion.append(np.bincount(truth * CLASSES + label, minlength=CLASSES**2).astype(np.float32))
    into.levels.append(np.bincount(level + LEVELS * (truth == label), minlength=2 * LEVELS).astype(np.float32))


def figures(counts: Counts, shares: NDArray | None = None) -> NDArray[np.float64]:
    """mIoU over the labelled classes, AUROC of confidence for right against wrong pixels, and ECE: (3,) or (3, R).

    Args:
        counts: of N images.
        shares: (R, N), how often each image counts in each resample.
    """
    n = len(counts.confusion)
    shares = np.ones((1, n)) if shares is None else shares
    matrix = (shares @ np.stack(counts.confusion)).reshape(-1, CLASSES, CLASSES)
    hit, labelled = matrix.diagonal(axis1=1, axis2=2), matrix.sum(2)
    with np.errstate(invalid="ignore"):
        iou = np.where(labelled > 0, hit / (labelled + matrix.sum(1) - hit), np.nan)
    levels = (shares @ np.stack(counts.levels)).reshape(-1, 2, LEVELS)
    wrong, right = levels[:, 0], levels[:, 1]
    # A right pixel beats the wrong ones of lower confidence, and half of its own level's.
    below = wrong.cumsum(1) - wrong / 2
    auroc = (right * below).sum(1) / right.sum(1) / wrong.sum(1)
    places = np.arange(LEVELS) * BINS // LEVELS
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    sure = levels.sum(1) * ((np.arange(LEVELS) + 0.5) / LEVELS)
    gap = np.abs(np.add.reduceat(sure - right, starts, axis=1)).sum(1)
    return np.stack([np.nanmean(iou, 1), auroc, gap / levels.sum((1, 2))]).squeeze()


def differences(counts: dict[str, Counts], ours: str) -> dict[str, dict]:
    """For each figure by how much ``ours`` is better than the best member, with a 95 % interval."""
    members = [name for name in counts if name not in ("ensemble", "calibrated")]
    whole = {name: figures(one) for name, one in counts.items()}
    n = len(counts[ours].confusion)
    shares = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    resampled: dict[str, NDArray] = {}

    def of(name: str) -> NDArray:
        if name not in resampled:
            resampled[name] = np.concatenate(
                [figures(counts[name], part).reshape(3, -1) for part in np.split(shares, 10)], 1
            )
        return resampled[name]

    result = {}
    for i, figure in enumerate(FIGURES):
        sign = -1 if figure in SMALLER_IS_BETTER else 1
        best = max(members, key=lambda name: sign * whole[name][i])
        low, high = np.quantile(sign * (of(ours)[i] - of(best)[i]), (0.025, 0.975))
        ahead = float(sign * (whole[ours][i] - whole[best][i]))
        result[figure] = {
            "best": best,
            "value": float(whole[best][i]),
            "ahead": ahead,
            "interval": [float(low), float(high)],
        }
    return result


def found_by(score: NDArray, positive: NDArray) -> dict[str, float]:
    """AUPRC and FPR at 95 % TPR of a score for unknown objects, by scikit-learn."""
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    return {
        "AUPRC": float(average_precision_score(positive, score)),
        "FPR95": float(false[np.searchsorted(true, 0.95)]),
    }


def read_masks(truth: Path) -> dict[str, NDArray[np.uint8]]:
    """All masks of the tar file by name."""
    with tarfile.open(truth) as tar:
        content: Callable[[tarfile.TarInfo], bytes] = lambda entry: tar.extractfile(entry).read()  # noqa: E731
        return {entry.name: np.asarray(Image.open(io.BytesIO(content(entry)))) for entry in tar if entry.isfile()}


def masks_of(name: str, masks: dict[str, NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Train ids (255: void) and invalid pixels (1) of a photograph."""
    for ending in ("_rgb_anon.png", "_leftImg8bit.png"):
        if name.endswith(ending):
            base = name.removesuffix(ending)
            return masks[base + "_gt_labelTrainIds.png"], masks[base + "_gt_invIds.png"]
    base = str(Path(name).with_suffix(""))
    if name.endswith(".jpg"):
        return masks[base + "_labels_semantic_fake.png"], masks[base + "_labels_semantic.png"]
    return masks[base + "_gt.png"], masks[base + "_mask.png"] // 255


def print_set(seed: int, found: dict) -> None:
    """A row for each figure."""
    for ours, rows in found["differences"].items():
        parts = [
            f"{figure} {found['figures'][ours][figure]:.3f} against {row['value']:.3f} ({row['best']}), "
            f"{row['ahead']:+.3f} [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]"
            for figure, row in rows.items()
        ]
        print(f"seed {seed} {ours}: " + "; ".join(parts), flush=True)


def print_all(found: list[dict]) -> None:
    """Means over the sets, as tables."""
    for ours in ("ensemble", "calibrated"):
        print(
            f"\n{ours}, {len(found)} sets\n"
            f"| figure | {ours} | best member | ahead by | sets ahead | of them by more than chance |\n"
            "|---|---|---|---|---|---|"
        )
        for figure in FIGURES:
            rows = [one["differences"][ours][figure] for one in found]
            mine = np.mean([one["figures"][ours][figure] for one in found])
            best, ahead = (np.mean([row[key] for row in rows]) for key in ("value", "ahead"))
            leads, sure = sum(row["ahead"] > 0 for row in rows), sum(row["interval"][0] > 0 for row in rows)
            print(f"| {figure} | {mine:.3f} | {best:.3f} | {ahead:+.3f} | {leads} | {sure} |")
    print("\n| member | " + " | ".join(FIGURES) + " |\n|---|---|---|---|")
    for name in found[0]["figures"]:
        values = (np.mean([one["figures"][name][figure] for one in found]) for figure in FIGURES)
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print("\n| score of unknown objects | AUPRC | FPR95 |\n|---|---|---|")
    for name in found[0]["objects"]:
        values = (np.mean([one["objects"][name][key] for one in found]) for key in ("AUPRC", "FPR95"))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
