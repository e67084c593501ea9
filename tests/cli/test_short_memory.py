"""Images that do not fit into the device's memory at once, seen through the command line."""

from __future__ import annotations

import json

import pytest
import torch
from hmsa_pipeline.pipeline.inference.predictor import Predictor
from torch import Tensor

from .bench import Bench, files


def short(patch: pytest.MonkeyPatch, largest: int) -> None:
    """No image fits at once, and none of more pixels in any way."""
    whole = Predictor.compute

    def try_it(self: Predictor, image: Tensor, gather: torch.device | None) -> Tensor:
        if gather is None or image.shape[1] * image.shape[2] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, image, gather)

    patch.setattr(Predictor, "compute", try_it)


def listed(bench: Bench) -> dict[str, str]:
    return json.loads((bench.output / "run.json").read_text())["dump"]["garden/ant"]["fallbacks"]


def test_images_made_scale_by_scale_are_listed(
    empty: Bench, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, 10**9)
    result = empty.run("dump", "--models", "ant", "--datasets", "garden")
    assert result.code == 0
    assert "2 images did not fit into the device's memory at once" in result.err
    assert listed(empty) == {"deep/tree.JPG": "scale by scale", "flower.png": "scale by scale"}
    assert files(empty.store("garden", "ant")) == files(finished.store("garden", "ant"))


def test_tiles_are_used_only_if_the_manifest_says_so(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, 40 * 40)
    result = empty.run("dump", "--models", "ant", "--datasets", "garden")
    assert result.code == 1
    assert "flower.png: 40x64 does not fit into the device's memory" in result.err
    assert listed(empty) == {}

    empty.tree["inference"]["tile"] = {"size": [40, 40], "overlap": 8}
    empty.save()
    assert empty.run("dump", "--models", "ant", "--datasets", "garden").code == 0
    assert set(listed(empty).values()) == {"in tiles"}


@pytest.mark.parametrize(
    ("tile", "field"),
    [
        ({"size": [64, 64], "overlap": 64}, "inference.tile.overlap"),
        ({"size": [64]}, "inference.tile.size"),
        ({"size": [0, 64]}, "inference.tile.size"),
    ],
)
def test_tiles_that_cannot_be_are_refused(empty: Bench, tile: dict[str, object], field: str) -> None:
    empty.tree["inference"]["tile"] = tile
    assert field in empty.save().run("dump").refusal()
