"""A package from outside brings an architecture and a dataset: installed, named in a manifest, used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hmsa_pipeline.datasets import dataset_specs as sources
from hmsa_pipeline.errors import DatasetError, ManifestError
from hmsa_pipeline.models import registry
from hmsa_pipeline.models.plain import PlainNetwork
from hmsa_pipeline.models.prepare_inference import prepare_for_inference
from PIL import Image
from torch import Tensor, nn

from .bench import Bench, Result, picture

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "outside"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed in it, as pip does it."""
    target, copy = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source") / "outside"
    shutil.copytree(EXAMPLE, copy)
    alone = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "install", "--quiet", *alone, "--target", str(target), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def run(installed: Path, folder: Path, *words: str) -> Result:
    """A command line where the package is installed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


MAKE_WEIGHTS = """
import sys, torch
from hmsa_outside.network import StackedConvolutions
torch.manual_seed(0)
torch.save(StackedConvolutions(19).state_dict(), sys.argv[1])
"""


@pytest.fixture
def town(installed: Path, tmp_path: Path) -> Path:
    """A dataset that lies as the package says, a checkpoint, and a manifest that names both."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            for folder, pixels in (
                ("images", picture(number, 40, 64)),
                ("labels", draw.integers(0, 7, (40, 64)).astype(np.uint8)),
            ):
                path = tmp_path / "Toytown" / folder / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    subprocess.run(
        [sys.executable, "-P", "-c", MAKE_WEIGHTS, str(tmp_path / "weights.pth")],
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
    )
    manifest = {
        "version": 1,
        "output": "run",
        "models": [{"name": "mine", "arch": "stacked_convolutions", "checkpoint": "weights.pth"}],
        "datasets": [{"name": "town", "type": "toytown", "root": "Toytown"}],
    }
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    return tmp_path


def test_a_manifest_names_the_architecture_and_the_dataset_of_the_package(installed: Path, town: Path) -> None:
    words = ("--manifest", "manifest.yaml")
    assert "ok      dataset  town" in run(installed, town, "manifest", "check", *words).out
    for command in ("dump", "ensemble"):
        result = run(installed, town, command, *words, "--workers", "0")
        assert result.code == 0, result
    predictions = sorted(path.name for path in (town / "run" / "predictions" / "town").rglob("*_pred.png"))
    assert predictions == ["0_pred.png", "1_pred.png"]
    result = run(installed, town, "evaluate", *words, "--json", "-", "--processes", "1")
    assert result.code == 0, result
    assert json.loads(result.out)[0]["dataset"] == "town"
    assert (
        "1 image predicted"
        in run(installed, town, "predict", *words, "--workers", "0", "--output", "other", "--limit", "1").out
    )


def test_the_package_is_listed_and_its_dataset_can_be_checked_and_learnt_from(installed: Path, town: Path) -> None:
    assert "Toytown" in run(installed, town, "datasets", "list", "toytown").out
    result = run(installed, town, "datasets", "check", "toytown", "--root", "Toytown", "--output", "checked")
    assert result.code == 0, result


def test_without_the_package_its_names_are_unknown(town: Path, tmp_path: Path) -> None:
    message = run(tmp_path / "nowhere", town, "manifest", "check", "--manifest", "manifest.yaml").refusal()
    assert "'stacked_convolutions' is not known" in message


def test_a_network_from_outside_cannot_be_trained(installed: Path, town: Path) -> None:
    result = run(installed, town, "train", "--dataset", "gta5", "--arch", "stacked_convolutions", "--data-root", ".")
    assert result.code == 2
    assert "stacked_convolutions" in result.err


# ------------------------------------------------------------------ what a package can do wrong


class Grey(PlainNetwork):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(3, num_classes, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(images)


def broken(num_classes: int) -> nn.Module:
    raise RuntimeError("no\nluck")


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points as if packages had been installed."""
    found: list[EntryPoint] = []
    for module in (registry, sources):
        monkeypatch.setattr(module, "entry_points", lambda group: [p for p in found if p.group == group])
        module._outside.cache_clear()
    sources.dataset_spec.cache_clear()
    yield found
    for module in (registry, sources):
        module._outside.cache_clear()
    sources.dataset_spec.cache_clear()


def model(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{value}", registry.GROUP)


def dataset(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{value}", sources.GROUP)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("broken", r"cannot be made \(RuntimeError: no luck\); fix it there, or remove it"),
        ("Missing", r"cannot be made \(AttributeError: "),
        ("nn.Linear", r"cannot be made \(TypeError: "),
        ("nn.ReLU", "makes no PlainNetwork, but ReLU; fix it there"),
    ],
)
def test_an_architecture_that_does_not_come_up_says_whose_it_is(
    points: list[EntryPoint], value: str, said: str
) -> None:
    points.append(model("theirs", value))
    with pytest.raises(ManifestError, match=rf"^architecture 'theirs' \({__name__}:{value}\): {said}") as caught:
        registry.build_any("theirs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hrnet_ocr", "twice"])
def test_no_two_architectures_have_one_name(points: list[EntryPoint], name: str) -> None:
    points += [model(name, "Grey")] * 2
    with pytest.raises(ManifestError, match=f"'{name}' .*: there is an architecture of this name already; rename it"):
        list(registry.KNOWN)


GONE, WRONG = Path("/nowhere.yaml"), EXAMPLE / "pyproject.toml"


@pytest.mark.parametrize(
    ("value", "said"), [("GONE", "FileNotFoundError"), ("WRONG", "Error"), ("broken", "TypeError")]
)
def test_a_dataset_that_cannot_be_read_says_whose_it_is(points: list[EntryPoint], value: str, said: str) -> None:
    points.append(dataset("theirs", value))
    with pytest.raises(DatasetError, match=rf"^dataset 'theirs' .*: its description cannot be understood \(.*{said}"):
        sources.dataset_spec("theirs")


@pytest.mark.parametrize("name", ["gta5", "bravo", "twice"])
def test_no_two_datasets_have_one_name(points: list[EntryPoint], name: str) -> None:
    points += [dataset(name, "GONE")] * 2
    with pytest.raises(DatasetError, match=f"'{name}' .*: there is a dataset of this name already; rename it there"):
        list(sources.KNOWN_DATASETS)


# ------------------------------------------------------------------ how a network from outside looks at images


def test_scores_are_the_mean_over_scales_and_mirror_images() -> None:
    torch.manual_seed(0)
    network = Grey(19).eval()
    images = torch.randn(1, 3, 24, 40)

    def once(scale: float, mirrored: bool) -> Tensor:
        given = nn.functional.interpolate(
            images, size=(int(24 * scale), int(40 * scale)), mode="bilinear", align_corners=False
        )
        with torch.no_grad():
            scores = network(given.flip(-1) if mirrored else given)
        wide = nn.functional.interpolate(scores, size=(24, 40), mode="bilinear", align_corners=False)
        return wide.flip(-1) if mirrored else wide

    looks = [once(scale, mirrored) for scale in (0.5, 1.0, 2.0) for mirrored in (False, True)]
    torch.testing.assert_close(network.predict(images, (0.5, 1.0, 2.0), flip=True), sum(looks) / 6)
    torch.testing.assert_close(network.predict(images, (1.0,)), once(1.0, False))
    ready = prepare_for_inference(Grey(19).eval(), torch.bfloat16)
    found = ready.predict(images.bfloat16(), (1.0,), gather=torch.device("cpu"))
    assert found.dtype == torch.float32
    assert {p.dtype for p in ready.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"scales must contain 1\.0"):
        network.predict(images, (0.5,))


def test_a_network_from_outside_is_a_member_like_any_other(
    points: list[EntryPoint], empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    points.append(model("grey", "Grey"))
    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in Grey(19).state_dict().items()}}, empty.root / "grey.pth")
    empty.tree["models"].append({"name": "grey", "arch": "grey", "checkpoint": "grey.pth"})
    empty.tree["inference"]["precision"] = "bf16"
    empty.save()
    for command in ("dump", "ensemble"):
        assert empty.run(command).code == 0
    torch.save({"state_dict": nn.Linear(3, 3).state_dict()}, empty.root / "grey.pth")
    assert "is it really a 'grey'?" in empty.run("dump", "--overwrite", "--models", "grey").refusal()
