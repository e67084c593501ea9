#!/usr/bin/env bash
# Which AUROC does torchmetrics give scores that rank pixels well, but lie above 1, as energies do?
#
# guess: the same as for any scores of that order; AUROC depends on nothing else.
# seen (torchmetrics 1.9.0, torch 2.14.1): 0.8386 for a score in 0..1, 0.5000 for 40 + 20 times the score, without a
#   warning; average precision 0.4422 becomes 0.1010, the share of positives. One value outside 0..1 makes the batch
#   logits: it passes through a sigmoid, which is 1.0 in float32 from about 17 on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

draw = torch.Generator().manual_seed(0)
positive = torch.rand(20000, generator=draw) < 0.1
score = (0.4 + 0.1 * torch.randn(20000, generator=draw) + 0.14 * positive).clamp(0, 1)
energy = 40 + 20 * score
share = positive.float().mean().item()
found = [
    f(x, positive.long()).item() for f in (binary_auroc, binary_average_precision) for x in (score, energy)
]
print("AUROC of the score %.4f, of 40 + 20 x score %.4f; AP %.4f and %.4f; positives %.4f" % (*found, share))
assert found[0] > 0.8 and found[1] == 0.5
assert found[2] > 0.3 and abs(found[3] - share) < 1e-6
PYTHON
