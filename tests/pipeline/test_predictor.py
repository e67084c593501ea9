"""Images for which the device's memory is too small at first, on a device that only says so."""

from __future__ import annotations

import itertools

import pytest
import torch
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline import predictor as module
from hmsa_pipeline.pipeline.manifest import Member, Tile
from hmsa_pipeline.pipeline.predictor import IN_TILES, SCALE_BY_SCALE, Predictor, fading, places
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

TINY = "hrnet_tiny_ocr_mscale"
IMAGE = torch.randint(0, 256, (3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Member:
    path = tmp_path_factory.mktemp("weights") / "ant.pth"
    torch.manual_seed(0)
    save_checkpoint(path, build(TINY), arch=TINY)
    return Member(name="ant", arch=TINY, checkpoint=str(path))


def made(member: Member, tile: Tile | None = None, flip: bool = True) -> Predictor:
    predictor = Predictor(torch.device("cpu"), "fp32", (0.5, 1.0, 2.0), flip, tile)
    predictor.load(member)
    return predictor


def short_of_memory(monkeypatch: pytest.MonkeyPatch, at_once: int, gathered: int) -> list[tuple[int, int, bool]]:
    """Images of more pixels than these do not fit; what was tried is listed."""
    whole, tried = Predictor._whole, []

    def try_it(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        height, width = image.shape[1:]
        tried.append((height, width, gather is not None))
        if height * width > (at_once if gather is None else gathered):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, image, gather)

    monkeypatch.setattr(module.Predictor, "_whole", try_it)
    return tried


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
    assert torch.allclose(
        predictor._in_tiles(IMAGE, Tile(size=(200, 200))).half().float(), expected.float(), atol=2e-3
    )


@pytest.mark.parametrize("tile", [None, Tile(size=(96, 112), overlap=64)])
def test_what_does_not_fit_even_so_fails(member: Member, monkeypatch: pytest.MonkeyPatch, tile: Tile | None) -> None:
    short_of_memory(monkeypatch, 1000, 1000)
    with pytest.raises(torch.OutOfMemoryError):
        made(member, tile)(IMAGE)


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
    for y, x in places(height, width, tile):
        part = weights[y : y + tall, x : x + wide]
        assert tuple(part.shape) == (min(height, tall), min(width, wide))
        part += fading(*part.shape, tile.overlap)
        rows.add(y)
        columns.add(x)
    assert weights.min() > 0
    for starts, side in ((sorted(rows), tall), (sorted(columns), wide)):
        assert all(b - a <= side - tile.overlap for a, b in itertools.pairwise(starts))
