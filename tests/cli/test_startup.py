"""Commands that compute nothing load none of the libraries that take long to load."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.submission.bravo_codec import encode

from .bench import Bench

HEAVY = {"torch", "torchvision", "zarr", "dask", "distributed", "matplotlib", "transformers"}


def loaded(*words: str) -> tuple[set[str], str]:
    """Which heavy libraries a command has loaded when it ends, and what it printed."""
    script = (
        f"import sys; sys.argv = {['hmsa-pipeline', *words]!r}\n"
        "from hmsa_pipeline.cli import main\n"
        "try: main()\n"
        f"finally: print(*sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done
    *said, names = done.stderr.splitlines()
    assert said == []
    return {*names.split()}, done.stdout


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    content = encode(draw.integers(0, 19, (8, 16)).astype(np.uint8), draw.integers(0, 65536, 5).astype(np.uint16))
    path = tmp_path / "submission.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("bravo_ACDC/fog/a_encoded.bin")
        info.size = len(content)
        archive.addfile(info, BytesIO(content))
    return path


def test_status(finished: Bench) -> None:
    names, out = loaded("status", "--manifest", str(finished.manifest))
    assert "4 / 4" in out
    assert names <= {"zarr"}


def test_verify_of_lossless_stores(finished: Bench) -> None:
    names, out = loaded("verify", "--manifest", str(finished.manifest))
    assert out.startswith("18 images are sound")
    assert names <= {"zarr"}


def test_check_of_a_submission(submission: Path) -> None:
    names, out = loaded("submit", "--check", str(submission))
    assert out.startswith("1 image is sound")
    assert names == set()


def test_check_of_a_manifest_with_usual_checkpoints(fresh: Bench) -> None:
    names, out = loaded("manifest", "check", "--manifest", str(fresh.manifest))
    assert out.count("ok ") == 5
    assert names == set()


def test_check_of_a_manifest_loads_torch_for_a_checkpoint_that_needs_it(empty: Bench) -> None:
    path = empty.root / "weights/ant.pth"
    torch.save({"model": torch.load(path, weights_only=False)["state_dict"]}, path)
    names, out = loaded("manifest", "check", "--manifest", str(empty.manifest))
    assert "ant.pth (1.6 MB); weights taken from 'model'" in out
    assert "torch" in names
