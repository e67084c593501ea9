"""The steps of ``run.py``, each run by ``python steps.py NAME``; results are written row by row."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # for the other benchmarks

import bench_forward  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise  # noqa: E402
from hmsa_pipeline.datasets.synthetic.scene import draw_scene  # noqa: E402
from hmsa_pipeline.models.checkpoint import load_weights, save_checkpoint  # noqa: E402
from hmsa_pipeline.models.hmsa import HMSA  # noqa: E402
from hmsa_pipeline.models.prepare_inference import compile_regions, prepare_for_inference  # noqa: E402
from hmsa_pipeline.models.registry import build  # noqa: E402
from hmsa_pipeline.pipeline.config.member import Member  # noqa: E402
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions  # noqa: E402
from hmsa_pipeline.pipeline.inference.cuda_graphs import GraphForward, release_graphs  # noqa: E402
from hmsa_pipeline.pipeline.inference.predictor import Predictor  # noqa: E402
from PIL import Image  # noqa: E402
from run import write  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

SCALES = (0.5, 1.0, 2.0)
PHOTOGRAPHS = 16


@dataclass
class Kit:
    """What a step runs with; ``rows`` and ``facts`` are its result so far."""

    work: Path
    json: Path
    rehearse: bool
    photographs: Path | None
    checkpoint: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def arch(self) -> str:
        return "hrnet_tiny_ocr_mscale" if self.rehearse else "hrnet_ocr_mscale"

    @property
    def dtype(self) -> torch.dtype | None:
        return None if self.rehearse else torch.float16

    @property
    def size(self) -> tuple[int, int]:
        return (64, 128) if self.rehearse else (1024, 2048)

    @property
    def weights(self) -> Path:
        return self.checkpoint or self.work / "weights.pth"

    def pictures(self) -> list[Path]:
        """The photographs that `prepare` put into the working folder."""
        return sorted((self.work / "photographs").glob("*.png"))

    def row(self, case: str, **figures: Any) -> None:
        """Keep a row of the table, and write all so far."""
        print(case, figures, flush=True)
        self.rows.append({"case": case, **figures})
        self.write()

    def fact(self, **facts: Any) -> None:
        """Keep what holds for the whole step."""
        self.facts |= facts
        self.write()

    def write(self) -> None:
        write(self.json, {"step": self.json.stem, "rows": self.rows, "facts": self.facts})

    def with_and_without_graphs(self, case: str) -> list[tuple[str, bool]]:
        """A case and the same with the switch; a CPU leaves the switch out."""
        return [(case, False), *([] if self.rehearse else [(f"{case}, cuda_graphs", True)])]

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def pixels(self) -> Tensor:
        """A picture of the size that is measured, as a prepared network wants it."""
        image = decode_image(self.pictures()[0])[None].to(self.device)
        return normalise(image).to(self.dtype or torch.float32, memory_format=torch.channels_last)

    def network(self) -> HMSA:
        model = build(self.arch)
        assert isinstance(model, HMSA)
        load_weights(model, self.weights, self.arch)
        return model.eval().to(self.device)


def heard(words: list[str], folder: Path) -> tuple[int, str]:
    """Run a program and print each line as it comes: a step that is killed at its limit leaves what was said so far.

    Returns:
        the exit code, and standard output and standard error together.
    """
    said = ""
    # Without the variable a program that writes into a pipe keeps its lines back, and they die with it.
    unbuffered = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words,
        cwd=folder,
        env=unbuffered,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said += line
    return process.returncode, said


# ------------------------------------------------------------------ what is there


def prepare_all(kit: Kit) -> None:
    """Say what the machine is; photographs and a checkpoint for all other steps."""
    if kit.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; run this on a machine with one, or give --rehearse")
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        properties = torch.cuda.get_device_properties(0)
        kit.fact(card=properties.name, memory=f"{properties.total_memory / 2**30:.0f} GiB")
        kit.fact(driver=driver.stdout.strip() or "unknown", cuda=torch.version.cuda)
        kit.fact(cudnn=torch.backends.cudnn.version())
    kit.fact(python=platform.python_version(), torch=torch.__version__, threads=torch.get_num_threads())
    for name in ("torchvision", "numpy", "pillow", "zarr", "numcodecs", "dask", "distributed", "hmsa-pipeline"):
        kit.fact(**{name: importlib.metadata.version(name)})
    if kit.checkpoint is None:
        spec = importlib.util.spec_from_file_location("golden", ROOT / "tests" / "golden.py")
        assert spec is not None and spec.loader is not None
        golden = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(golden)
        model = build(kit.arch)
        model.load_state_dict(golden.weights({key: tuple(v.shape) for key, v in model.state_dict().items()}))
        save_checkpoint(kit.weights, model, arch=kit.arch)
    kit.fact(weights="given" if kit.checkpoint else "of a fixed rule, not trained")
    folder = kit.work / "photographs"
    folder.mkdir(exist_ok=True)
    count, (height, width) = 2 if kit.rehearse else PHOTOGRAPHS, kit.size
    given = sorted(p for p in (kit.photographs or folder).rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg"})
    for number, path in enumerate(given[:count]):
        # All of one size, so that the figures of different folders can be compared.
        with Image.open(path) as picture:
            picture.convert("RGB").resize((width, height)).save(folder / f"{number:02}.png")
    drawn = 4 if not given else 0
    for number in range(len(given[:count]), count):
        source = folder / f"{number - (drawn or len(given)):02}.png"
        if number < drawn:
            Image.fromarray(draw_scene(number, height, width).image).save(folder / f"{number:02}.png")
        else:  # drawing takes seconds, and to the clock one street is like another
            shutil.copy(source, folder / f"{number:02}.png")
    kit.fact(photographs=f"{len(given)} given" if given else "drawn", used=len(kit.pictures()))


def tests(kit: Kit) -> None:
    """The tests marked ``gpu``, by file; in a rehearsal that they can be collected."""
    marked = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if re.search(r"\bmark\.gpu\b", p.read_text())]
    report = kit.work / "junit.xml"
    words = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    words += ["--timeout=60", "--tb=short", *(["--collect-only"] if kit.rehearse else [])]
    code, said = heard([*words, *map(str, marked)], ROOT)
    line = next((line for line in reversed(said.splitlines()) if re.search(r"\d+ (passed|failed|test)", line)), "")
    kit.fact(summary=line.strip("= "), files=len(marked))
    for found in re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", said, re.MULTILINE):
        kit.row(found[0].rpartition("/")[2], error=found[1][:200])
    if code:
        raise SystemExit(f"pytest: exit {code}: {line or said.strip()[-200:]}")


# ------------------------------------------------------------------ the forward pass


def matmul_rate(kit: Kit) -> float:
    """TFLOP/s of a square matrix product in the precision that is measured; kept as a fact."""
    side = 256 if kit.rehearse else 8192
    a, b = (torch.randn(side, side, device=kit.device, dtype=kit.dtype or torch.float32) for _ in range(2))
    seconds, _ = timed(kit, lambda: a @ b, runs=10)
    rate = 2 * side**3 / seconds / 1e12
    kit.fact(matmul=f"{side}^3", matmul_tflops=round(rate, 1))
    return rate


def timed(kit: Kit, work: Callable[[], Any], runs: int = 5, warmups: int = 2) -> tuple[float, float | None]:
    """Median seconds, and MiB of the GPU at the peak."""
    for _ in range(warmups):
        work()
    kit.wait()
    if kit.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(1 if kit.rehearse else runs):
        begun = time.perf_counter()
        work()
        kit.wait()
        found.append(time.perf_counter() - begun)
    return statistics.median(found), torch.cuda.max_memory_allocated() / 2**20 if kit.device == "cuda" else None


def measured(kit: Kit, case: str, work: Callable[[], Tensor], flops: float, rate: float, expected: Tensor) -> Tensor:
    """Time ``work`` and keep the row; a case that fails is a row too."""
    begun = time.monotonic()
    try:
        logits = work().float()
        first = time.monotonic() - begun
        seconds, memory = timed(kit, work)
    except Exception as error:  # each case is a try of its own
        kit.row(
            case, error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:300]
        )
        return expected
    finally:
        gc.collect()
    rates = {"tflops": round(flops / seconds / 1e12, 2), "of_matmul": round(flops / seconds / 1e12 / rate, 3)}
    same = (logits.argmax(-3) == expected.argmax(-3)).float().mean().item()
    held = {"peak_mib": round(memory)} if memory is not None else {}
    kit.row(case, seconds=round(seconds, 4), first=round(first, 1), **held, **rates, argmax_as_eager=round(same, 5))
    return logits


def predict_of(model: HMSA, scales: tuple[float, ...] = SCALES) -> Callable[[Tensor], Tensor]:
    return lambda images: model.predict(images, scales)[0].to(torch.float16)


def graphed(work: Callable[[Tensor], Tensor], kit: Kit) -> GraphForward:
    """As a worker would; on a CPU there is nothing to capture, and a run takes the replay's place."""
    capture = (lambda work, _: work) if kit.device == "cpu" else None

    def fail(line: str) -> None:
        raise RuntimeError(line)

    return GraphForward(work, fail, capture=capture)


@torch.inference_mode()
def forward(kit: Kit) -> None:
    """The plain eager network as research forks run it, ours, ours with cudnn.benchmark, ours by a CUDA graph."""
    torch.backends.cudnn.deterministic = True
    rate = matmul_rate(kit)
    plain = kit.network()
    images = kit.pixels().float()

    def as_forks() -> Tensor:
        with torch.autocast(kit.device, dtype=kit.dtype, enabled=kit.dtype is not None):
            return bench_forward.straightforward(plain, images)[0]

    with FlopCounterMode(display=False) as counter:
        expected = as_forks().float()
    flops = counter.get_total_flops()
    kit.fact(tflop_as_forks=round(flops / 1e12, 3))
    measured(kit, "plain eager, as research forks", as_forks, flops, rate, expected)
    del as_forks
    ours, x = prepare_for_inference(plain, kit.dtype), kit.pixels()
    with FlopCounterMode(display=False) as counter:
        predict_of(ours)(x)
    flops = counter.get_total_flops()
    kit.fact(tflop_ours=round(flops / 1e12, 3))
    eager = measured(kit, "ours", lambda: predict_of(ours)(x), flops, rate, expected)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
    measured(kit, "ours, cudnn.benchmark", lambda: predict_of(ours)(x), flops, rate, expected)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    by_graph = graphed(predict_of(ours), kit)
    found = measured(kit, "ours, CUDA graph", lambda: by_graph(x), flops, rate, expected)
    kit.fact(graph_gives_the_same_bits=bool(torch.equal(found, eager)))


@torch.inference_mode()
def compiled(kit: Kit, mode: str) -> None:
    """torch.compile in a mode, alone and with a CUDA graph."""
    torch.backends.cudnn.deterministic = True
    rate = matmul_rate(kit)
    ours, x = prepare_for_inference(kit.network(), kit.dtype), kit.pixels()
    # Each size is compiled by itself: one is enough to see that it runs.
    work = predict_of(ours, (1.0,) if kit.rehearse else SCALES)
    with FlopCounterMode(display=False) as counter:
        expected = work(x).float()
    flops = counter.get_total_flops()
    measured(kit, "ours", lambda: work(x), flops, rate, expected)
    # A compiler for the CPU is not what is rehearsed.
    compile_regions(ours, mode, backend="eager" if kit.rehearse else "inductor")
    measured(kit, f"compile {mode}", lambda: work(x), flops, rate, expected)
    by_graph = graphed(work, kit)
    measured(kit, f"compile {mode}, CUDA graph", lambda: by_graph(x), flops, rate, expected)
    release_graphs()


# ------------------------------------------------------------------ commands


def manifest(kit: Kit, members: int, name: str, **inference: Any) -> Path:
    """A manifest over the photographs, all members with the same weights."""
    path = kit.work / f"{name}.yaml"
    tree = {
        "version": 1,
        "output": str(kit.work / name),
        "inference": {"precision": "fp16", "scales": list(SCALES)} | inference,
        "models": [{"name": f"m{n}", "arch": kit.arch, "checkpoint": str(kit.weights)} for n in range(members)],
        "datasets": [{"name": "photographs", "type": "folder", "root": str(kit.work / "photographs")}],
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def command(kit: Kit, *words: str) -> str:
    """Run ``hmsa-pipeline``; what it said."""
    code, said = heard([sys.executable, "-P", "-m", "hmsa_pipeline.cli", *words], kit.work)
    if code:
        raise SystemExit(f"{words[0]}: exit {code}: {(said.strip().splitlines() or [''])[-1]}")
    return said


def job_of(output: Path, stage: str) -> dict[str, Any]:
    """What ``run.json`` says of a stage, its jobs added up."""
    jobs = json.loads((output / "run.json").read_text())[stage].values()
    times: dict[str, float] = {}
    for job in jobs:
        for part, seconds in job["times"].items():
            times[part] = round(times.get(part, 0.0) + seconds, 2)
    return {"done": sum(j["done"] for j in jobs), "seconds": sum(j["seconds"] for j in jobs), "times": times}


def steady_rate(job: dict[str, Any]) -> float:
    """Images a second of a job once its network is loaded: of the time that it read, computed and wrote."""
    return job["done"] / max(1e-9, sum(job["times"].values()))


def in_one_process(kit: Kit) -> list[str]:
    return ["--workers", "0"] if kit.rehearse else []


def dump(kit: Kit) -> None:
    """Two members from PNG to the store, and the forward pass of the same images alone."""
    for case, graphs in kit.with_and_without_graphs("dump"):
        path = manifest(kit, 2, "dump-graphs" if graphs else "dump", cuda_graphs=graphs)
        begun = time.monotonic()
        said = command(kit, "dump", "--manifest", str(path), "--device", kit.device, *in_one_process(kit))
        whole = time.monotonic() - begun
        job = job_of(path.with_suffix(""), "dump")
        options = InferenceOptions(precision="fp16" if kit.dtype else "fp32", scales=SCALES, cuda_graphs=graphs)
        member = Member(name="m0", arch=kit.arch, checkpoint=str(kit.weights))
        one = Predictor(torch.device(kit.device), options, member)
        images = [decode_image(photo) for photo in kit.pictures()]
        for image in images[:3]:
            one(image)
        kit.wait()
        begun = time.monotonic()
        for image in images:
            one(image)
        kit.wait()
        alone = len(images) / (time.monotonic() - begun)
        del one
        gc.collect()
        if kit.device == "cuda":
            torch.cuda.empty_cache()  # the next command is another process on the same card
        rate = steady_rate(job)
        limit = next((line for line in said.splitlines() if line.startswith("limited by")), "")
        kit.row(
            case,
            images_per_s=round(rate, 2),
            forward_alone_per_s=round(alone, 2),
            share=round(rate / alone, 3),
            with_start_s=round(whole, 1),
            waited=limit,
            times=job["times"],
        )
        shutil.rmtree(path.with_suffix(""))


def predict(kit: Kit) -> None:
    """Seven members over eight images, fused on the device."""
    for case, graphs in kit.with_and_without_graphs("predict, 7 members"):
        path = manifest(kit, 7, "predict-graphs" if graphs else "predict", cuda_graphs=graphs)
        begun = time.monotonic()
        words = ["--limit", "1" if kit.rehearse else "8", "--device", kit.device, *in_one_process(kit)]
        said = command(kit, "predict", "--manifest", str(path), *words)
        job = job_of(path.with_suffix(""), "predict")
        limit = next((line for line in said.splitlines() if line.startswith("limited by")), "")
        kit.row(
            case,
            images_per_s=round(steady_rate(job), 3),
            with_start_s=round(time.monotonic() - begun, 1),
            waited=limit,
        )


def train(kit: Kit, *, checkpointing: bool) -> None:
    """Twenty steps of the gta5 recipe, three whole frames each."""
    steps, batch, size = (2, 1, (48, 96)) if kit.rehearse else (20, 3, (1052, 1914))
    root = kit.work / "data" / "GTA5"
    if not (root / "split.npz").is_file():
        shutil.rmtree(root, ignore_errors=True)
        lay_out_gta5(root, steps * batch, size)
    output = kit.work / f"train-{checkpointing}"
    crop = f"{size[0]}x{size[1]}"
    words = ["--data-root", str(root.parent), "--output", str(output), "--init", "random", "--epochs", "1"]
    words += ["--global-batch", str(batch), "--batch-size", str(batch), "--crop-size", crop, "--arch", kit.arch]
    words += ["--set", "validation.scales=[1.0]", "--device", kit.device, "--workers", "0" if kit.rehearse else "8"]
    words += ["--activation-checkpointing"] if checkpointing else []
    command(kit, "train", "--dataset", "gta5", *words)
    (epoch,) = json.loads((output / "history.json").read_text())
    kit.row(
        "with activation checkpointing" if checkpointing else "as the recipe",
        steps=steps,
        images_per_s=round(epoch["images_per_second"], 2),
        peak_mib=round(epoch["peak_memory"] / 2**20),
        loss=round(epoch["loss"]["total"], 3),
    )


def lay_out_gta5(root: Path, count: int, size: tuple[int, int]) -> None:
    """A GTA5 of a few drawn frames, each there under many numbers, since drawing takes seconds."""
    for folder in ("images", "labels_cityscapes"):
        (root / folder).mkdir(parents=True)
    drawn = min(3, count)
    for number in range(1, count + 2):
        for folder in ("images", "labels_cityscapes"):
            path = root / folder / f"{number:05}.png"
            if number > drawn:
                shutil.copy(root / folder / f"{(number - 1) % drawn + 1:05}.png", path)
            else:
                scene = draw_scene(number, *size)
                Image.fromarray(scene.image if folder == "images" else scene.mask).save(path)
    ids = np.arange(1, count + 2)
    np.savez(root / "split.npz", trainIds=ids[:count], valIds=ids[count:], testIds=ids[count:])


# ------------------------------------------------------------------ precision


def precision(kit: Kit) -> None:
    """How far fp16 and bf16 are from fp32 over the photographs."""
    rows: dict[str, list[tuple[float, float, float]]] = {"fp16": [], "bf16": []}
    member = Member(name="it", arch=kit.arch, checkpoint=str(kit.weights))
    every = {name: InferenceOptions(precision=name, scales=SCALES) for name in ("fp32", *rows)}  # type: ignore[arg-type]
    ways = {name: Predictor(torch.device(kit.device), options, member) for name, options in every.items()}
    for photo in kit.pictures():
        image = decode_image(photo)
        expected = ways["fp32"](image)[0][None].float()
        for name, found in rows.items():
            found.append(bench_forward.differences(expected, ways[name](image)[0][None].float()))
    for name, found in rows.items():
        same, mean, most = zip(*found, strict=True)
        kit.row(
            f"{name} against fp32",
            argmax=round(statistics.mean(same), 5),
            least=round(min(same), 5),
            dp_mean=f"{statistics.mean(mean):.1e}",
            dp_most=f"{max(most):.1e}",
            photographs=len(found),
        )


STEPS: dict[str, Callable[[Kit], None]] = {
    "prepare": prepare_all,
    "tests": tests,
    "forward": forward,
    "compile": lambda kit: compiled(kit, "default"),
    "autotune": lambda kit: compiled(kit, "max-autotune-no-cudagraphs"),
    "dump": dump,
    "predict": predict,
    "train": lambda kit: train(kit, checkpointing=False),
    "train-checkpointing": lambda kit: train(kit, checkpointing=True),
    "precision": precision,
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    kit = Kit(options.work, options.json, options.rehearse, options.photographs, options.checkpoint)
    if kit.rehearse:
        torch.set_num_threads(1)
    STEPS[options.step](kit)
    kit.write()


if __name__ == "__main__":
    main()
