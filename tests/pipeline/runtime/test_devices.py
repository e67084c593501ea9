"""What must hold on a GPU: each test runs on a CPU too, so that a mistake in it is found where there is none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.losses.training_loss import training_loss
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions, Tile
from hmsa_pipeline.pipeline.inference import networks
from hmsa_pipeline.pipeline.inference.cuda_graphs import release_graphs
from hmsa_pipeline.pipeline.inference.predictor import IN_TILES, SCALE_BY_SCALE, Predictor
from hmsa_pipeline.pipeline.inference.transfer import HostCopy
from hmsa_pipeline.pipeline.training import trainer
from PIL import Image
from torch import Tensor, nn

from ... import golden
from ...cli.bench import TINY, Bench, files, listed, picture, run
from ...cli.training import farthest, history, options, weights

SCALES = (0.5, 1.0, 2.0)
# The published network where it takes no minutes.
ARCH = {"cpu": TINY, "cuda": "hrnet_ocr_mscale"}
SIZE = {"cpu": (64, 96), "cuda": (256, 512)}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    release_graphs()


def reference(arch: str) -> Any:
    model = build(arch)
    model.load_state_dict(golden.weights({key: tuple(value.shape) for key, value in model.state_dict().items()}))
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The golden weights of both networks, made when first asked for; the large one is removed at the end."""

    class Made(dict[str, Path]):
        def __missing__(self, arch: str) -> Path:
            path = self[arch] = tmp_path_factory.mktemp("golden") / f"{arch}.pth"
            save_checkpoint(path, reference(arch), arch=arch)
            return path

    made = Made()
    yield made
    for path in made.values():
        path.unlink()


def predictor(device: str, checkpoint: Path, arch: str, precision: str = "fp32", **more: Any) -> Predictor:
    options = InferenceOptions(precision=precision, scales=SCALES, **more)  # type: ignore[arg-type]
    return Predictor(torch.device(device), options, Member(name="golden", arch=arch, checkpoint=str(checkpoint)))


def photograph(device: str) -> Tensor:
    return torch.from_numpy(golden.image(101, *SIZE[device])).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize(("precision", "agreement"), [("fp32", 0.995), ("fp16", 0.99), ("bf16", 0.95)])
def test_precisions_agree_with_the_network_as_it_was_trained(
    device: str, precision: str, agreement: float, checkpoints: dict[str, Path]
) -> None:
    arch = ARCH[device]
    expected = reference(arch).predict(golden.normalise(golden.image(101, *SIZE[device])), SCALES)[0]
    logits, how = predictor(device, checkpoints[arch], arch, precision)(photograph(device))
    assert (logits.device.type, logits.dtype, how) == (device, torch.float16, None)
    found = logits.float().cpu()
    assert found.isfinite().all()
    assert (found.argmax(0) == expected.argmax(0)).float().mean() >= agreement
    assert (found.softmax(0) - expected.softmax(0)).abs().mean() < 0.02


def test_mirrored_photographs_have_mirrored_logits(device: str, checkpoints: dict[str, Path]) -> None:
    arch = ARCH[device]
    one = predictor(device, checkpoints[arch], arch, flip=True)
    plain, mirrored = (one(image)[0].float().cpu() for image in (photograph(device), photograph(device).flip(-1)))
    torch.testing.assert_close(mirrored.flip(-1), plain, atol=0.05, rtol=0.01)
    without, _ = predictor(device, checkpoints[arch], arch)(photograph(device))
    assert not torch.equal(plain, without.float().cpu())


def test_an_image_that_does_not_fit_is_made_in_parts_and_the_next_one_at_once(
    device: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tile = Tile(size=(128, 160), overlap=32)
    one = predictor(device, checkpoints[TINY], TINY, tile=tile)
    large = torch.from_numpy(golden.image(7, 1024, 2048) if device == "cuda" else golden.image(7, 160, 192))
    large = large.permute(2, 0, 1).contiguous()
    expected, how = one(large)
    assert how is None
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        one(large)
        whole = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 2**27
        assert room < whole
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    else:
        predict = Predictor.predict_scales

        def little(self: Predictor, pixels: Tensor, gather: torch.device | None) -> Tensor:
            if pixels.shape[-1] > 160:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return predict(self, pixels, gather)

        monkeypatch.setattr(Predictor, "predict_scales", little)
    try:
        logits, how = one(large)
    finally:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
        monkeypatch.undo()
    assert how in (SCALE_BY_SCALE, IN_TILES)
    assert logits.shape == expected.shape
    assert logits.isfinite().all()
    assert (logits.cpu().argmax(0) == expected.cpu().argmax(0)).float().mean() > 0.7
    again, how = one(large)
    assert how is None
    assert torch.equal(again, expected)


def test_graphs_give_the_same_bits_while_other_threads_pin_memory(
    device: str, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the switch does nothing, and the same must come out."""
    arch, half = ARCH[device], "fp16" if device == "cuda" else "fp32"
    images = [photograph(device), photograph(device)[:, :-32], photograph(device).flip(-1)]
    plain = predictor(device, checkpoints[arch], arch, half)
    expected = [plain(image)[0].cpu() for image in images]
    one = predictor(device, checkpoints[arch], arch, half, cuda_graphs=device == "cuda")
    ended = threading.Event()

    def pin() -> None:
        while not ended.wait(0.001):
            torch.empty(2**20, pin_memory=device == "cuda")

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        for _ in range(4):
            for image, logits in zip(images, expected, strict=True):
                assert torch.equal(one(image)[0].cpu(), logits)
    finally:
        ended.set()
        thread.join()
    assert one.take_notes() == []
    if device == "cuda":
        assert one._graphs is not None
        assert len(one._graphs._graphs) == 2


def test_results_travel_beside_what_is_computed_next(device: str) -> None:
    host_copy, fetches = HostCopy(torch.device(device)), []
    with torch.inference_mode():
        for number in range(20):
            result = torch.full((19, 64, 64), float(number), device=device, dtype=torch.float16)
            for _ in range(20):
                result = result * 1.0
            fetches.append(host_copy.start(result))
    for number, fetch in enumerate(fetches):
        here = fetch()
        assert here.device.type == "cpu"
        assert here.is_pinned() == (device == "cuda")
        assert (here == number).all()


# ------------------------------------------------------------------ commands


@pytest.fixture
def bench(tmp_path: Path, checkpoints: dict[str, Path]) -> Bench:
    """Two members, five photographs of two sizes."""
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / f"{seed}.pth", build(TINY), arch=TINY)
        models.append({"name": f"m{seed}", "arch": TINY, "checkpoint": f"{seed}.pth"})
    models.append({"name": "golden", "arch": TINY, "checkpoint": str(checkpoints[TINY])})
    bench = Bench(
        tmp_path,
        {
            "version": 1,
            "inference": {"scales": list(SCALES), "precision": "fp16"},
            "models": models,
            "datasets": [{"name": "street", "type": "folder", "root": "photos"}],
        },
    )
    for seed in range(5):
        bench.photo(f"{seed}.png", 48 if seed < 4 else 40, 80, seed=seed)
    return bench.save()


def test_members_resident_and_in_turns_predict_the_same(
    device: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: dict[str, dict[str, bytes]] = {}
    for graphs in (False, True):
        for way in ("together", "in turns"):
            one = bench.copy(tmp_path / f"{way} {graphs}")
            one.tree["inference"]["cuda_graphs"] = graphs
            one.save()
            with monkeypatch.context() as patch:
                patch.setattr(networks.LoadedNetworks, "key", None)
                if way == "in turns":
                    patch.setattr(networks, "free_gpu_memory", lambda _: 0)
                result = one.run("predict", "--device", device)
                assert result.code == 0, result
                assert "cannot be used" not in result.err
                assert networks.LoadedNetworks.networks is not None
                assert networks.LoadedNetworks.networks.are_together == (way == "together")
                patch.setattr(networks.LoadedNetworks, "networks", None)
            pictures = {name: data for name, data in files(one.predictions).items() if name.endswith(".png")}
            assert len(pictures) == 10
            ways[f"{way} {graphs}"] = pictures
    first, *others = ways.values()
    assert all(other == first for other in others)


def test_dumped_logits_are_those_of_the_network(device: str, bench: Bench, checkpoints: dict[str, Path]) -> None:
    result = bench.run("dump", "--models", "golden", "--device", device)
    assert result.code == 0, result
    store = bench.store("street", "golden")
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert attributes["precision"] == ("fp16" if device == "cuda" else "fp32")
    one = predictor(device, checkpoints[TINY], TINY, attributes["precision"])
    import zarr

    group: Any = zarr.open_group(store, mode="r")
    for entry in listed(store):
        expected, _ = one(decode_image(bench.root / "photos" / entry["path"]))
        np.testing.assert_array_equal(np.asarray(group[entry["array"]][entry["row"]]), expected.cpu().numpy())


# ------------------------------------------------------------------ training


def step(network: nn.Module, device: str) -> tuple[float, dict[str, Tensor]]:
    """The loss of one training step, and the gradients."""
    images = golden.normalise(picture(3, 64, 96)).repeat(2, 1, 1, 1).to(device)
    labels = torch.from_numpy(np.asarray(Image.fromarray(picture(4, 64, 96)).convert("L")) % 19).long()
    loss = training_loss(network(images), labels[None].repeat(2, 1, 1).to(device), "cross_entropy").total
    loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_a_step_with_synchronised_statistics_in_one_process(device: str, tmp_path: Path) -> None:
    """The same as without: there is nobody to hear from. Between CPUs there is no such layer."""
    plain, other = (reference(TINY).train().to(device) for _ in range(2))
    for module in (*plain.modules(), *other.modules()):
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    if device == "cuda":
        other = nn.SyncBatchNorm.convert_sync_batchnorm(other)
        assert any(isinstance(module, nn.SyncBatchNorm) for module in other.modules())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/meet", world_size=1, rank=0)
    try:
        expected, gradients = step(plain, device)
        loss, found = step(other, device)
    finally:
        dist.destroy_process_group()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert found.keys() == gradients.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_a_run_that_was_stopped_is_resumed(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path, "cityscapes", train=4, val=2, size=(48, 80))
    words = ("--device", device, "--epochs", "2", "--init", "random", "--precision", "fp32")

    def trained(output: Path, *more: str) -> int:
        return run(*options(tmp_path, output, *words, *more, dataset="cityscapes")).code

    assert trained(tmp_path / "plain") == 0

    class StopsSoon(trainer.StopSignal):
        asked = 0

        @property
        def requested(self) -> bool:
            StopsSoon.asked += 1
            return StopsSoon.asked > 3

        @requested.setter
        def requested(self, _: bool) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "StopSignal", StopsSoon)
        assert trained(tmp_path / "other") == 130
    assert trained(tmp_path / "other", "--resume") == 0
    assert [row["epoch"] for row in history(tmp_path / "other")] == [1, 2]
    # On a GPU gradients of enlarged maps are added up in any order.
    far = farthest(weights(tmp_path / "plain"), weights(tmp_path / "other"))
    assert far == 0 if device == "cpu" else far < 0.05
