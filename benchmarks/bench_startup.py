"""Commands that compute nothing, from the shell's prompt to their first line: what they import is what they take.

    python benchmarks/bench_startup.py --repeats 9
    python benchmarks/bench_startup.py --repeats 9 --against HEAD~10

`status` and `verify` of seven stores of two small images, `manifest check` of seven checkpoints of the tiny network
and two photographs, and `submit --check` of one small image, each in a process of its own, by turns. Prints seconds
to the first line, seconds of all cores, memory, and with ``--against`` the ratio to another revision's, on files of
its own.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
from bench_ensemble import prepare
from bench_scale import world
from builds import NOW, Build, BuildProcess, Ran, add_against, builds, run_command
from harness import machine
from hmsa_pipeline.pipeline.submission.bravo_codec import encode

TARGET = 0.25
SHAPE = (64, 128)
MEMBERS, IMAGES = 7, 2


def write_submission(path: Path) -> None:
    """One image of the challenge, predicted."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 19, SHAPE).astype(np.uint8)
    content = encode(label, draw.integers(0, 65536, 100).astype(np.uint16))
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("bravo_ACDC/rgb_anon/fog/test/GOPR0475/GOPR0475_frame_000247_encoded.bin")
        info.size = len(content)
        archive.addfile(info, BytesIO(content))


def commands_of(build: Build, root: Path) -> dict[str, list[str | Path]]:
    """Each command's words, on files that the build itself wrote below ``root``."""
    stores, checkpoints, submission = root / "stores", root / "checkpoints", root / "submission.tar"
    for folder in (stores, checkpoints):
        folder.mkdir(parents=True)
    with BuildProcess(build) as process:
        of_stores = process.call(prepare, stores, IMAGES, IMAGES, SHAPE, "lossless")
        of_checkpoints = process.call(world, checkpoints, IMAGES, MEMBERS)
    write_submission(submission)
    return {
        "--version": ["--version"],
        "status": ["status", "--manifest", of_stores],
        "verify": ["verify", "--manifest", of_stores],
        "manifest check": ["manifest", "check", "--manifest", of_checkpoints],
        "submit --check": ["submit", "--check", submission],
    }


def line(name: str, runs: list[Ran], base: list[Ran] | None) -> str:
    """One row: medians, and their ratios to those of the other build."""

    def median(of: list[Ran], field: str) -> float:
        return statistics.median(getattr(run, field) for run in of)

    firsts = [run.first for run in runs]
    found = (
        f"{name:28} {median(runs, 'first'):.2f} s to the first line ({min(firsts):.2f} to {max(firsts):.2f}), "
        f"{median(runs, 'cores'):.2f} core s, {1000 * median(runs, 'memory'):.0f} MB"
    )
    if base is None:
        return found
    ratios = [median(runs, field) / median(base, field) for field in ("first", "cores")]
    return f"{found}  {ratios[0]:.2f}x time, {ratios[1]:.2f}x core s (target {TARGET}x)"


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    add_against(parser)
    options = parser.parse_args()
    print(machine())
    with builds(options.against) as them, tempfile.TemporaryDirectory() as folder:
        words = {build: commands_of(build, Path(folder, str(number))) for number, build in enumerate(them)}
        for command in words[NOW]:
            runs: dict[Build, list[Ran]] = {build: [] for build in them}
            for turn in range(1 + options.repeats):
                for build in them:
                    ran = run_command(build, words[build][command], every=0.02)
                    if turn:  # the first one fills the page cache
                        runs[build].append(ran)
            for build in them:
                base = runs[them[0]] if build != them[0] else None
                print(line(command if len(them) == 1 else f"{command}, {build.name}", runs[build], base), flush=True)


if __name__ == "__main__":
    main()
