"""Functions that are applied to many files, in several processes."""

from __future__ import annotations

import subprocess
import sys

INTERRUPTED_WHILE_PROCESSES_START = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
from hmsa_pipeline.datasets.parallel import map_files
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    print(len(list(map_files(torch.is_tensor, range(100), 2))))  # the processes import torch before they work
except KeyboardInterrupt:
    print("interrupted")
time.sleep(3)  # what is left of them would complain meanwhile
"""


def test_ctrl_c_while_processes_start_ends_them_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_PROCESSES_START],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
