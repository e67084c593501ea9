"""The processes that read images: signals that reach them too do not end them, their parent does."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from ...limits import PATIENCE

FRAMES = """
from pathlib import Path
import torch

class Frames(torch.utils.data.Dataset):
    root, pairs = Path(), []
    def __len__(self):
        return 9
    def __getitem__(self, draw):
        return torch.zeros(3, 4, 4), torch.zeros(4, 4), str(torch.__file__), {}
"""
LOADER = """
import os, sys, time, warnings
import torch
from hmsa_pipeline.datasets.segmentation_dataset import SampleRequest
from hmsa_pipeline.pipeline.training.batches import StepSampler, batches, batch_loader
sys.path.insert(0, {folder!r})
from frames import Frames

warnings.simplefilter("error")
sampler = StepSampler(1, 1, 0, 1)
sampler.begin([SampleRequest(0, 0)] * 9, 0)
loader = batch_loader(Frames(), sampler, 1, torch.device("cpu"))
found = batches(loader)
next(found)
(worker,) = [process.pid for process in loader._iterator._workers]
print(worker, flush=True)
"""
SIGNALS = """
os.system(f"kill -TERM {worker}; kill -INT {worker}")
time.sleep(0.2)
assert len(list(found)) == 8
"""
# What still refers to the loader when Python ends keeps its workers alive until then: a traceback does.
END = """
kept = [loader, found]
sys.exit(7)
"""


# The signals of a terminal or a cluster reach all processes of a group, that which workers are forked from too.
GROUP = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
for number in (15, 2):  # from elsewhere: what the parent itself sends ends a worker
    kill = f"import os; os.killpg({os.getpgrp()}, {number})"
    subprocess.run([sys.executable, "-c", kill], check=True, start_new_session=True)
time.sleep(0.2)
assert len(list(found)) == 8
assert loader._iterator._workers[0].is_alive()
"""
WAIT = """
time.sleep(60)
"""


def begun(folder: Path, code: str) -> subprocess.Popen[str]:
    (folder / "frames.py").write_text(FRAMES)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", LOADER.replace("{folder!r}", repr(str(folder))) + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(folder: Path, code: str) -> tuple[int, str]:
    process = begun(folder, code)
    _, err = process.communicate(timeout=PATIENCE)
    assert group(process.pid) == []
    return process.returncode, err


def group(number: int) -> list[int]:
    """The processes of a group that still run, waiting a while for their end."""
    until = time.monotonic() + PATIENCE
    while True:
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == number and state != "Z":
                    left.append(int(stat.parent.name))
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    assert ended(tmp_path, END) == (7, "")


def test_workers_outlive_the_signals_of_a_cluster(tmp_path: Path) -> None:
    assert ended(tmp_path, SIGNALS + END) == (7, "")
    assert ended(tmp_path, GROUP + END) == (7, "")


def test_workers_of_a_killed_parent_end(tmp_path: Path) -> None:
    """Its children are not the parent's own: nothing but a pipe tells them."""
    process = begun(tmp_path, WAIT)
    assert process.stdout is not None
    assert Path(f"/proc/{int(process.stdout.readline())}").exists()
    process.kill()
    process.wait()
    assert group(process.pid) == []


def test_a_worker_is_no_copy_of_a_process_with_threads(tmp_path: Path) -> None:
    process = begun(tmp_path, WAIT)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != process.pid
    process.kill()
    process.wait()
