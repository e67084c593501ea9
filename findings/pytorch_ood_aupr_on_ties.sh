#!/usr/bin/env bash
# Does pytorch-ood's AUPR equal scikit-learn's average precision?
#
# guess: yes, to rounding; both say area under the precision-recall curve.
# seen (pytorch-ood 0.4.0): 65,536 levels 0.4417 for 0.4422, but 8 levels 0.4578 for 0.3320. It joins the points of the curve by
#   straight lines (trapezoidal rule), and with tied scores, as confidences of few levels have, the area is much larger.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    pytorch-ood==0.4.0 torch==2.14.1 scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from pytorch_ood.metrics import AUPR
from sklearn.metrics import average_precision_score

draw = torch.Generator().manual_seed(0)
odd = torch.rand(20000, generator=draw) < 0.1
score = (0.4 + 0.1 * torch.randn(20000, generator=draw) + 0.14 * odd).clamp(0, 1)
for levels in (65536, 8):
    tied = (score * levels).floor() / levels
    metric = AUPR(positive="ood")
    metric.update(tied, torch.where(odd, -1, 1))
    (theirs,) = metric.compute().values()
    average = average_precision_score(odd, tied)
    print(f"{levels} levels: AUPR {float(theirs):.4f}, average precision {average:.4f}")
    if levels == 8:
        assert float(theirs) - average > 0.01
PYTHON
