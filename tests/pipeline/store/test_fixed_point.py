"""Encoding ``compact``: what comes back is the nearest 1/64, and what that does to probabilities is bounded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store.fixed_point import LIMIT, decode, encode
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ..stores import CLASSES, begun, filled, logits, photo, plain_array

halves = st.floats(-LIMIT, LIMIT, width=16)
maps = arrays.arrays(
    np.float16, arrays.array_shapes(min_dims=3, max_dims=4, max_side=9), elements=halves, fill=st.nothing()
)


def foretold(values: np.ndarray) -> np.ndarray:
    """The prediction errors, pixel by pixel, of one map (H, W) of integers."""
    errors = np.zeros_like(values)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            up = values[y - 1, x] if y else 0
            left = values[y, x - 1] if x else 0
            corner = values[y - 1, x - 1] if x and y else 0
            errors[y, x] = values[y, x] - (up + left - corner)
    return errors


@given(maps)
def test_what_comes_back_is_the_nearest_sixty_fourth(values: np.ndarray) -> None:
    kept = values.copy()
    back = decode(encode(values))
    assert back.dtype == np.float16
    assert back.shape == values.shape
    assert np.array_equal(values, kept)
    exact = values.astype(np.float64)
    assert np.array_equal(back.astype(np.float64), np.round(exact * 64) / 64)
    assert np.abs(back - exact).max() <= 1 / 128
    large = np.abs(exact) >= 16
    assert np.array_equal(back[large], values[large])


@given(maps)
def test_what_is_kept_is_the_zigzag_of_the_prediction_errors(values: np.ndarray) -> None:
    found = encode(values)
    assert found.dtype == np.uint16
    fixed = np.round(values.astype(np.float64) * 64).astype(np.int64)
    for place in np.ndindex(values.shape[:-2]):
        errors = (foretold(fixed[place]) + 2**15) % 2**16 - 2**15
        assert np.array_equal(found[place], np.where(errors < 0, -2 * errors - 1, 2 * errors))


def test_what_is_decoded_may_be_read_only() -> None:
    values = encode(logits(0, 9, 7))
    values.flags.writeable = False
    decode(values)


@pytest.mark.parametrize("spread", [0.01, 0.5, 1.0, 4.0, 15.0])
def test_probabilities_stay_within_four_thousandths(spread: float) -> None:
    draw = np.random.default_rng(0)
    values = (spread * draw.standard_normal((19, 200, 100))).astype(np.float16)
    back = decode(encode(values))
    before, after = (torch.from_numpy(z.astype(np.float64)).softmax(0) for z in (values, back))
    assert (before - after).abs().max().item() < 0.004


def test_the_bound_is_that_of_the_worst_case() -> None:
    # Two classes as likely as one another, one rounded up and the other down by all that rounding can do.
    before = torch.tensor([4.0, 4.0] + [-60.0] * 17, dtype=torch.float64)
    worst = before + torch.tensor([1 / 128, -1 / 128] + [0.0] * 17)
    change = (worst.softmax(0) - before.softmax(0)).abs().max().item()
    assert change == pytest.approx(np.tanh(1 / 128) / 2, rel=1e-9)
    assert 0.0039 < change < 0.004


def enlarged(seed: int, height: int, width: int) -> np.ndarray:
    """Logits as a network leaves them: regions of some size, and a quarter of the resolution enlarged."""
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, CLASSES, height // 16, width // 16)))
    coarse = torch.nn.functional.interpolate(4 * noise.float(), scale_factor=4, mode="bicubic")
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].half().numpy()


def test_a_compact_store_is_a_fifth_of_the_raw_logits(tmp_path: Path) -> None:
    photos, made = [photo("a.png", (128, 256))], enlarged(0, 128, 256)
    store = begun(tmp_path / "s.zarr", photos, encoding="compact")
    store.write(0, made)
    (size,) = store.shard_sizes()
    assert size is not None
    assert size * 5 <= made.nbytes
    again = LogitStore.open(tmp_path / "s.zarr")
    assert np.array_equal(again.read(0), decode(encode(made)))
    assert np.array_equal(again.read(0, 64, 96), again.read(0)[:, 64:96])
    again.check(0)


def test_a_row_that_was_never_written_reads_as_nan(tmp_path: Path) -> None:
    store = begun(tmp_path / "s.zarr", [photo("a.png"), photo("b.png")], encoding="compact")
    store.write(1, logits(0, 48, 80))
    array = plain_array(tmp_path / "s.zarr", "48x80")
    assert np.isnan(array[0]).all()
    assert np.isfinite(array[1]).all()
    with pytest.raises(StoreError, match="has no logits"):
        store.read(0)


def test_equal_logits_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        filled(tmp_path / name, [photo("a.png")], encoding="compact")
    assert (tmp_path / "a/48x80/c.0.0.0.0").read_bytes() == (tmp_path / "b/48x80/c.0.0.0.0").read_bytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path, sign: int) -> None:
    store = begun(tmp_path / "s.zarr", [photo("a.png"), photo("b.png")], encoding="compact")
    values = logits(0, 48, 80)
    values[3, 7, 5] = sign * LIMIT
    store.write(0, values)
    assert store.read(0)[3, 7, 5] == sign * LIMIT
    values[3, 7, 5] = sign * 512.0
    with pytest.raises(StoreError, match=r"b\.png: logits of 'ant' lie beyond 511\.75, .*lossless"):
        store.write(1, values)
    assert store.complete() == [True, False]


def test_lossless_has_no_such_limit(tmp_path: Path) -> None:
    store = begun(tmp_path / "s.zarr", [photo("a.png")])
    values = logits(0, 48, 80)
    values[3, 7, 5] = 65504.0
    store.write(0, values)
    assert store.read(0)[3, 7, 5] == 65504.0


def test_plain_zarr_finds_the_codec_of_an_installed_package(tmp_path: Path) -> None:
    filled(tmp_path / "s.zarr", [photo("a.png")], encoding="compact")
    program = (
        "import sys, zarr, numpy as np\n"
        "a = zarr.open_group(sys.argv[1], mode='r')['48x80'][0]\n"
        "print(a.shape, a.dtype, np.isfinite(a).all())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "s.zarr")], cwd=tmp_path, capture_output=True, text=True
    )
    assert (found.stdout.strip(), found.returncode) == ("(19, 48, 80) float16 True", 0), found.stderr
