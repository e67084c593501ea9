"""A disk that fills up in the middle: one line, nothing half-written, and the same command goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hmsa_pipeline import files

from .bench import Bench
from .bench import files as files_below


class Disk:
    """Takes ``room`` files, whole ones; of the next it takes half, or all but the last flush."""

    def __init__(self, room: int, at: str) -> None:
        self.room, self.at = room, at
        self._write, self._flush = files.fill, os.fsync

    def _full(self) -> OSError | None:
        self.room -= 1
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if self.room < 0 else None

    def _fill(self, path: Path, pieces: tuple[bytes, ...]) -> None:
        if full := self._full():
            content = b"".join(pieces)
            self._write(path, (content[: len(content) // 2],))
            raise full
        self._write(path, pieces)

    def _fsync(self, handle: int) -> None:
        if full := self._full():
            raise full
        self._flush(handle)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Disk]:
        if self.at == "write":
            patch = mock.patch.object(files, "fill", self._fill)
        else:
            patch = mock.patch.object(os, "fsync", self._fsync)
        with patch:
            yield self


def dump(bench: Bench) -> list[str]:
    bench.tree["models"] = bench.tree["models"][:1]
    bench.tree["datasets"] = bench.tree["datasets"][1:]
    shutil.rmtree(bench.output)
    return ["dump"]


def ensemble(bench: Bench) -> list[str]:
    bench.tree["datasets"] = bench.tree["datasets"][1:]
    shutil.rmtree(bench.predictions)
    return ["ensemble"]


def import_logits(bench: Bench) -> list[str]:
    bench.tree["models"] = [{"name": "dog", "arch": "external"}]
    shutil.rmtree(bench.output)
    for path in ("deep/tree", "flower"):
        target = bench.root / f"elsewhere/{path}_logits.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez(target, logits=np.random.default_rng(0).standard_normal((19, 40, 64)).astype(np.float16))
    return ["import-logits", "--model", "dog", "--dataset", "garden", str(bench.root / "elsewhere")]


def results(bench: Bench) -> dict[str, bytes]:
    """All stores and predictions, and whatever else lies beside them that should not."""
    return {name: content for name, content in files_below(bench.output).items() if "run.json" not in name}


@pytest.mark.parametrize("at", ["write", "flush"])
@pytest.mark.parametrize("prepare", [dump, ensemble, import_logits])
def test_wherever_the_disk_fills_up_one_line_says_so_and_the_same_command_goes_on(
    full: Bench, prepare: Callable[[Bench], list[str]], at: str
) -> None:
    command = prepare(full)
    full.save()
    before = full.output.with_name("before")
    if full.output.exists():
        shutil.copytree(full.output, before)
    assert full.run(*command).code == 0
    expected = results(full)

    room, stopped = 0, True
    while stopped:
        shutil.rmtree(full.output)
        if before.exists():
            shutil.copytree(before, full.output)
        with Disk(room, at).in_use():
            result = full.run(*command)
        if stopped := result.code != 0:
            assert "No space left on device" in result.refusal()
            half = results(full)
            assert half.keys() <= expected.keys(), f"with room for {room} files"
            assert all(half[name] == expected[name] for name in half if not name.endswith("zarr.json"))
            assert full.run(*command).code == 0
            room += 1
        assert results(full) == expected
    assert room >= (2 if prepare is ensemble and at == "write" else 6)


def test_what_was_complete_before_the_disk_was_full_is_kept(empty: Bench) -> None:
    for seed in range(10):
        empty.photo(f"street/more/{seed}.png", 16, 24, seed=seed)
    with Disk(30, "flush").in_use():
        assert "what is complete is kept" in empty.run("dump", "--models", "ant").refusal()
    complete = empty.run("status", "--models", "ant", "--json", "-").figures[0]["complete"]
    assert 3 <= complete < 14
    assert f"{complete} complete before" in empty.run("dump", "--models", "ant").out
