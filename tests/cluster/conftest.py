"""A real Slurm of two nodes on this machine, and a small project to run on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ..cli.conftest import fresh
from ..cli.test_workers import bench, reference, street

__all__ = ["bench", "fresh", "reference", "street"]

HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "setpriv")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running Slurm; its commands reach it through the environment."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs Slurm, whose {missing[0]} is not installed; see tests/cluster/README.md")
    if os.geteuid():
        pytest.skip("needs root, to start Slurm; see tests/cluster/README.md")
    folder = tmp_path_factory.mktemp("slurm")
    # Users of all kinds look below it.
    for above in (folder, *folder.parents[:2]):
        above.chmod(0o755)
    begun = subprocess.run([HERE / "start_slurm.sh", folder], capture_output=True, text=True, check=False)
    try:
        assert begun.returncode == 0, begun.stderr
        with mock.patch.dict(os.environ, {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}):
            yield folder
    finally:
        subprocess.run([HERE / "stop_slurm.sh", folder], capture_output=True, check=False)
