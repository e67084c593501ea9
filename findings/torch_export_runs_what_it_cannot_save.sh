#!/usr/bin/env bash
# Whether a program of torch.export that runs for any size can be saved: a network that halves its images by
# math.floor(side * 0.5), as multi-scale inference does.
#
# guess: torch.export.export either refuses the float factor, or makes a program that torch.export.save writes.
# seen (torch 2.14.1): the program is made, runs for other sizes with the same result, and torch.onnx.export makes a file
#   of it that ONNX Runtime runs; but torch.export.save raises "op <built-in function floor> is not in _SYM_OPS". With
#   side // 2, or any factor as whole numbers, it is saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2
"$folder/venv/bin/python" - "$folder/half.onnx" <<'PYTHON'
import io
import math
import sys
import warnings

import onnxruntime
import torch
from torch.nn.functional import interpolate

warnings.simplefilter("ignore")
image, other = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 49, 81)
free = torch.export.Dim.DYNAMIC


class Factor(torch.nn.Module):
    def forward(self, image):
        return interpolate(image, [math.floor(side * 0.5) for side in image.shape[-2:]], mode="bilinear")


class Whole(torch.nn.Module):
    def forward(self, image):
        return interpolate(image, [side // 2 for side in image.shape[-2:]], mode="bilinear")


def exported(network):
    program = torch.export.export(network, (image,), dynamic_shapes=({2: free, 3: free},), strict=False)
    assert torch.equal(program.module()(other), network(other))
    return program


torch.export.save(exported(Whole()), io.BytesIO())
print("whole numbers: saved")
program = exported(Factor())
torch.onnx.export(program, (), dynamo=True, verbose=False).save(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[1])
(found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
print("float factor: runs at 49x81, and as ONNX to within", abs(found - Factor()(other).numpy()).max())
assert abs(found - Factor()(other).numpy()).max() < 1e-4
try:
    torch.export.save(program, io.BytesIO())
except Exception as error:
    message = str(error).splitlines()[-1]
    print("float factor:", type(error).__name__, message)
    assert "floor" in message and "_SYM_OPS" in message
else:
    raise SystemExit("float factor: is saved now")
PYTHON
echo "as seen: the program runs and becomes ONNX, but is not saved"
