"""Settings of one member alone, and several members of one network: other views, and passes with dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.models.checkpoint import load_weights, save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.inference import networks
from torch.nn import functional

from .bench import TINY, Bench, attributes, files, run, stored

PHOTO = "a.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One network, one photograph; tests take a copy."""
    bench = Bench(
        tmp_path_factory.mktemp("samples"),
        {
            "version": 1,
            "inference": {"scales": [0.5, 1.0], "precision": "fp32"},
            "models": [{"name": "ant", "arch": TINY, "checkpoint": "ant.pth"}],
            "datasets": [{"name": "garden", "type": "folder", "root": "photos/garden"}],
        },
    )
    torch.manual_seed(0)
    save_checkpoint(bench.root / "ant.pth", build(TINY), arch=TINY)
    bench.photo(f"garden/{PHOTO}", 48, 80, seed=1)
    return bench.save()


@pytest.fixture
def bench(made: Bench, tmp_path: Path) -> Bench:
    return made.copy(tmp_path / "bench")


def changed(bench: Bench, **values: Any) -> Bench:
    bench.tree["models"] = [bench.tree["models"][0] | values]
    return bench.save()


def logits(bench: Bench, member: str = "ant") -> np.ndarray:
    return stored(bench.store("garden", member))[PHOTO].astype(np.float32)


def network(bench: Bench) -> Any:
    model = build(TINY)
    load_weights(model, bench.root / "ant.pth", TINY)
    return model


def pixels(bench: Bench) -> torch.Tensor:
    return normalise(decode_image(bench.root / "photos/garden" / PHOTO)[None])


def close(found: np.ndarray, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(found, wanted[0].numpy(), atol=2e-2, rtol=2e-3)


def test_a_members_own_settings_win_and_stand_in_its_store(bench: Bench) -> None:
    bench.tree["models"].append(bench.tree["models"][0] | {"name": "bee"})
    bench.tree["models"][0]["inference"] = {"scales": [1.0], "flip": True}
    assert bench.save().run("dump").code == 0
    said = {name: attributes(bench.store("garden", name)) for name in ("ant", "bee")}
    assert [(said[name]["scales"], said[name]["flip"]) for name in said] == [([1.0], True), ([0.5, 1.0], False)]
    close(logits(bench), network(bench).predict(pixels(bench), [1.0], flip=True))
    close(logits(bench, "bee"), network(bench).predict(pixels(bench), [0.5, 1.0]))
    bench.tree["models"][0]["inference"]["flip"] = False
    refused = bench.save().run("dump").refusal()
    assert "ant.zarr: was made with other settings (flip True there, False now)" in refused
    assert bench.run("dump", "--overwrite").code == 0
    close(logits(bench), network(bench).predict(pixels(bench), [1.0]))


def test_half_precision_of_one_member_becomes_float32_with_one_line(bench: Bench) -> None:
    bench.tree["models"].append(bench.tree["models"][0] | {"name": "bee", "inference": {"precision": "fp16"}})
    result = bench.save().run("dump", "--device", "cpu")
    assert result.code == 0
    assert (result.out + result.err).count("a CPU computes no fp16") == 1
    assert attributes(bench.store("garden", "bee"))["precision"] == "fp32"
    bench.tree["models"][1]["inference"]["precision"] = "bf16"
    bench.save()
    assert "precision fp32 there, bf16 now" in bench.run("dump", "--device", "cpu").refusal()
    # What the command line says of all members wins.
    assert bench.run("dump", "--device", "cpu", "--precision", "fp32").code == 0


def test_views_are_members_of_their_own(bench: Bench) -> None:
    changed(bench, views=["flip", {"scale": 0.75}, {"scale": 1.5, "flip": True}])
    names = ["ant", "ant-flip", "ant-scale0.75", "ant-scale1.5-flip"]
    assert bench.run("dump").code == 0
    model, plain = network(bench), pixels(bench)
    close(logits(bench), model.predict(plain, [0.5, 1.0]))
    close(logits(bench, "ant-flip"), model.predict(plain.flip(-1), [0.5, 1.0]).flip(-1))
    for name, scale, size in (("ant-scale0.75", 0.75, (36, 60)), ("ant-scale1.5-flip", 1.5, (72, 120))):
        seen = functional.interpolate(plain, size, mode="bilinear")
        found = model.predict(seen.flip(-1) if scale > 1 else seen, [0.5, 1.0])
        found = functional.interpolate(found.flip(-1) if scale > 1 else found, (48, 80), mode="bilinear")
        close(logits(bench, name), found)
    assert attributes(bench.store("garden", "ant-scale0.75"))["preprocessing"]["sample"] == {"scale": 0.75}
    assert bench.run("ensemble").code == 0
    shown = yaml.safe_load(run("manifest", "show", "--manifest", str(bench.manifest)).out)
    assert [member["name"] for member in shown["models"]] == names
    # What is shown says the same, so nothing is left to do.
    bench.tree["models"] = shown["models"]
    assert bench.save().run("dump").out == "nothing to do: all 4 images are complete\n"
    assert bench.run("dump", "--models", "ant-flip").out == "nothing to do: all 1 images are complete\n"


def test_passes_with_dropout_differ_from_one_another_and_repeat_to_the_bit(bench: Bench) -> None:
    changed(bench, dropout=2)
    assert bench.run("dump").code == 0
    plain, first, second = (logits(bench, name) for name in ("ant", "ant-dropout1", "ant-dropout2"))
    close(plain, network(bench).predict(pixels(bench), [0.5, 1.0]))  # of which nothing is dropped
    assert len({one.tobytes() for one in (plain, first, second)}) == 3
    assert np.abs(first - plain).mean() < plain.std()
    before = files(bench.store("garden", "ant-dropout2"))
    torch.manual_seed(99)
    result = bench.run("dump", "--models", "ant-dropout2", "--overwrite")
    assert (result.code, files(bench.store("garden", "ant-dropout2"))) == (0, before)
    fused = bench.run("ensemble")
    assert fused.code == 0, fused
    alone = changed(bench, dropout=2).run("predict", "--overwrite")
    assert alone.code == 0, alone


def test_another_image_drops_other_features(bench: Bench) -> None:
    """Passes over the same pixels drop the same, wherever the file is; over others something else."""
    (bench.root / "photos/garden/copy.png").write_bytes((bench.root / "photos/garden" / PHOTO).read_bytes())
    changed(bench, dropout=1)
    assert bench.run("dump").code == 0
    both = stored(bench.store("garden", "ant-dropout1"))
    assert both["copy.png"].tobytes() == both[PHOTO].tobytes()


def test_the_checkpoint_is_loaded_once_for_all_of_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = networks.Predictor.__init__.__globals__["load_network"]
    monkeypatch.setitem(
        networks.Predictor.__init__.__globals__,
        "load_network",
        lambda member, *others: loaded.append(member.name) or load(member, *others),
    )
    networks.LoadedNetworks.key = networks.LoadedNetworks.networks = None
    changed(bench, views=["flip"], dropout=2)
    assert bench.run("dump").code == 0
    assert bench.run("predict").code == 0
    assert loaded == ["ant"]


WRONG = {
    "a word": ({"views": ["mirror"]}, "views[0]: flip or {scale: 0.75} is needed, not the text 'mirror'"),
    "a key": ({"views": [{"zoom": 2}]}, "a view has 'flip' and 'scale'; remove this"),
    "itself": ({"views": [{"scale": 1.0}]}, "views[0]: is the model itself"),
    "twice": ({"views": ["flip", {"flip": True}]}, "views[1]: stands twice; remove one"),
    "averaged": ({"views": ["flip"], "inference": {"flip": True}}, "views[0]: is the same as the model itself"),
    "too many": ({"dropout": 101}, "dropout: makes 101 members; give 100 or fewer"),
    "none": ({"dropout": 0}, "dropout: must be 1 or more, not 0"),
    "both": ({"dropout": 1, "sample": {"dropout": 1}}, "sample: is one of several members already"),
    "scales": ({"inference": {"scales": [0.5]}}, "inference.scales: must contain 1.0"),
    "precision": ({"inference": {"precision": "half"}}, "inference.precision: "),
    "view": ({"inference": {"view": "whole"}}, "inference.view: means nothing to"),
    "unknown": ({"inference": {"tile": 1}}, "inference.tile: "),
    "external": ({"arch": "external", "checkpoint": None, "dropout": 2}, "dropout: an external model has none"),
    "two views": (
        {"arch": "transformers", "view": "whole", "inference": {"view": "whole"}},
        "view: stands in 'inference', too; remove one",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_one_line(name: str, bench: Bench) -> None:
    values, message = WRONG[name]
    refused = changed(bench, **values).run("dump").refusal()
    assert message in refused
    assert not bench.output.exists()


def test_a_name_that_is_taken_is_refused(bench: Bench) -> None:
    bench.tree["models"].append(bench.tree["models"][0] | {"name": "ANT-flip"})
    bench.tree["models"][0]["views"] = ["flip"]
    refused = bench.save().run("dump").refusal()
    assert (
        "models[0].name: one of its 'views' or 'dropout' makes 'ant-flip', which another model is called" in refused
    )


def test_a_network_without_dropout_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmsa_pipeline.models.ocr.DROPOUT", 0.0)
    refused = changed(bench, dropout=2).run("dump").refusal()
    assert refused.startswith("model 'ant-dropout1': the network has no dropout that is above 0")
    checked = run("manifest", "check", "--manifest", str(bench.manifest))
    assert (checked.code, checked.out.count("WRONG ")) == (2, 2)
