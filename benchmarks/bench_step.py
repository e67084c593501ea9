"""One training step, part by part, and what the processor does in it.

    python benchmarks/bench_step.py --crop 256x512 --batch 1
    python benchmarks/bench_step.py --crop 1052x1914 --batch 3 --device cuda --precision fp16

Forward pass, loss, backward pass and optimiser of the gta5 recipe over random pixels, the median of several steps;
the same with channels first, and with an optimiser that goes through the weights one by one; then the profile of a
step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from harness import machine, size
from hmsa_pipeline.datasets.taxonomy import NUM_CLASSES
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.models.losses.training_loss import training_loss
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.recipe import Optimizer
from hmsa_pipeline.pipeline.training.optimizer import build_optimizer
from torch.profiler import ProfilerActivity, profile

DTYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Step:
    """A network, its optimiser, and pixels to learn from."""

    def __init__(
        self, arch: str, shape: tuple[int, int], batch: int, device: str, precision: str, *, last: bool, fused: bool
    ) -> None:
        torch.manual_seed(0)
        self._device, self._dtype = device, DTYPES[precision]
        layout = torch.channels_last if last else torch.contiguous_format
        model = build(arch)
        assert isinstance(model, HMSA)
        self._model = model.train().to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._optimizer = build_optimizer(self._model.parameters(), Optimizer(lr=0.005))
        for group in self._optimizer.param_groups:
            group["fused"] = fused
        self._scaler = torch.amp.GradScaler(device, enabled=self._dtype == torch.float16)
        self._images = torch.randn(batch, 3, *shape, device=device).contiguous(memory_format=layout)
        self._labels = torch.randint(0, NUM_CLASSES, (batch, *shape), device=device)

    def __call__(self) -> dict[str, float]:
        """Seconds by part."""
        seconds: dict[str, float] = {}

        def timed(part: str, work: Callable[[], object]) -> object:
            self._wait()
            begun = time.perf_counter()
            found = work()
            self._wait()
            seconds[part] = time.perf_counter() - begun
            return found

        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            output = timed("forward", lambda: self._model(self._images))
        loss = timed("loss", lambda: training_loss(output, self._labels).total)  # type: ignore[arg-type]
        timed("backward", lambda: self._scaler.scale(loss).backward())  # type: ignore[arg-type]
        timed("optimiser", lambda: (self._scaler.step(self._optimizer), self._scaler.update()))
        return seconds

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="hrnet_ocr_mscale")
    parser.add_argument("--crop", type=size, default=(256, 512), metavar="HxW")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    arguments = (options.arch, options.crop, options.batch, options.device, options.precision)
    ways = {
        "as it trains": {"last": True, "fused": True},
        "channels first": {"last": False, "fused": True},
        "one weight after another": {"last": True, "fused": False},
    }
    for name, way in ways.items():
        step = Step(*arguments, **way)
        step()
        runs = [step() for _ in range(options.repeats)]
        parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
        shown = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
        print(f"{name:26} {sum(parts.values()):6.2f} s a step: {shown}")
    step = Step(*arguments, **ways["as it trains"])
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with profile(activities=activities) as found:
        step()
    key = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=40))


if __name__ == "__main__":
    main()
