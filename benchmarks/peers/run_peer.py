"""Run one peer on the pictures of `data` and print what it says as JSON: run_peer.py NAME [TOOLKIT].

In the peer's own environment; nothing of hmsa-pipeline is needed. ``figures`` are those of docs/metrics.md by name,
``oddities`` what a peer makes of input that its users have, beside what one would expect.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from data import (
    CLASSES,
    IGNORE,
    SHIFT,
    SHIFT_ALIKE,
    block_pictures,
    pictures,
    pixels,
    scores,
    shift_pictures,
)

Found = dict[str, Any]


def _save(path: Path, array: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    import_module("PIL.Image").fromarray(array).save(path)
    return str(path)


def cityscapesscripts() -> Found:
    """The script that Cityscapes' server runs, on label ids in files."""
    script: Any = import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    labels: Any = import_module("cityscapesscripts.helpers.labels")
    ids = np.zeros(256, np.uint8)  # 0 is unlabeled
    for train in range(CLASSES):
        ids[train] = labels.trainId2label[train].id
    data = pictures()
    with tempfile.TemporaryDirectory() as folder:
        names = {
            what: [_save(Path(folder) / what / f"a_{i}_{what}.png", ids[one]) for i, one in enumerate(data[what])]
            for what in ("truth", "label")
        }
        script.args.quiet, script.args.JSONOutput, script.args.evalInstLevelScore = True, False, False
        found = script.evaluateImgLists(names["label"], names["truth"], script.args)
        # Train ids, as most networks give them, where the script wants label ids: it says nothing.
        wrong = [_save(Path(folder) / "train ids" / f"a_{i}_label.png", one) for i, one in enumerate(data["label"])]
        mistaken = script.evaluateImgLists(wrong, names["truth"], script.args)
    classes = [found["classScores"][labels.trainId2label[train].name] for train in range(CLASSES)]
    figures = {
        "miou": float(found["averageScoreClasses"]),
        "iou": classes,
        "category_miou": float(found["averageScoreCategories"]),
    }
    oddities = {
        "evalPixelLevelSemanticLabeling of train ids instead of label ids, mIoU": (
            "a refusal",
            float(mistaken["averageScoreClasses"]),
        )
    }
    return {"version": version("cityscapesScripts"), "figures": _plain(figures), "oddities": _pairs(oddities)}


def bdd100k() -> Found:
    """``python -m bdd100k.eval.run -t sem_seg``, on train ids in files."""
    data = pictures()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for what in ("truth", "label"):
            for i, one in enumerate(data[what]):
                _save(root / what / f"{i}.png", one)
        words = ["-t", "sem_seg", "-g", f"{root}/truth", "-r", f"{root}/label", "--out-file", f"{root}/found.json"]
        subprocess.run([sys.executable, "-m", "bdd100k.eval.run", *words, "--nproc", "1", "--quiet"], check=True)
        found = json.loads((root / "found.json").read_text())
    iou = found["IoU"]
    average = next(row["AVERAGE"] for row in (iou if isinstance(iou, list) else [iou]) if "AVERAGE" in row)
    accuracy = found["pAcc"]
    accuracy = accuracy[-1]["AVERAGE"] if isinstance(accuracy, list) else accuracy
    figures = {"miou": average / 100, "accuracy": accuracy / 100}
    return {"version": version("bdd100k"), "figures": figures}


def torchmetrics() -> Found:
    """Its functions, on tensors."""
    torch: Any = import_module("torch")
    f: Any = import_module("torchmetrics.functional.classification")
    p = {name: torch.from_numpy(value) for name, value in pixels(pictures()).items()}
    right, odd, doubt = p["right"].long(), p["odd"].long(), 1 - p["sure"]
    logits, labels = (torch.from_numpy(value) for value in scores())
    chances = logits.softmax(1)
    whole = {name: torch.from_numpy(pictures()[name].astype(np.int64)) for name in ("truth", "label")}
    figures = {
        "miou": f.multiclass_jaccard_index(
            whole["label"], whole["truth"], num_classes=CLASSES, average="macro", ignore_index=IGNORE
        ),
        "iou": f.multiclass_jaccard_index(
            whole["label"], whole["truth"], num_classes=CLASSES, average="none", ignore_index=IGNORE
        ),
        "accuracy": f.multiclass_accuracy(p["label"], p["truth"], num_classes=CLASSES, average="micro"),
        "ece": f.binary_calibration_error(p["sure"], right, n_bins=15),
        "mce": f.binary_calibration_error(p["sure"], right, n_bins=15, norm="max"),
        "classwise_ece": np.mean(
            [
                float(f.binary_calibration_error(chances[:, c], (labels == c).long(), n_bins=15))
                for c in range(CLASSES)
            ]
        ),
        "auroc": f.binary_auroc(p["sure"], right),
        "auprc_success": f.binary_average_precision(p["sure"], right),
        "auprc_error": f.binary_average_precision(doubt, 1 - right),
        "ood auroc": f.binary_auroc(doubt, odd),
        "ood auprc": f.binary_average_precision(doubt, odd),
    }
    energies = (40 + 20 * p["sure"]).float()
    certain, hit = torch.tensor([0.95] * 50 + [1.0] * 50), torch.tensor([1] * 95 + [0] * 5)
    stray = f.multiclass_confusion_matrix(
        torch.tensor([IGNORE, 1]), torch.tensor([0, 1]), num_classes=CLASSES, validate_args=False
    )
    oddities = {
        "binary_auroc of 40 + 20 p, which has the order of p": (figures["auroc"], f.binary_auroc(energies, right)),
        "binary_calibration_error, 15 bins: half 0.95, all right, half 1.0, nine of ten right": (
            0.975 - 0.95,
            f.binary_calibration_error(certain, hit, n_bins=15),
        ),
        "multiclass_confusion_matrix without validate_args: a predicted 255 on class 0 counts at": (
            "an error of class 0",
            str([tuple(cell) for cell in stray.nonzero().tolist() if cell != [1, 1]]),
        ),
    }
    return {"version": version("torchmetrics"), "figures": _plain(figures), "oddities": _pairs(oddities)}


def torch_uncertainty() -> Found:
    """Its metrics, on tensors."""
    torch: Any = import_module("torch")
    m: Any = import_module("torch_uncertainty.metrics")
    p = {name: torch.from_numpy(value) for name, value in pixels(pictures()).items()}
    doubt = 1 - p["sure"]

    def one(metric: Any, *given: Any) -> Any:
        metric.update(*given)
        return metric.compute()

    class Given(torch.nn.Module):
        """A network whose input is its logits."""

        def forward(self, logits: Any) -> Any:
            return logits

    logits, labels = (torch.from_numpy(value) for value in scores())
    scaler = import_module("torch_uncertainty.post_processing").TemperatureScaler(Given())
    data: Any = import_module("torch.utils.data")
    scaler.fit(data.DataLoader(data.TensorDataset(logits.float(), labels), batch_size=1000), progress=False)
    # Two classes stand for right and wrong pixels: the higher probability is the confidence.
    adaptive = m.AdaptiveCalibrationError(task="multiclass", num_classes=101, num_bins=15)
    selective = {
        "aurc": m.AURC(),
        "augrc": m.AUGRC(),
        "risk_at_80_coverage": m.RiskAt80Cov(),
        "coverage_at_5_risk": m.CovAt5Risk(),
    }
    sure = torch.full((len(p["sure"]), 101), 0.0, dtype=torch.float64)
    sure[:, 0] = p["sure"]
    sure[:, 1:] = ((1 - p["sure"]) / 100)[:, None]
    truth = (~p["right"]).long()
    figures = {
        "temperature": scaler.temperature[0],
        "nll": one(m.CategoricalNLL(), logits.softmax(1), labels),
        "brier": one(m.BrierScore(num_classes=CLASSES), logits.softmax(1), labels),
        "adaptive_ece": one(adaptive, sure, truth),
        **{name: one(metric, sure, truth) for name, metric in selective.items()},
        "miou": one(m.MeanIntersectionOverUnion(num_classes=CLASSES), p["label"], p["truth"]),
        "ece": one(m.CalibrationError(task="binary", num_bins=15), p["sure"], p["right"].long()),
        "fpr95": one(m.FPR95(pos_label=1), p["sure"], p["right"].long()),
        "ood fpr95": one(m.FPR95(pos_label=1), doubt, p["odd"].long()),
    }
    return {"version": version("torch-uncertainty"), "figures": _plain(figures)}


def pytorch_ood() -> Found:
    """Its metrics, which call what is out of distribution positive."""
    torch: Any = import_module("torch")
    m: Any = import_module("pytorch_ood.metrics")
    p = {name: torch.from_numpy(value) for name, value in pixels(pictures()).items()}

    def one(metric: Any, positive: Any, score: Any) -> Any:
        metric.update(score, torch.where(positive, -1, 1))
        (value,) = metric.compute().values()
        return value

    doubt = 1 - p["sure"]
    figures = {
        "auroc": one(m.AUROC(), p["right"], p["sure"]),
        "auprc_success": one(m.AUPR(positive="ood"), p["right"], p["sure"]),
        "auprc_error": one(m.AUPR(positive="ood"), ~p["right"], doubt),
        "fpr95": one(m.FPRAtTPR(), p["right"], p["sure"]),
        "ood auroc": one(m.AUROC(), p["odd"], doubt),
        "ood auprc": one(m.AUPR(positive="ood"), p["odd"], doubt),
        "ood fpr95": one(m.FPRAtTPR(), p["odd"], doubt),
    }
    return {"version": version("pytorch-ood"), "figures": _plain(figures)}


def netcal() -> Found:
    """Its metrics, on arrays."""
    m: Any = import_module("netcal.metrics")
    p = pixels(pictures())
    right = p["right"].astype(int)
    ece = m.ECE(bins=15).measure(p["sure"], right)
    equal_mass = m.ACE(bins=15, equal_intervals=False).measure(p["sure"], right)
    oddities = {
        "ACE, 15 bins (average calibration error); with equal_intervals=False": (
            equal_mass,
            m.ACE(bins=15).measure(p["sure"], right),
        )
    }
    scaling: Any = import_module("netcal.scaling").TemperatureScaling
    logits, labels = scores()
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    inverse, single = (
        float(np.ravel(scaling().fit(given, labels).temperature)[0])
        for given in (chances, chances.astype(np.float32))
    )
    oddities["TemperatureScaling.temperature, the inverse of what networks are divided by"] = (1 / inverse, inverse)
    oddities["the same of float32 probabilities"] = (inverse, single)
    figures = {
        "ece": ece,
        "mce": m.MCE(bins=15).measure(p["sure"], right),
        "adaptive_ece": equal_mass,
        "temperature": 1 / inverse,
    }
    return {"version": version("netcal"), "figures": _plain(figures), "oddities": _pairs(oddities)}


def scikit_learn() -> Found:
    """Its functions, on arrays."""
    m: Any = import_module("sklearn.metrics")
    p = pixels(pictures())
    doubt = 65535 - p["level"]
    logits, labels = scores()
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    each: Found = {"labels": range(CLASSES), "average": None, "zero_division": np.nan}
    figures = {
        "iou": m.jaccard_score(p["truth"], p["label"], labels=range(CLASSES), average=None),
        "nll": m.log_loss(labels, chances, labels=range(CLASSES)),
        "brier": m.brier_score_loss(labels, chances, labels=range(CLASSES), scale_by_half=False),
        "mean_precision": np.nanmean(m.precision_score(p["truth"], p["label"], **each)),
        "mean_recall": np.nanmean(m.recall_score(p["truth"], p["label"], **each)),
        "accuracy": m.accuracy_score(p["truth"], p["label"]),
        "auroc": m.roc_auc_score(p["right"], p["level"]),
        "auprc_success": m.average_precision_score(p["right"], p["level"]),
        "auprc_error": m.average_precision_score(~p["right"], doubt),
        "ood auroc": m.roc_auc_score(p["odd"], doubt),
        "ood auprc": m.average_precision_score(p["odd"], doubt),
    }
    return {"version": version("scikit-learn"), "figures": _plain(figures)}


def relplot() -> Found:
    """Its smooth error, of the authors of the definition."""
    p = pixels(pictures())
    smooth: Any = import_module("relplot").smECE
    figures = {"smooth_ece": smooth(p["sure"], p["right"].astype(float))}
    return {"version": version("relplot"), "figures": _plain(figures)}


def boundary_iou() -> Found:
    """Its masks of boundaries, of each class of each picture, counted over both; 0.5 % of 320 pixels are 2."""
    masks: Any = import_module("boundary_iou.utils.boundary_utils").mask_to_boundary
    both, either = np.zeros(CLASSES), np.zeros(CLASSES)
    for truth, label in zip(*block_pictures(), strict=True):
        for c in range(CLASSES):
            near = [
                masks(np.uint8(own & (truth != IGNORE)), dilation_ratio=0.005) > 0 for own in (truth == c, label == c)
            ]
            both[c] += (near[0] & near[1]).sum()
            either[c] += (near[0] | near[1]).sum()
    return {"version": "37d2558", "figures": {"boundary_miou": float(np.nanmean(both / either))}}


def bravo_toolkit() -> Found:
    """The challenge's own functions, on counts; the toolkit's folder is the second word."""
    sys.path.insert(0, sys.argv[2])
    script: Any = import_module("bravo_toolkit.eval.eval_script")
    m: Any = import_module("bravo_toolkit.eval.metrics")
    p = pixels(pictures())
    good, bad = m.get_tp_fp_counts(p["right"], p["level"], score_levels=65536)
    names = ("auroc", "fpr95", "auprc_success", "auprc_error", "ece")
    figures: dict[str, Any] = dict(zip(names, script.get_curve_metrics(good, bad), strict=True))
    odd, usual = m.get_tp_fp_counts(p["odd"], 65535 - p["level"], score_levels=65536)
    figures |= dict(
        zip(("ood auroc", "ood fpr95", "ood auprc"), script.get_curve_metrics(odd, usual)[:3], strict=True)
    )
    figures["iou"] = m.per_class_iou(m.fast_cm(p["truth"], p["label"], CLASSES))
    figures["miou"] = np.nanmean(figures["iou"])
    stray = m.fast_cm(np.array([0, 1]), np.array([CLASSES, 1]), CLASSES)
    cells = [tuple(cell) for cell in np.argwhere(stray).tolist() if cell != [1, 1]]
    oddities = {"fast_cm: a predicted 19 on class 0 counts at": ("a refusal, as of 20", str(cells))}
    return {"version": "d54005d", "figures": _plain(figures), "oddities": _pairs(oddities)}


def vis4d() -> Found:
    """SHIFT's authors' evaluator, on SHIFT's own ids."""
    evaluator: Any = import_module("vis4d.eval.shift").SHIFTSegEvaluator

    def miou(stray: bool, others: dict[int, int]) -> float:
        truth, label = shift_pictures(stray)
        ids = np.zeros(CLASSES, np.int64)
        ids[[*SHIFT]], ids[[*others]] = [*SHIFT.values()], [*others.values()]
        one = evaluator()
        one.process_batch(ids[label][None], ids[truth][None])
        return one.evaluate("mIoU")[0]["mIoU"] / 100

    apart = dict.fromkeys(SHIFT_ALIKE, 20)  # its "dynamic", which is not evaluated
    figures = {"miou shift": miou(False, {}), "miou shift stray": miou(True, SHIFT_ALIKE)}
    oddities = {
        "the six strays given as `dynamic`, which it does not evaluate": (
            miou(True, SHIFT_ALIKE),
            miou(True, apart),
        )
    }
    return {"version": version("vis4d"), "figures": figures, "oddities": _pairs(oddities)}


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: [float(v) for v in value] if name == "iou" else float(value) for name, value in figures.items()}


def _pairs(oddities: dict[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    return {what: [v if isinstance(v, str) else float(v) for v in pair] for what, pair in oddities.items()}


PEERS = {
    "cityscapesScripts": cityscapesscripts,
    "bdd100k": bdd100k,
    "torchmetrics": torchmetrics,
    "torch-uncertainty": torch_uncertainty,
    "pytorch-ood": pytorch_ood,
    "netcal": netcal,
    "scikit-learn": scikit_learn,
    "relplot": relplot,
    "boundary-iou": boundary_iou,
    "BRAVO toolkit": bravo_toolkit,
    "vis4d": vis4d,
}

if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]]()))
