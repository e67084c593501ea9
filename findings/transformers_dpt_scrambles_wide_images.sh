#!/usr/bin/env bash
# What DPTForSemanticSegmentation of transformers gives for an image that is four times as wide as high.
#
# guess: logits that cover the image, or an error: of 64x128 it raises one (shape '[1, 5, 5, 32]' is invalid ...).
# seen (transformers 5.24.0, torch 2.14.1): of 64x256, of which patches of 16x16 make 4x16 = 64 = 8x8, no error and no
#   warning, but the 64 patches are laid out as 8 rows of 8. The logits are 128x128, and a bright patch in the middle of
#   the top row changes them at the left edge. Every size whose number of patches is a square does this, 512x2048, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.24.0 torch==2.14.1
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DPTConfig, DPTForSemanticSegmentation

torch.manual_seed(0)
config = DPTConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=128, patch_size=16,
    backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16, num_labels=19,
)
network = DPTForSemanticSegmentation(config).eval()


def change(height, width):
    """Shape of the logits, and where a bright patch in the middle of the top row changes them most, 0 to 1."""
    dark = torch.zeros(1, 3, height, width)
    bright = dark.clone()
    bright[..., :16, width // 2 : width // 2 + 16] = 3.0
    with torch.no_grad():
        difference = (network(bright).logits - network(dark).logits).abs().amax((0, 1))
    column = difference.sum(0).argmax().item() / difference.shape[1]
    return tuple(difference.shape), round(column, 2)


square, wide = change(128, 128), change(64, 256)
print("128x128: logits", square[0], "change most at", square[1], "of their width")
print("64x256:  logits", wide[0], "change most at", wide[1], "of their width")
assert 0.5 <= square[1] <= 0.625
assert wide[0] == (128, 128)
assert wide[1] < 0.125
try:
    change(64, 128)
except RuntimeError as error:
    print("64x128: ", error)
else:
    raise SystemExit("64x128 is taken now")
PYTHON
echo "as seen: patches of a wide image are laid out as a square"
