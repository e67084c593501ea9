#!/usr/bin/env bash
# What do torch-uncertainty's figures of out-of-distribution segmentation make of pixels without a label, 255?
#
# guess: its three figures treat 255 alike: all leave it out, or all refuse it.
# seen (torch-uncertainty 0.13.0, torchmetrics 1.9.0, torch 2.14.1): AUROC and average precision raise a RuntimeError that
#   names 0, 1, 255. FPR95 takes 255 for a negative without a word: 0.681 where the labelled pixels alone give 0.595. With
#   ignore_index=255, which is not the default, all three are those of the labelled pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch-uncertainty[cpu]==0.13.0' torch==2.14.1 torchvision==0.29.1 \
  torchmetrics==1.9.0 lightning==2.6.6 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch_uncertainty.metrics import SegmentationBinaryAUROC, SegmentationBinaryAveragePrecision, SegmentationFPR95

draw = torch.Generator().manual_seed(0)
label = (torch.rand(1, 200, 400, generator=draw) < 0.1).long()
score = (0.4 + 0.1 * torch.randn(1, 200, 400, generator=draw) + 0.14 * label).clamp(0, 1)
unlabelled = torch.rand(1, 200, 400, generator=draw) < 0.2
score = torch.where(unlabelled, score + 0.2, score).clamp(0, 1)
marked = torch.where(unlabelled, 255, label)


def of(metric, scores, labels, **options):
    measured = metric(**options)
    try:
        measured.update(scores, labels)
        return round(measured.compute().item(), 4)
    except RuntimeError as error:
        return "RuntimeError" if "255" in str(error) else str(error)


for metric, options in (
    (SegmentationBinaryAUROC, {}),
    (SegmentationBinaryAveragePrecision, {}),
    (SegmentationFPR95, {"pos_label": 1}),
):
    alone = of(metric, score[~unlabelled][None], label[~unlabelled][None], **options)
    default, ignored = (of(metric, score, marked, **options, **more) for more in ({}, {"ignore_index": 255}))
    print(f"{metric.__name__}: labelled pixels {alone}, with 255 {default}, with ignore_index {ignored}")
    assert ignored == alone
    if metric is SegmentationFPR95:
        assert default == of(metric, score, torch.where(unlabelled, 0, label), **options)
        assert default > alone + 0.05
    else:
        assert default == "RuntimeError"
PYTHON
