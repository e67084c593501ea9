#!/usr/bin/env bash
# Which temperature does netcal fit to the float32 probabilities of a network that is twice as sure as it may be?
#
# guess: about 2, the number that logits are divided by, and the same for float32 and float64.
# seen (netcal 1.4.0, torch 2.14.1): 0.4978 for float64, which is 1 / T, and exactly 1.0 for the same probabilities in
#   float32: nothing is fitted, and nothing is said.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check netcal==1.4.0 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from netcal.scaling import TemperatureScaling


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


draw = np.random.default_rng(21)
honest = draw.normal(0, 2, (4000, 19))
truth = (softmax(honest).cumsum(1) < draw.random((4000, 1))).sum(1).clip(max=18)
sure = softmax(2 * honest)
double, single = (
    float(np.ravel(TemperatureScaling().fit(p, truth).temperature)[0]) for p in (sure, sure.astype(np.float32))
)
print(f"float64 {double:.4f}, float32 {single:.4f}")
assert abs(double - 0.5) < 0.02
assert single == 1.0
PYTHON
