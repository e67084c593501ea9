"""Make the tables of docs/metrics.md: our metrics beside those of the packages that others use, on the same pictures.

    python -m venv peers && peers/bin/pip install torch scikit-learn -r benchmarks/peers/requirements.txt
    python -m venv numpy1 && numpy1/bin/pip install torch -r benchmarks/peers/requirements-numpy1.txt
    numpy1/bin/pip install --no-deps vis4d==1.0.0 ml_collections==1.1.0 terminaltables termcolor
    git clone https://github.com/valeoai/bravo_challenge toolkit && git -C toolkit checkout d54005d
    git clone https://github.com/bowenc0221/boundary-iou-api boundary && git -C boundary checkout 37d2558
    cp -r boundary/boundary_iou peers/lib/python3*/site-packages/
    python benchmarks/metric_peers.py --peers peers/bin/python --numpy1 numpy1/bin/python --toolkit toolkit

What the peers say is kept in tests/data/metric_peers.json; a test holds our
figures against it, and the page against both. Without options the page is written from what is kept; with --peers
alone those that need an older NumPy keep what they said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from hmsa_pipeline.datasets.dataset_specs import LABELLED, LABELLED_OR_PREDICTED, dataset_spec
from hmsa_pipeline.pipeline.fusion.prediction_files import CONFIDENCE_LEVELS
from hmsa_pipeline.pipeline.scoring.averages import DATASET, Average, average_of
from hmsa_pipeline.pipeline.scoring.calibration.temperature_fit import fit_temperature
from hmsa_pipeline.pipeline.scoring.figures.probabilities import ProbabilitySums
from hmsa_pipeline.pipeline.scoring.metrics import confusion, level_counts, mean_iou
from hmsa_pipeline.pipeline.scoring.pixel_counts import PixelCounts, count_classes

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers")
KEPT = ROOT / "tests" / "data" / "metric_peers.json"
PAGE = ROOT / "docs" / "metrics.md"
CLOSE = 1e-6
"""Figures that differ by less are the same; some peers compute in float32."""
CLOSE_FITS = 1e-4
"""The same of what is fitted: each stops where its steps get small."""
CLOSE_GRID = 1e-3
"""The same of the smooth ECE, which its authors' package computes on a grid of this step."""
TITLES = {
    "iou": "IoU of each class",
    "miou": f"mIoU, `{LABELLED_OR_PREDICTED}`",
    "miou labelled": f"mIoU, `{LABELLED}`",
    "miou shift": "mIoU, `dataset`, SHIFT's 13 classes",
    "miou shift stray": "mIoU, `dataset`, SHIFT, six cars predicted as rider, truck ...",
    "accuracy": "accuracy",
    "ece": "ECE, 15 bins",
    "auroc": "AUROC",
    "auprc_success": "AUPR of right pixels",
    "auprc_error": "AUPR of wrong pixels",
    "fpr95": "FPR at 95 % TPR",
    "ood auroc": "out of distribution: AUROC",
    "ood auprc": "out of distribution: AUPRC",
    "ood fpr95": "out of distribution: FPR at 95 % TPR",
    "mean_precision": "precision, mean",
    "mean_recall": "recall, mean",
    "category_miou": "category IoU, mean",
    "adaptive_ece": "adaptive ECE, 15 bins",
    "mce": "MCE, 15 bins",
    "smooth_ece": "smooth ECE",
    "aurc": "AURC",
    "eaurc": "E-AURC",
    "augrc": "AUGRC",
    "risk_at_80_coverage": "risk at 80 % coverage",
    "coverage_at_5_risk": "coverage at 5 % risk",
    "boundary_miou": "boundary IoU, mean, of pictures in blocks",
    "nll": "NLL, temperature 1",
    "brier": "Brier score",
    "classwise_ece": "classwise ECE, 15 bins",
    "temperature": "temperature (`calibrate`)",
}
"""The rows of the first table: figure -> what it is called."""
FUNCTIONS = {
    "cityscapesScripts": "`evalPixelLevelSemanticLabeling`",
    "bdd100k": "`bdd100k.eval.run -t sem_seg`",
    "torchmetrics": "`functional.classification`",
    "torch-uncertainty": "`MeanIntersectionOverUnion`, `CalibrationError`, `AdaptiveCalibrationError`, `FPR95`, "
    "`AURC`, `AUGRC`, `RiskAt80Cov`, `CovAt5Risk`, `CategoricalNLL`, `BrierScore`, `TemperatureScaler`",
    "pytorch-ood": "`AUROC`, `AUPR`, `FPRAtTPR`",
    "netcal": "`ECE`, `ACE`, `MCE`, `TemperatureScaling`",
    "scikit-learn": "`roc_auc_score`, `average_precision_score`, `accuracy_score`, `jaccard_score`, "
    "`precision_score`, `recall_score`, `log_loss`, `brier_score_loss`",
    "relplot": "`smECE`",
    "boundary-iou": "`mask_to_boundary`",
    "BRAVO toolkit": "`fast_cm`, `per_class_iou`, `get_curve_metrics`",
    "vis4d": "`SHIFTSegEvaluator`",
}
MEAN = "miou"
_WITH_NUMPY_1 = ("bdd100k", "BRAVO toolkit", "vis4d")


def _data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_peers_data", PEERS / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours() -> dict[str, Any]:
    """Our figures of the pictures, by the names of `TITLES`."""
    data = _data()
    p = data.pixels(data.pictures())
    level = p["level"].astype("uint16")
    matrix = confusion(torch.from_numpy(p["label"]), torch.from_numpy(p["truth"]))
    counts = PixelCounts(False, matrix.numpy(), level_counts(p["right"], level), 2)
    found = counts.figures(Average(LABELLED_OR_PREDICTED, LABELLED_OR_PREDICTED))
    found["miou labelled"] = counts.figures(Average(LABELLED, LABELLED))[MEAN]
    blocks = zip(*data.block_pictures(), strict=True)
    near = sum_counts(count_classes(label, label.astype("uint16"), truth) for truth, label in blocks)
    found["boundary_miou"] = near.figures()["boundary_miou"]
    doubt = (CONFIDENCE_LEVELS - 1 - p["level"]).astype("uint16")
    odd = PixelCounts(ood=True, levels=level_counts(p["odd"], doubt), images=2)
    found |= {f"ood {name}": value for name, value in odd.figures().items()}
    rule = average_of(DATASET, [dataset_spec("shift")])
    for name, stray in (("miou shift", False), ("miou shift stray", True)):
        truth, label = (torch.from_numpy(ids) for ids in data.shift_pictures(stray))
        found[name] = mean_iou(confusion(label, truth), rule)
    logits, labels = (torch.from_numpy(values) for values in data.scores())
    sums = ProbabilitySums(labels.to(torch.uint8).numpy()[:, None], data.CLASSES, ["a"])
    sums.add("a", slice(None), logits.softmax(1).T[..., None])
    alone = PixelCounts(images=1, losses=sums.losses["a"], classwise=sums.classwise["a"])
    np.add.at(alone.confusion, (labels, logits.argmax(1)), 1)
    found |= {name: alone.figures()[name] for name in ("nll", "brier", "classwise_ece")}
    found["temperature"] = fit_temperature(logits, labels)
    return {name: found[name] for name in TITLES}


def sum_counts(counts: Iterable[PixelCounts]) -> PixelCounts:
    """Counts of all images together."""
    total = PixelCounts()
    for one in counts:
        total += one
    return total


def theirs(peers: str, numpy1: str | None, toolkit: str | None) -> dict[str, Any]:
    """What each peer says, run in its own environment; what was kept of those without one."""
    found = json.loads(KEPT.read_text())
    for name in FUNCTIONS:
        if name in _WITH_NUMPY_1 and numpy1 is None:
            continue
        python = numpy1 if name in _WITH_NUMPY_1 else peers
        words = [str(python), "-W", "ignore", str(PEERS / "run_peer.py"), name, str(Path(toolkit or ".").resolve())]
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(said.splitlines()[-1])
    return found


def same(name: str, value: Any, peer: Any) -> bool:
    """Whether a peer's figure, or each of a list of them, is ours."""
    close = {"temperature": CLOSE_FITS, "smooth_ece": CLOSE_GRID}.get(name, CLOSE)
    pairs = zip(value, peer, strict=True) if isinstance(value, list) else [(value, peer)]
    return all(abs(one - other) < close for one, other in pairs)


def _cell(name: str, value: Any, peer: Any) -> str:
    if peer is None:
        return "-"
    return "same" if same(name, value, peer) else f"**{_shown(peer)}**"


def tables(own: dict[str, Any], peers: dict[str, Any]) -> str:
    """Markdown: each figure beside the peers' and, below it, what a peer makes of input that its users have."""
    heads = [f"{name} {found['version']}" for name, found in peers.items()]
    lines = ["| figure | ours | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for name, title in TITLES.items():
        cells = [_cell(name, own[name], found["figures"].get(_theirs(name))) for found in peers.values()]
        lines.append(f"| {title} | {_shown(own[name])} | " + " | ".join(cells) + " |")
    lines += ["", "| peer | functions compared |", "|---|---|"]
    lines += [f"| {name} {found['version']} | {FUNCTIONS[name]} |" for name, found in peers.items()]
    lines += ["", "| peer | input | expected | result |", "|---|---|---|---|"]
    for name, found in peers.items():
        for what, (wanted, given) in found.get("oddities", {}).items():
            lines.append(f"| {name} {found['version']} | {what} | {_shown(wanted)} | {_shown(given)} |")
    return "\n".join(lines)


def _theirs(name: str) -> str:
    """A peer has one mean IoU; both of ours are held against it."""
    return MEAN if name == "miou labelled" else name


def _shown(value: float | str | list[float]) -> str:
    if isinstance(value, list):
        return f"{len(value)} figures"
    return value if isinstance(value, str) else f"{value:.4f}"


def page(text: str, made: str) -> str:
    """``text`` with what stands between its markers replaced."""
    pattern = r"(<!-- peers: made by benchmarks/metric_peers.py -->\n).*?(\n<!-- end of peers -->)"
    found, count = re.subn(pattern, lambda match: f"{match[1]}\n{made}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit("docs/metrics.md: the markers of the tables are not there")
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--peers", "--numpy1", "--toolkit"):
        parser.add_argument(option)
    options = parser.parse_args()
    given = (options.peers, options.numpy1, options.toolkit)
    if any(given):
        if options.peers is None or (options.numpy1 is None) != (options.toolkit is None):
            sys.exit("--numpy1 and --toolkit belong together, and to --peers")
        KEPT.write_text(json.dumps(theirs(*given), indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), tables(ours(), json.loads(KEPT.read_text()))))


if __name__ == "__main__":
    main()
