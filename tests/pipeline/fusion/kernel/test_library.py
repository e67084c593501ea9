"""The compiled library is used where it is there and of this source, and nowhere else."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from hmsa_pipeline.pipeline.fusion.kernel import library
from torch import Tensor

FOLDER = Path(library.__file__).parent
SOURCE = FOLDER / "softmax_sums.c"
needs_library = pytest.mark.skipif(library.library() is None, reason="there is no compiled library here")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the source and the compiled libraries, from which they are loaded."""
    for file in (SOURCE, *FOLDER.glob("_library*")):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(library, "_SOURCE", tmp_path / SOURCE.name)
    return tmp_path


@needs_library
def test_it_is_loaded_from_beside_its_source(copied: Path) -> None:
    found = library.library.__wrapped__()
    assert found is not None
    assert Path(found._name).parent == copied


def test_without_a_library_there_is_none(copied: Path) -> None:
    for file in copied.glob("_library*"):
        file.unlink()
    assert library.library.__wrapped__() is None


@needs_library
def test_one_of_another_source_is_not_used(copied: Path) -> None:
    with (copied / SOURCE.name).open("a") as source:
        source.write("\n")
    assert library.library.__wrapped__() is None


@needs_library
def test_a_file_that_is_no_library_is_not_used(copied: Path) -> None:
    for file in copied.glob("_library*"):
        file.write_bytes(b"\x7fELF" + bytes(100))
    assert library.library.__wrapped__() is None


@needs_library
@pytest.mark.parametrize(
    ("logits", "is_read"),
    [
        (torch.zeros(2, 3), True),
        (torch.zeros(2, 3, dtype=torch.float16), True),
        (torch.zeros(2, 3, dtype=torch.bfloat16), False),
        (torch.zeros(2, 3, dtype=torch.float64), False),
        (torch.zeros(2, 3, device="meta"), False),
    ],
)
def test_it_reads_halves_and_floats_in_the_memory_of_the_cpu(logits: Tensor, is_read: bool) -> None:
    assert library.is_readable(logits) == is_read


@needs_library
def test_every_half_is_read_as_what_it_is() -> None:
    halves = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.float16)[None]
    read = torch.empty(1, 65536)
    library.add_members([halves], [1.0], [1.0], ["logits"], {"logits": read})
    assert torch.equal(read.isnan(), halves.isnan())
    finite = ~halves.isnan()
    assert torch.equal(read[finite], halves[finite].float())


@pytest.mark.parametrize(("pixels", "threads", "parts"), [(0, 4, 1), (2**18, 4, 1), (2**20 + 1, 2, 2), (2**20, 8, 4)])
def test_large_work_is_divided_among_threads(
    pixels: int, threads: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ranges: list[tuple[int, int]] = []
    library.in_parts(lambda first, last: ranges.append((first, last)), pixels)
    ranges.sort()
    assert len(ranges) == parts
    assert ranges[0][0] == 0
    assert ranges[-1][1] == pixels
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


def test_an_error_of_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fail(first: int, _last: int) -> None:
        if first:
            raise MemoryError

    with pytest.raises(MemoryError):
        library.in_parts(fail, 2**20)
