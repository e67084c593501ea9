"""Images for which the device's memory is too small at first, on a device that only says so."""

from __future__ import annotations

import itertools
import weakref
from pathlib import Path

import pytest
import torch
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions, Tile
from hmsa_pipeline.pipeline.inference import predictor as module
from hmsa_pipeline.pipeline.inference.predictor import (
    IN_TILES,
    SCALE_BY_SCALE,
    Predictor,
    compute_in_tiles,
    tile_corners,
    tile_weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

TINY = "hrnet_tiny_ocr_mscale"
IMAGE = torch.randint(0, 256, (3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Member:
    path = tmp_path_factory.mktemp("weights") / "ant.pth"
    torch.manual_seed(0)
    save_checkpoint(path, build(TINY), arch=TINY)
    return Member(name="ant", arch=TINY, checkpoint=str(path))


def made(member: Member, tile: Tile | None = None, flip: bool = True) -> Predictor:
    return Predictor(torch.device("cpu"), InferenceOptions(precision="fp32", flip=flip, tile=tile), member)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, at_once: int, gathered: int) -> list[tuple[int, int, bool]]:
    """Images of more pixels than these do not fit; what was tried is listed."""
    whole, tried = Predictor.compute, []

    def try_it(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        height, width = image.shape[1:]
        tried.append((height, width, gather is not None))
        if height * width > (at_once if gather is None else gathered):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, image, gather)

    monkeypatch.setattr(module.Predictor, "compute", try_it)
    return tried


def trunk_of(predictor: Predictor) -> nn.Module:
    return predictor.model.get_submodule("backbone")


def test_weights_beyond_the_precision_are_refused(tmp_path: Path) -> None:
    state = build(TINY).state_dict()
    # A norm's variance is folded into the weights before: as it stands it may be of any size.
    state["backbone.bn1.running_var"][:] = 1e6
    state["ocr.cls_head.weight"][0, 0] = -1e5
    save_checkpoint(tmp_path / "large.pth", state, arch=TINY)
    member = Member(name="ant", arch=TINY, checkpoint=str(tmp_path / "large.pth"))
    for precision in ("fp32", "bf16"):
        Predictor(torch.device("cpu"), InferenceOptions(precision=precision), member)
    with pytest.raises(
        CheckpointError, match=r"large.pth: 1 weights are beyond 65504, .*\(first: ocr.cls_head.weight"
    ):
        Predictor(torch.device("cpu"), InferenceOptions(precision="fp16"), member)


def test_what_fits_is_made_at_once(member: Member) -> None:
    logits, how = made(member)(IMAGE)
    assert (tuple(logits.shape), logits.dtype, how) == ((19, 96, 160), torch.float16, None)


def test_what_does_not_fit_is_made_scale_by_scale(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = made(member)(IMAGE)
    tried = short_of_memory(monkeypatch, 1000, 10**9)
    logits, how = made(member)(IMAGE)
    assert how == SCALE_BY_SCALE
    assert tried == [(96, 160, False), (96, 160, True)]
    assert torch.equal(logits, expected)


def test_what_fits_in_no_way_is_made_in_tiles(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = made(member)(IMAGE)
    tried = short_of_memory(monkeypatch, 1000, 96 * 112)
    logits, how = made(member, Tile(size=(96, 112), overlap=64))(IMAGE)
    assert how == IN_TILES
    assert tried[2:] == [(96, 112, True)] * 2
    assert tuple(logits.shape) == (19, 96, 160)
    assert logits.isfinite().all()
    # Tiles see less of the scene: close to the whole on average, and not the same.
    assert 0 < float((logits.float() - expected.float()).abs().mean()) < 0.5 * float(expected.float().std())


def test_a_tile_as_large_as_the_image_is_the_image(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = made(member)(IMAGE)
    predictor = made(member)
    in_tiles = compute_in_tiles(
        lambda part: predictor.compute(part, torch.device("cpu")), IMAGE, Tile(size=(200, 200))
    )
    assert torch.allclose(in_tiles.half().float(), expected.float(), atol=2e-3)


@pytest.mark.parametrize("tile", [None, Tile(size=(96, 112), overlap=64)])
def test_what_does_not_fit_even_so_fails(member: Member, monkeypatch: pytest.MonkeyPatch, tile: Tile | None) -> None:
    short_of_memory(monkeypatch, 1000, 1000)
    with pytest.raises(torch.OutOfMemoryError):
        made(member, tile)(IMAGE)


def test_a_network_that_runs_out_of_memory_once_is_run_again_from_the_start(member: Member) -> None:
    expected, _ = made(member)(IMAGE)
    predictor = made(member)
    passes: list[tuple[int, ...]] = []

    def third_one_fails(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        passes.append(tuple(inputs[0].shape[-2:]))
        if len(passes) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = trunk_of(predictor).register_forward_pre_hook(third_one_fails)
    logits, how = predictor(IMAGE)
    assert how == SCALE_BY_SCALE
    assert torch.equal(logits, expected)
    assert passes[3:] == [(192, 320), (96, 160), (48, 80)] * 2
    hook.remove()
    # What one image needed is not done to the next.
    again, how = predictor(IMAGE)
    assert how is None
    assert torch.equal(again, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_trunk_that_takes_few_pixels_gets_tiles(member: Member, flip: bool) -> None:
    most = 4 * 64 * 80
    seen: list[int] = []

    def few_pixels(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        pixels = inputs[0].shape[-2] * inputs[0].shape[-1]
        if pixels > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(pixels)

    for tile, how in ((None, None), (Tile(size=(64, 80), overlap=16), IN_TILES)):
        predictor = made(member, tile, flip)
        trunk_of(predictor).register_forward_pre_hook(few_pixels)
        if how is None:
            with pytest.raises(torch.OutOfMemoryError):
                predictor(IMAGE)
            assert seen == []
        else:
            logits, done = predictor(IMAGE)
            assert (tuple(logits.shape), logits.dtype, done) == ((19, 96, 160), torch.float16, how)
            assert logits.isfinite().all()
    # 2 x 3 tiles at three scales, the largest of which just fits.
    assert len(seen) == 6 * 3 * (2 if flip else 1)
    assert max(seen) == most


def test_rounding_may_run_out_of_memory_too(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = made(member)(IMAGE)
    whole = Predictor.compute

    class NoRoom:
        def to(self, dtype: torch.dtype) -> Tensor:
            raise torch.OutOfMemoryError(f"CUDA out of memory for {dtype}")

    def at_once_too_large(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor | NoRoom:
        return NoRoom() if gather is None else whole(self, image, gather)

    monkeypatch.setattr(Predictor, "compute", at_once_too_large)
    logits, how = made(member)(IMAGE)
    assert how == SCALE_BY_SCALE
    assert torch.equal(logits, expected)


def test_what_failed_is_let_go_before_the_next_try(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, kept, alive = Predictor.compute, [], []

    def fails_with_a_tensor(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        if gather is not None:
            alive.append(kept[0]() is not None)
            return whole(self, image, gather)
        large = torch.zeros(1000)
        kept.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Predictor, "compute", fails_with_a_tensor)
    assert made(member)(IMAGE)[1] == SCALE_BY_SCALE
    assert alive == [False]


def test_another_error_is_not_tried_again(member: Member) -> None:
    predictor = made(member, Tile(size=(64, 80), overlap=16))
    passes = []

    def fails(*_: object) -> None:
        passes.append(1)
        raise RuntimeError("device-side assert triggered")

    trunk_of(predictor).register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="device-side"):
        predictor(IMAGE)
    assert len(passes) == 1


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(0, 19),
    st.floats(-50, 50, width=16),
)
def test_tiles_that_agree_give_what_they_agree_on(
    height: int, width: int, tall: int, wide: int, overlap: int, value: float
) -> None:
    tile = Tile(size=(tall, wide), overlap=overlap)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    logits = compute_in_tiles(lambda part: torch.full((19, *part.shape[1:]), value), image, tile)
    torch.testing.assert_close(logits, torch.full((19, height, width), value), rtol=1e-5, atol=0)


@settings(deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(40, 300),
    st.integers(40, 300),
    st.integers(0, 30),
)
def test_tiles_cover_every_pixel_and_share_the_overlap(
    height: int, width: int, tall: int, wide: int, overlap: int
) -> None:
    tile = Tile(size=(tall, wide), overlap=overlap)
    weights = torch.zeros(height, width)
    rows, columns = set(), set()
    for y, x in tile_corners(height, width, tile):
        part = weights[y : y + tall, x : x + wide]
        assert tuple(part.shape) == (min(height, tall), min(width, wide))
        part += tile_weights(part.shape[0], part.shape[1], tile.overlap)
        rows.add(y)
        columns.add(x)
    assert weights.min() > 0
    for starts, side in ((sorted(rows), tall), (sorted(columns), wide)):
        assert all(b - a <= side - tile.overlap for a, b in itertools.pairwise(starts))
