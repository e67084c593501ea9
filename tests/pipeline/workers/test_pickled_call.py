"""Calls that pass through a scheduler which has no use for torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hmsa_pipeline.pipeline.workers.pickled_call import opened, packed


def test_a_call_is_made_where_it_is_opened() -> None:
    np.testing.assert_array_equal(opened(packed(np.add, [1, 2], 3)), [4, 5])


def test_who_passes_it_on_imports_nothing_heavy() -> None:
    """Dask's scheduler unpacks the name of `opened`, and for that imports its module."""
    script = "import sys, hmsa_pipeline.pipeline.workers.pickled_call; print(sorted({'torch', 'numpy', 'zarr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
