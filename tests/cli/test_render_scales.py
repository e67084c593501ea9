"""`render --kinds attention,scales`: what each scale of a member's network contributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.taxonomy import PALETTE
from hmsa_pipeline.models.checkpoint import load_weights, save_checkpoint
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.pictures.colours import heat_map
from PIL import Image
from torch.nn import functional

from .bench import TINY, Bench, files, stored
from .test_render import opened

GAP, BELOW = 16, 33


def tiles(sheet: np.ndarray, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """The pictures of a sheet of one row."""
    height, width = size
    return [sheet[GAP : GAP + height, GAP + i * (width + GAP) :][:, :width] for i in range(count)]


def outputs(bench: Bench, model: str, image: str) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
    """Class scores (19, H, W) and attention (H, W) of each scale, at the size of the image, in float64."""
    network = build(TINY)
    assert isinstance(network, HMSA)
    load_weights(network, bench.root / "weights" / f"{model}.pth", TINY)
    pixels = normalise(decode_image(bench.root / "photos" / image)[None])
    size = pixels.shape[-2:]
    found = {}
    with torch.inference_mode():
        for scale in (2.0, 1.0, 0.5):
            seen = [int(side * scale) for side in size]
            resized = functional.interpolate(pixels, seen, mode="bilinear", align_corners=False)
            out = network.ocr(network.backbone(resized))
            maps = out.scores, network.scale_attn(out.features).sigmoid()
            found[scale] = tuple(
                functional.interpolate(
                    functional.interpolate(x, seen, mode="bilinear", align_corners=False),
                    size,
                    mode="bilinear",
                    align_corners=False,
                )[0].double()
                for x in maps
            )
    return {scale: (scores, attention[0]) for scale, (scores, attention) in found.items()}


def test_each_scale_alone_and_all_of_them_as_they_are_stored(finished: Bench, tmp_path: Path) -> None:
    result = finished.run(
        "render", "--write", str(tmp_path / "p"), "--kinds", "scales", "--models", "bee", "--datasets", "garden"
    )
    assert (result.code, result.err) == (0, "")
    assert sorted(files(tmp_path / "p")) == ["garden/bee/deep/tree_scales.png", "garden/bee/flower_scales.png"]
    sheet = opened(tmp_path / "p/garden/bee/flower_scales.png")
    palette = np.array(PALETTE, np.uint8)
    photograph, *shown = tiles(sheet, (40, 64), 5)
    assert np.array_equal(photograph, opened(finished.root / "photos/garden/flower.png"))
    expected = [scores.argmax(0).numpy() for scores, _ in outputs(finished, "bee", "garden/flower.png").values()]
    expected.append(stored(finished.store("garden", "bee"))["flower.png"].astype(np.float64).argmax(0))
    for picture, label in zip(shown, expected, strict=True):
        same = (picture == palette[label]).all(2).mean()
        assert same > 0.995, "but for ties that rounding breaks"
    assert not np.array_equal(shown[0], shown[1])


def test_attention_is_the_share_that_each_scale_has_in_the_blend(finished: Bench, tmp_path: Path) -> None:
    options = ("--kinds", "attention", "--models", "cat", "--datasets", "garden", "--json", "-")
    result = finished.run("render", "--write", str(tmp_path / "p"), *options)
    (figures,) = result.figures
    found = outputs(finished, "cat", "garden/flower.png")
    (_, _), (_, one), (_, half) = found.values()
    shares = [(1 - one) * (1 - half), one * (1 - half), half]
    sheet = opened(tmp_path / "p/garden/cat/flower_attention.png")
    for picture, share in zip(tiles(sheet, (40, 64), 4)[1:], shares, strict=True):
        wanted = heat_map(share.float().numpy()).astype(np.int64)
        assert np.abs(picture.astype(np.int64) - wanted).max() <= 2
    assert (figures["dataset"], figures["model"], figures["pictures"], figures["failed"]) == ("garden", "cat", 2, {})
    assert list(figures["shares"]) == ["2.0", "1.0", "0.5"]
    assert sum(figures["shares"].values()) == pytest.approx(1, abs=1e-5)
    (_, _), (_, one), (_, half) = outputs(finished, "cat", "garden/deep/tree.JPG").values()
    others = [(1 - one) * (1 - half), one * (1 - half), half]
    both = [(a.mean() + b.mean()).item() / 2 for a, b in zip(shares, others, strict=True)]
    assert list(figures["shares"].values()) == pytest.approx(both, abs=1e-4)


def test_a_mirrored_member_sees_the_mirrored_image(empty: Bench, tmp_path: Path) -> None:
    empty.tree["models"] = [empty.tree["models"][0] | {"views": ["flip"]}]
    empty.save()
    options = ("--kinds", "scales,attention", "--datasets", "garden", "--limit", "1", "--width", "64")
    assert empty.run("render", "--write", str(tmp_path / "p"), *options).code == 0
    mirrored = empty.copy(tmp_path / "mirrored")
    photo = mirrored.root / "photos/garden/deep/tree.JPG"
    first = decode_image(photo).flip(-1).permute(1, 2, 0).numpy()
    photo.unlink()
    Image.fromarray(first).save(photo.with_suffix(".png"))
    assert mirrored.run("render", "--write", str(tmp_path / "q"), *options).code == 0
    for kind, count in (("scales", 5), ("attention", 4)):
        flipped = tiles(opened(tmp_path / f"p/garden/ant-flip/deep/tree_{kind}.png"), (40, 64), count)
        plain = tiles(opened(tmp_path / f"q/garden/ant/deep/tree_{kind}.png"), (40, 64), count)
        for one, other in zip(flipped, plain, strict=True):
            assert np.array_equal(one, other[:, ::-1])


def test_only_the_chosen_members_run(empty: Bench, tmp_path: Path) -> None:
    (empty.root / "weights" / "cat.pth").unlink()
    options = ("--write", str(tmp_path / "p"), "--kinds", "attention,scales", "--limit", "1")
    assert "cat.pth" in empty.run("render", *options).refusal()
    assert empty.run("render", *options, "--models", "ant,bee").code == 0
    assert {name.split("/")[1] for name in files(tmp_path / "p")} == {"ant", "bee"}
    assert len(files(tmp_path / "p")) == 2 * 2 * 2


def test_a_device_that_is_not_there_is_refused(empty: Bench, tmp_path: Path) -> None:
    options = ("--write", str(tmp_path / "p"), "--kinds", "attention")
    assert "cuda:99" in empty.run("render", *options, "--device", "cuda:99").refusal()
    assert "--device: changes nothing" in empty.run("render", *options[:2], "--device", "cpu").refusal()
    assert "--models: changes nothing" in empty.run("render", *options[:2], "--models", "ant").refusal()
    assert not (tmp_path / "p").exists()


def test_a_network_without_attention_is_refused(empty: Bench, tmp_path: Path) -> None:
    save_checkpoint(empty.root / "weights/one.pth", build(TINY), arch=TINY)
    empty.tree["models"] += [
        {"name": "one", "arch": TINY, "checkpoint": "weights/one.pth", "inference": {"scales": [1.0]}},
        {"name": "far", "arch": "external"},
    ]
    empty.save()
    options = ("--write", str(tmp_path / "p"), "--kinds", "attention", "--datasets", "garden", "--limit", "1")
    assert (
        "model 'far': a network of arch external has no" in empty.run("render", *options, "--models", "far").refusal()
    )
    assert "model 'one': looks at one scale" in empty.run("render", *options, "--models", "ant,one").refusal()
    assert empty.run("render", *options).code == 0
    assert {name.split("/")[1] for name in files(tmp_path / "p")} == {"ant", "bee", "cat"}


def test_a_damaged_photograph_is_listed(empty: Bench, tmp_path: Path) -> None:
    (empty.root / "photos/garden/flower.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    options = ("--write", str(tmp_path / "p"), "--kinds", "attention", "--datasets", "garden", "--models", "ant")
    result = empty.run("render", *options)
    assert result.code == 1
    assert result.err.startswith("failed: garden/ant: flower.png: ")
    assert "1 picture, 1 image failed" in result.out
