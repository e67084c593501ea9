"""The networks against outputs of the public reference code."""

from __future__ import annotations

import copy
import json
import zlib

import numpy as np
import pytest
import torch
from hmsa_pipeline.models.hmsa import HMSA, ScaleOutput, blend
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from hmsa_pipeline.models.registry import build

from .. import golden

CHECKS = json.loads((golden.DATA / "reference_checks.json").read_text())

# Largest differences seen here are 7e-5 and 3e-6; a wrong epsilon of the norms gives 0.1.
LOGITS, ATTENTION = 1e-3, 1e-4


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.argmax(1) == b.argmax(1)).mean())


@pytest.mark.parametrize("name", ["a_64x128_s1", "b_64x128_s3", "c_64x128_s3_flip", "d_96x160_s3_all"])
def test_forward_equals_the_reference(w48: HMSA, name: str) -> None:
    case = golden.case(f"hmsa_forward_{name}")
    meta, image = case["meta"], case["meta"]["image"]
    images = golden.normalise(golden.image(image["seed"], image["h"], image["w"]))

    predicted = w48.predict(images, meta["scales"], meta["flip"]).numpy()
    np.testing.assert_allclose(predicted, case["pred"], rtol=0, atol=LOGITS)
    assert agreement(predicted, case["pred"]) >= 0.999

    ready = prepare_for_inference(copy.deepcopy(w48)).predict(images, meta["scales"], meta["flip"]).numpy()
    np.testing.assert_allclose(ready, case["pred"], rtol=0, atol=LOGITS)
    assert agreement(ready, case["pred"]) >= 0.999

    # Reference files keep the attention of the image as it is, of the mirrored one they keep nothing.
    unflipped, outputs = w48.predict_scales(images, meta["scales"])
    expected = case.get("pred_noflip", case["pred"])
    np.testing.assert_allclose(unflipped.numpy(), expected, rtol=0, atol=LOGITS)
    compared = set()
    for scale, scores, attention in outputs:
        assert attention is not None
        for key, tensor, tolerance in (
            (f"pred_{scale}x", scores, LOGITS),
            (f"attn_{scale}x", attention, ATTENTION),
        ):
            if key in case:
                compared.add(key)
                np.testing.assert_allclose(tensor.numpy(), case[key], rtol=0, atol=tolerance, err_msg=key)
    assert compared == {key for key in case if key.endswith("x")}


def test_blend_equals_the_reference_given_its_scales() -> None:
    case = golden.case("hmsa_forward_d_96x160_s3_all")
    outputs = [
        ScaleOutput(
            scale,
            torch.from_numpy(case[f"pred_{scale}x"]),
            torch.from_numpy(case[f"attn_{scale}x"]) if scale < 2 else None,
        )
        for scale in (2.0, 1.0, 0.5)
    ]
    np.testing.assert_allclose(blend(outputs).numpy(), case["pred"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "name", "parameters"),
    [
        ("hrnet_ocr_mscale", "hmsa_state_dict", 72_143_430),
        ("hrnet_ocr", "hmsa_state_dict_hrnet_single", 70_372_678),
    ],
)
def test_state_dict_is_that_of_the_published_checkpoints(arch: str, name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build(arch)
    spec = golden.spec(name)
    expected = [(entry["key"], tuple(entry["shape"]), f"torch.{entry['dtype']}") for entry in spec["entries"]]
    assert [(k, tuple(v.shape), str(v.dtype)) for k, v in model.state_dict().items()] == expected
    assert sum(p.numel() for p in model.parameters()) == spec["num_parameters"] == parameters


def test_reference_weights_are_those_of_the_reference_files(w48: HMSA) -> None:
    weights = w48.state_dict()
    for key, check in CHECKS["weights"].items():
        values = weights[key].double().flatten()
        assert values.abs().sum().item() == pytest.approx(check["abs_sum"], rel=1e-6), key
        assert values.sum().item() == pytest.approx(check["sum"], rel=1e-6, abs=1e-6), key
        assert values[0].item() == check["first"], key
    total = sum(value.double().abs().sum().item() for value in weights.values())
    assert total == pytest.approx(CHECKS["total_abs_sum"], rel=1e-9)


@pytest.mark.parametrize(("place", "crc"), CHECKS["images_crc32"].items())
def test_reference_images_are_those_of_the_reference_files(place: str, crc: int) -> None:
    seed, height, width = map(int, place.split(","))
    assert zlib.crc32(golden.image(seed, height, width).tobytes()) == crc
