"""The program for dask-jobqueue in docs/cluster.md, with a batch system that runs jobs on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..documents import DOCS
from ..limits import PATIENCE
from .bench import Bench, ended, files, quiet
from .faults import wait_for
from .test_workers import IMAGES, bench, record, reference, shards, street

__all__ = ["bench", "reference", "street"]

# Two jobs run, the others wait in the queue, as where all nodes are taken.
SBATCH = """#!/bin/bash
number=1
until mkdir "$JOBS/$number" 2> "$JOBS/taken"; do number=$((number + 1)); done  # several are submitted at once
cp "${@: -1}" "$JOBS/$number.script"
if [ $number -le 2 ]; then
    CUDA_VISIBLE_DEVICES= setsid bash "$JOBS/$number.script" > "$JOBS/$number.log" 2>&1 < /dev/null &
    echo $! > "$JOBS/$number.pid"
fi
echo "Submitted batch job $number"
"""
SCANCEL = """#!/bin/bash
for number in "$@"; do
    touch "$JOBS/$number.cancelled"
    [ -e "$JOBS/$number.pid" ] && kill -TERM -- -$(cat "$JOBS/$number.pid")
done
true
"""


def _recipe() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "cluster.md").read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if "SLURMCluster" in block]
    return found


@pytest.mark.slow
def test_the_program_for_dask_jobqueue_brings_workers_that_dump(
    bench: Bench, reference: Bench, tmp_path: Path
) -> None:
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue, which nothing else needs, is not installed")
    (tmp_path / "bin").mkdir()
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "recipe.py").write_text(_recipe())
    plain = {"JOBS": str(jobs), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    recipe = subprocess.Popen(
        [sys.executable, "-P", "recipe.py"],
        cwd=tmp_path,
        env=os.environ | plain,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "recipe.log").open("w"),
    )
    try:
        assert recipe.stdout is not None
        line = recipe.stdout.readline()
        assert line.startswith("--scheduler tcp://"), (tmp_path / "recipe.log").read_text()
        result = ended(bench.start("dump", *line.split()))
        assert (result.code, quiet(result.err)) == (0, []), result
        assert shards(bench) == 2 * IMAGES
        assert files(bench.logits) == files(reference.logits)
        hands = {name for model in ("ant", "bee") for name in record(bench)[f"street/{model}"]["workers"]}
        assert hands and all(name.startswith("SLURMCluster-") for name in hands)
        scripts = [path.read_text() for path in jobs.glob("*.script")]
        assert len(scripts) == 8
        assert all("#SBATCH --gpus=1" in script and script.count("--cpus-per-task") == 1 for script in scripts)
        recipe.communicate("\n", timeout=PATIENCE)
        assert recipe.returncode == 0, (tmp_path / "recipe.log").read_text()
        wait_for(lambda: len(list(jobs.glob("*.cancelled"))) == 8)
    finally:
        recipe.kill()
        recipe.wait()
        for path in jobs.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)
