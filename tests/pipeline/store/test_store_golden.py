"""Stores of this version are, byte for byte, those of every library version that wrote them before."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.pipeline.store.logit_store import LogitStore

from ..stores import CLASSES, VERSIONS, begun, identity, photo, same_bits, strips_of_eight, tree

GOLDEN = Path(__file__).parents[2] / "data" / "store"
VERSION_1 = GOLDEN.with_name("store_of_version_1")
SIZE = (21, 6)
ENCODINGS = ["lossless", "small", "compact"]


def values(seed: int) -> np.ndarray:
    """Smooth logits that no library's random numbers make, multiples of 1/64 so that all encodings keep them."""
    label, y, x = np.indices((CLASSES, *SIZE))
    return (((label * 37 + y * (5 + seed) + x * 11 + label * y * x) % 1021 - 510) / 64).astype(np.float16)


def written(path: Path, encoding: str) -> LogitStore:
    store = begun(path, [photo("a.png", SIZE, 10), photo("b.png", SIZE, 20)], encoding=encoding)
    for index in (0, 1):
        store.write(index, values(index))
    return store


def differences(before: dict[str, bytes], now: dict[str, bytes]) -> list[str]:
    """What a reader of a failed test wants to know, a line each file."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            found.append(f"{name}: {'is new' if old is None else 'is no longer written'}")
        elif old != new:
            first = next(
                (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
            )
            around = slice(max(0, first - 40), first + 40)
            found.append(
                f"{name}: {len(old)} bytes before, {len(new)} now, the first other one is byte {first}:\n"
                f"  before ...{old[around]!r}...\n  now    ...{new[around]!r}..."
            )
    return found


def report(encoding: str, found: list[str]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("zarr", "numcodecs", "pcodec", "numpy"))
    return "\n".join(
        [
            "",
            f"THE BYTES OF A STORE CHANGED (encoding {encoding}; {versions}; Python {platform.python_version()}):",
            *found,
            "Equal work no longer gives equal bytes: a dump that goes on with these libraries mixes both kinds.",
            f"If this is meant, remove {GOLDEN / encoding}, run this test again and commit what it writes there.",
        ]
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_is_written_to_the_same_bytes_as_before(tmp_path: Path, encoding: str) -> None:
    with strips_of_eight():
        written(tmp_path / "s.zarr", encoding)
    now, golden = tree(tmp_path / "s.zarr"), GOLDEN / encoding
    if not golden.exists():
        for name, content in now.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_bytes(content)
        pytest.fail(f"{golden} was missing and is written now; look at it, and commit it")
    if found := differences(tree(golden), now):
        pytest.fail(report(encoding, found), pytrace=False)


@pytest.mark.parametrize("golden", [GOLDEN, VERSION_1], ids=["now", "version 1"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_store_of_before_is_read_to_the_same_bits(encoding: str, golden: Path) -> None:
    with strips_of_eight():
        store = LogitStore.open(golden / encoding)
        assert [(entry.path, entry.bytes, entry.array, entry.row) for entry in store.images] == [
            ("a.png", 10, "21x6", 0),
            ("b.png", 20, "21x6", 1),
        ]
        assert store.complete() == [True, True]
        for index in (0, 1):
            assert same_bits(store.read(index), values(index))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_next_writer_makes_a_store_of_version_1_one_of_now(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "s.zarr"
    shutil.copytree(VERSION_1 / encoding, path)
    with strips_of_eight():
        store = LogitStore.for_writing(path, identity(encoding=encoding), VERSIONS)
        assert store.complete() == [True, True]
        assert tree(path) == tree(GOLDEN / encoding)
        assert store.register([photo("a.png", SIZE, 10), photo("b.png", SIZE, 20)]) == 0
        assert tree(path) == tree(GOLDEN / encoding)


def test_what_changed_is_said() -> None:
    before, now = {"a": b"same", "b": b"0123", "c": b"x"}, {"a": b"same", "b": b"0193!", "d": b"y"}
    lines = differences(before, now)
    assert [line.splitlines()[0] for line in lines] == [
        "b: 4 bytes before, 5 now, the first other one is byte 2:",
        "c: is no longer written",
        "d: is new",
    ]
    text = report("lossless", lines)
    assert f"zarr {version('zarr')}, numcodecs {version('numcodecs')}" in text
    assert "before ...b'0123'..." in text
