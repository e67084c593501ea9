#!/usr/bin/env bash
# What bfloat16 does to the task that a OneFormer of transformers is asked for, as ids of a text's tokens (task_inputs).
#
# guess: nothing; ids are looked up in an embedding, and autocast leaves integers alone.
# seen (transformers 5.24.0, torch 2.14.1): the ids are cast to the network's type and multiplied by a linear layer as
#   numbers. bfloat16 has 8 bits, so 29119 becomes 29056, and so does 29060: two tasks of other words give the same bits,
#   under autocast, too, and without a warning. In float32 their masks differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.24.0 torch==2.14.1 scipy==1.17.1
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, SwinConfig

torch.manual_seed(0)
backbone = SwinConfig(
    embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4,
    out_features=["stage1", "stage2", "stage3", "stage4"],
)
config = OneFormerConfig(
    backbone_config=backbone, num_queries=6, conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=16,
    encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, query_dec_layers=1,
    text_encoder_width=16, text_encoder_num_layers=1, num_labels=19,
)
network = OneFormerForUniversalSegmentation(config).eval()
pixels = torch.randn(1, 3, 64, 96)


def masks(word, network=network, pixels=pixels):
    ids = [49406, 518, 10549, 533, word, 1550, 49407]  # the task is ...
    task = torch.tensor([ids + [0] * (77 - len(ids))])
    with torch.no_grad():
        return network(pixel_values=pixels, task_inputs=task).masks_queries_logits


exact = (masks(29119) - masks(29060)).abs().max().item()
with torch.autocast("cpu", torch.bfloat16):
    autocast = torch.equal(masks(29119), masks(29060))
half = {"network": network.to(torch.bfloat16), "pixels": pixels.to(torch.bfloat16)}
cast = torch.equal(masks(29119, **half), masks(29060, **half))
print(f"float32: masks of two tasks differ by {exact:.1e}; equal bits under autocast: {autocast}; in bfloat16: {cast}")
assert exact > 1e-5
assert autocast and cast
PYTHON
echo "as seen: two tasks become one in bfloat16"
