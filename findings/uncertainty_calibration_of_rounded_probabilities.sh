#!/usr/bin/env bash
# What does rounding probabilities do to the calibration error that uncertainty-calibration gives by default?
#
# guess: nothing that is larger than the rounding itself; it sorts the probabilities into 15 bins of equal mass.
# seen (uncertainty-calibration 0.1.4, numpy 2.4.6): 20,000 samples of 19 classes, error 0.0525 in float64, with 6 digits and
#   in float16, 0.0267 with 4 digits, 0.0483 with 3 digits. Of the top label alone, p = 1 and without its correction for
#   bias, 0.2163, 0.2769 and 0.2180. Where at most a quarter as many different values as samples are left, each value
#   becomes a bin of its own. get_ece, with its fixed bins, gives 0.2163 for all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uncertainty-calibration==0.1.4 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import calibration
import numpy as np

draw = np.random.default_rng(0)
logits = 2 * draw.standard_normal((20_000, 19))


def softmax(z):
    p = np.exp(z)
    return p / p.sum(1, keepdims=True)


labels = (softmax(logits / 2).cumsum(1) > draw.random((20_000, 1))).argmax(1)
exact = softmax(logits)
kinds = {
    "float64": exact,
    "6 digits": exact.round(6),
    "float16": exact.astype(np.float16).astype(float),
    "4 digits": exact.round(4),
    "3 digits": exact.round(3),
}
found = {}
for name, p in kinds.items():
    top = calibration.get_calibration_error(p, labels, p=1, debias=False, mode="top-label")
    found[name] = calibration.get_calibration_error(p, labels), top, calibration.get_ece(p, labels)
    print("%s: default %.4f, top label %.4f, get_ece %.4f" % (name, *found[name]))
whole, top, fixed = found["float64"]
for name in ("6 digits", "float16"):
    assert np.allclose(found[name], found["float64"], atol=2e-4), name
assert found["4 digits"][0] < 0.6 * whole and found["4 digits"][1] > top + 0.05
assert abs(found["3 digits"][0] - whole) > 0.003
assert all(abs(one[2] - fixed) < 2e-4 for one in found.values())
PYTHON
