"""`read_archive` beside `torch.load`, which it takes the place of."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.models.checkpoint_files.torch_archive import read_archive
from torch import Tensor, nn


def tensors() -> dict[str, Tensor]:
    numbers = torch.arange(120.0).reshape(2, 3, 4, 5)
    return {
        "plain": numbers,
        "half": numbers.half(),
        "double": numbers.double(),
        "long": torch.tensor(7),
        "byte": torch.arange(5, dtype=torch.uint8),
        "truth": torch.tensor([True, False]),
        "channels last": numbers.contiguous(memory_format=torch.channels_last),
        "turned": numbers.permute(3, 1, 0, 2),
        "part of a storage": numbers[1, 1:, ::2],
        "repeated": torch.tensor([3.0]).expand(4, 1),
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.tensor([1.5, 2.5])),
    }


def test_tensors_are_those_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": OrderedDict(tensors()), "epoch": 3, "names": ["a"]}, path)
    found = read_archive(path)
    assert (found["epoch"], found["names"]) == (3, ["a"])
    expected = torch.load(path, weights_only=True)["state_dict"]
    assert list(found["state_dict"]) == list(expected)
    for key, tensor in expected.items():
        array = tensor.detach().numpy()
        np.testing.assert_array_equal(found["state_dict"][key], array, err_msg=key)
        assert found["state_dict"][key].dtype == array.dtype


def test_tensors_cannot_be_written(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="read-only"):
        read_archive(tmp_path / "w.pth")["a"][0] = 2


class _Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_called_that_a_file_names(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": _Malice(tmp_path / "mark")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="mkdir is no part of weights"):
        read_archive(tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], compression: int = 0) -> Path:
    """A copy of an archive with other content; None leaves a file out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_an_archive_that_was_written_again_is_read(archive: Path, tmp_path: Path) -> None:
    again = rewritten(archive, tmp_path / "again.pth", lambda _, content: content)
    np.testing.assert_array_equal(read_archive(again)["a"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("/data/0", b"\0" * 20, "a storage is cut short"),
        ("/data/0", None, "no item named"),
        ("/byteorder", b"big", "another order"),
        ("/data.pkl", b"\x80\x04N.", "another protocol"),
        ("/data.pkl", b"\x80\x02X\x01\x00\x00\x00aQ.", "not enough values"),
    ],
)
def test_what_torch_did_not_write_is_refused(
    archive: Path, tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    wrong = rewritten(archive, tmp_path / "x.pth", lambda n, old: content if n.endswith(name) else old)
    with pytest.raises((ValueError, KeyError), match=problem):
        read_archive(wrong)


def test_compressed_storages_are_refused(archive: Path, tmp_path: Path) -> None:
    packed = rewritten(archive, tmp_path / "x.pth", lambda _, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_archive(packed)


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        read_archive(tmp_path / "program.pt")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03", b"K\x02K\x04"),  # the shape
        (b"K\x03K\x01", b"K\x04K\x01"),  # the strides
        (b"K\x00K\x02K\x03", b"K\x01K\x02K\x03"),  # the offset
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(archive: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        assert content.count(old) == 1
        return content.replace(old, new)

    with pytest.raises(ValueError, match="a tensor leaves its storage"):
        read_archive(rewritten(archive, tmp_path / "x.pth", change))
