from __future__ import annotations

import pytest
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.registry import build

from .. import golden


def _with_reference_weights(arch: str) -> HMSA:
    model = build(arch)
    assert isinstance(model, HMSA)
    model.load_state_dict(golden.weights({key: tuple(value.shape) for key, value in model.state_dict().items()}))
    return model


@pytest.fixture(scope="session")
def w48() -> HMSA:
    """The published network with the reference weights; tests must leave it as it is."""
    return _with_reference_weights("hrnet_ocr_mscale")


@pytest.fixture(scope="session")
def tiny() -> HMSA:
    """The tiny network with weights of the same rule; tests must leave it as it is."""
    return _with_reference_weights("hrnet_tiny_ocr_mscale")
