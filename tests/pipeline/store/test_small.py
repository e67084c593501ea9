"""Encoding ``small``: the same bits as ``lossless`` in less space, read by zarr-python with pcodec alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.verify import verify

from ..stores import CLASSES, begun, flip_bit, identity, photo, plain_array, same_bits, strips_of_eight, tree

SIZE = (21, 40)


def smooth(seed: int) -> np.ndarray:
    """Logits (C, H, W) as a network has them that enlarges its output: slow waves, not multiples of anything."""
    label, y, x = np.indices((CLASSES, *SIZE))
    return (4 * np.sin(seed + label + y / 9) + 3 * np.cos(label * x / 50 + y / 7)).astype(np.float16)


def store_at(path: Path, encoding: str = "small") -> LogitStore:
    with strips_of_eight():
        store = begun(path, [photo(f"{name}.png", SIZE) for name in "abc"], encoding=encoding)
        for index in (0, 2):
            store.write(index, smooth(index))
    return store


@pytest.mark.usefixtures("low_strips")
def test_every_bit_comes_back_and_what_is_missing_is_nan(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s.zarr")
    special = smooth(1)
    special[:, :3, :5] = [[-0.0, 6e-8, 65504.0, -65504.0, 1 / 3]]
    plain = plain_array(store.path, "21x40")
    assert np.isnan(plain[1]).all()
    store.write(1, special)
    for index, expected in enumerate((smooth(0), special, smooth(2))):
        assert same_bits(store.read(index), expected)
        assert same_bits(np.asarray(plain[index]), expected)


def test_it_is_smaller_than_lossless(tmp_path: Path) -> None:
    small, lossless = (store_at(tmp_path / f"{name}.zarr", name).shard_sizes() for name in ("small", "lossless"))
    assert all(s < 0.8 * u for s, u in zip(small, lossless, strict=True) if s and u)
    assert [bool(s) for s in small] == [True, False, True]


def test_equal_logits_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (tree(store_at(tmp_path / name).path) for name in ("a.zarr", "b.zarr"))
    assert first == second


def test_the_codecs_are_standard_ones_whose_speed_does_not_depend_on_the_logits(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s.zarr")
    codecs = json.loads((store.path / "21x40" / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in codecs] == ["numcodecs.pcodec", "crc32c"]
    assert codecs[0]["configuration"] == {
        "level": 8,
        "mode_spec": "classic",
        "delta_spec": "try_consecutive",
        "delta_encoding_order": 2,
    }


def test_zarr_alone_reads_it(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s.zarr")
    program = (
        "import sys, zarr, hashlib\n"
        "a = zarr.open_group(sys.argv[1], mode='r')['21x40'][2]\n"
        "assert not any(name.startswith('hmsa') for name in sys.modules)\n"
        "print(a.dtype, hashlib.sha256(a.tobytes()).hexdigest())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.split() == ["float16", hashlib.sha256(smooth(2).tobytes()).hexdigest()], found.stderr


@pytest.mark.usefixtures("low_strips")
def test_damage_is_found_moved_away_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "logits" / "street" / "ant.zarr"
    store = store_at(path)
    shard = store.shard_path(2)
    assert shard is not None
    sound = shard.read_bytes()
    flip_bit(shard, 8 * 100)
    (result,) = verify(tmp_path / "out", [("street", "ant", path)], repair=True)
    assert (result.sound, list(result.damaged), result.moved) == (1, ["c.png"], 1)
    again = LogitStore.for_writing(path, identity(encoding="small"), {})
    assert again.complete() == [True, False, False]
    again.write(2, smooth(2))
    assert shard.read_bytes() == sound
