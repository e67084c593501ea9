"""The processes that read images: signals that reach them too do not end them, their parent does."""

from __future__ import annotations

import subprocess
import sys

LOADER = """
import os, sys, time
from pathlib import Path
import torch
from hmsa_pipeline.datasets.segmentation import Draw
from hmsa_pipeline.pipeline.train_data import Shares, batches, train_loader

class Frames(torch.utils.data.Dataset):
    root, pairs = Path(), []
    def __len__(self):
        return 9
    def __getitem__(self, draw):
        return torch.zeros(3, 4, 4), torch.zeros(4, 4), "a"

shares = Shares(1, 1, 0, 1)
shares.begin([Draw(0, 0)] * 9, 0)
loader = train_loader(Frames(), shares, 1, torch.device("cpu"))
found = batches(loader)
next(found)
(worker,) = [process.pid for process in loader._iterator._workers]
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


def ended(code: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], timeout=240, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stderr


def test_workers_end_with_their_parent() -> None:
    assert ended(LOADER + END) == (7, "")


def test_workers_outlive_the_signals_of_a_cluster() -> None:
    assert ended(LOADER + SIGNALS + END) == (7, "")
