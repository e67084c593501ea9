"""Auto-labels of seven members at 1024x2048: `hmsa-pipeline autolabel` compared with `ensemble`.

    python benchmarks/bench_autolabel.py --images 8

Both run by turns on the same stores, each in a process of its own that has imported everything, over images that are
links to a few different ones, so that they lie in the page cache. Prints seconds, core seconds and memory of a whole
command, and the ratio to ``ensemble``. Every command makes all its files again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench_ensemble import prepare
from harness import compare, size, tell

CASES = {
    "ensemble": ["ensemble"],
    "--threshold 0.9": ["autolabel", "--threshold", "0.9"],
    "--threshold 0.9 --agree 5": ["autolabel", "--threshold", "0.9", "--agree", "5"],
    "--threshold 0.9 --erode 3": ["autolabel", "--threshold", "0.9", "--erode", "3"],
    "--keep 0.5": ["autolabel", "--keep", "0.5"],
}


def command(manifest: Path, words: list[str], workers: int) -> Callable[[], None]:
    """Work that runs a command in this process; several workers are processes of their own."""
    from hmsa_pipeline.cli import app

    name = "-".join(word.strip("-") for word in words)
    write = ["--write", str(manifest.parent / name), "--allow-empty"] if words[0] == "autolabel" else []
    argv = [*words, *write, "--manifest", str(manifest), "--overwrite", "--workers", str(workers)]

    def work() -> None:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            app(argv, standalone_mode=False)

    return work


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--different", type=int, default=2, help="images that are no links")
    parser.add_argument("--size", type=size, default=(1024, 2048), metavar="HxW")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepare(Path(folder), options.images, options.different, options.size, npz=False)
        cases = {name: partial(command, manifest, words, options.workers) for name, words in CASES.items()}
        tell(compare(cases, repeats=options.repeats), "ensemble", json_file=options.json, images=options.images)


if __name__ == "__main__":
    main()
