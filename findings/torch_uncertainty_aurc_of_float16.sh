#!/usr/bin/env bash
# What does torch-uncertainty's AURC give for probabilities in float16, which is what networks on a GPU put out?
#
# guess: the AURC of the same probabilities in float32, up to their rounding (1e-3).
# seen (torch-uncertainty 0.13.0, torch 2.14.1): right for 60,000 samples (0.6946 and 0.6946). For 100,000 samples 0.434
#   instead of 0.696, for 400,000 0.091 instead of 0.694, without a warning; AUGRC 0.150 instead of 0.367, and 0.008. The
#   counts of samples are computed in the type of the scores, and float16 ends at 65,504. bfloat16 is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'torch-uncertainty[cpu]==0.13.0' torch==2.14.1 torchvision==0.29.1 \
  torchmetrics==1.9.0 lightning==2.6.6 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch_uncertainty.metrics import AUGRC, AURC


def of(metric, probabilities, labels):
    measured = metric()
    measured.update(probabilities, labels)
    return measured.compute().item()


torch.manual_seed(0)
found = {}
for count in (60_000, 100_000, 400_000):
    logits = 2 * torch.randn(count, 19)
    labels = torch.distributions.Categorical(logits=logits / 2).sample()
    single = logits.softmax(1)
    for metric in (AURC, AUGRC):
        values = [of(metric, p, labels) for p in (single, single.half(), single.bfloat16())]
        found[metric.__name__, count] = values
        print("%s of %d samples: float32 %.4f, float16 %.4f, bfloat16 %.4f" % (metric.__name__, count, *values))
for (name, count), (exact, half, brain) in found.items():
    assert abs(brain - exact) < 1e-3, (name, count)
    assert (abs(half - exact) < 1e-3) == (count < 65_504), (name, count)
    assert count < 65_504 or half < 0.7 * exact, (name, count)
PYTHON
