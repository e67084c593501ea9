"""Softmax: near the exact one, and to the same bits with and without the compiled library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.fusion.kernel import library
from hmsa_pipeline.pipeline.fusion.kernel.softmax import softmax, softmax_by_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor

needs_library = pytest.mark.skipif(library.library() is None, reason="there is no compiled library here")


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def drawn(classes: int, pixels: int, size: float, seed: int) -> Tensor:
    z = size * torch.randn(classes, pixels, generator=torch.Generator().manual_seed(seed))
    return z.half().float() if seed % 2 else z


def by_numpy(z: Tensor, temperature: float) -> np.ndarray:
    out = np.empty(z.shape, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        softmax_by_numpy(z.numpy(), temperature, out)
    return out


CASES = {
    "classes": st.integers(1, 124),
    "pixels": st.integers(1, 300),
    "size": st.sampled_from([0.1, 3.0, 30.0, 300.0, 9000.0]),
    "temperature": st.sampled_from([0.05, 0.5, 1.0, 1.7, 40.0, 1e30]),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=50, deadline=None)
@given(**CASES)
def test_probabilities_are_those_of_double_precision(
    classes: int, pixels: int, size: float, temperature: float, seed: int
) -> None:
    z = drawn(classes, pixels, size, seed)
    found = by_numpy(z, temperature)
    # A difference of logits is rounded before it is divided by the temperature.
    rounded = (z - z.amax(0)).numpy().astype(np.float64)
    expected = special.softmax(rounded / temperature, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-7)
    # What is small is as precise as denormal numbers are.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-45)
    assert (found >= 0).all()
    assert found.sum(0) == pytest.approx(1.0, abs=1e-5)


@needs_library
@settings(max_examples=50, deadline=None)
@given(**CASES, bad=st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
def test_the_library_and_numpy_give_the_same_bits(
    classes: int, pixels: int, size: float, temperature: float, seed: int, bad: float
) -> None:
    z = drawn(classes, pixels, size, seed)
    z[seed % classes, seed % pixels] = bad
    before = z.clone()
    found = softmax(z, temperature, torch.empty_like(z)).numpy()
    np.testing.assert_array_equal(found, by_numpy(z, temperature))
    assert torch.equal(z.nan_to_num(7.0), before.nan_to_num(7.0)), "input is changed"


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
def test_what_is_no_number_makes_its_pixel_none_and_no_other(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(library, "library", lambda: None)
    z = torch.zeros(4, 6)
    z[2, 1], z[0, 2], z[3, 3] = math.nan, math.inf, -math.inf
    z[:, 4] = -math.inf
    found = softmax(z, 1.0, torch.empty_like(z))
    assert found.isnan().all(0).tolist() == [False, True, True, False, True, False]
    assert found.isnan().any(0).tolist() == [False, True, True, False, True, False]
    assert found[:, 3].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])
    assert found[3, 3] == 0.0
    assert found[:, 5].tolist() == [0.25] * 4


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
def test_a_pixel_depends_neither_on_its_neighbours_nor_on_threads(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(library, "library", lambda: None)
    z = drawn(3, 2**19 + 1, 4.0, 1)
    with threads(1):
        alone = softmax(z, 1.3, torch.empty_like(z))
    with threads(3):
        together = softmax(z, 1.3, torch.full_like(z, math.nan))
    assert torch.equal(alone, together)
    part = z[:, 12_345:12_355].clone()
    assert torch.equal(softmax(part, 1.3, torch.empty_like(part)), alone[:, 12_345:12_355])
