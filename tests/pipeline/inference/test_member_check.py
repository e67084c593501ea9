"""A member's checkpoint before a run: read as often as needed, which with hundreds of megabytes is once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hmsa_pipeline.datasets.class_set import CITYSCAPES19
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.inference.member_check import check_member
from hmsa_pipeline.pipeline.inference.member_network import same_network

TINY = "hrnet_tiny_ocr_mscale"


@pytest.fixture
def member(tmp_path: Path) -> Member:
    save_checkpoint(tmp_path / "ant.pth", build(TINY), arch=TINY)
    return Member(name="ant", arch=TINY, checkpoint=str(tmp_path / "ant.pth"))


def test_its_file_is_read_once(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    torch_load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: (read.append(path), torch_load(path, **options))[1])
    assert check_member(member, "fp16", CITYSCAPES19).note is None
    assert read == [member.checkpoint_path()]


def test_both_checks_are_made_of_what_was_read(member: Member) -> None:
    state = build(TINY).state_dict()
    name = next(key for key in state if key.endswith("conv1.weight"))
    state[name] = state[name] + 1e30
    save_checkpoint(member.checkpoint_path(), state, arch=TINY)
    assert check_member(member, "bf16", CITYSCAPES19).note is None
    with pytest.raises(CheckpointError, match="beyond 65504, the largest number of fp16"):
        check_member(member, "fp16", CITYSCAPES19)
    del state[name]
    save_checkpoint(member.checkpoint_path(), state, arch=TINY)
    with pytest.raises(CheckpointError, match=r"1 of \d+ keys are missing"):
        check_member(member, "bf16", CITYSCAPES19)


def test_members_share_a_network_whatever_was_fitted_to_their_logits(member: Member) -> None:
    fitted = {"temperature": 2.0, "weight": 0.5, "max_logits": MaxLogits(mean=(1.0,), deviation=(2.0,))}
    assert same_network(member, member.model_copy(update={"name": "bee", **fitted}))
    assert not same_network(member, member.model_copy(update={"checkpoint": "other.pth"}))
