"""Calls that pass through a scheduler which has no use for torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hmsa_pipeline.pipeline.workers.pickled_call import pickle_call, run_pickled_call


def test_a_call_is_made_where_it_is_opened() -> None:
    np.testing.assert_array_equal(run_pickled_call(pickle_call(np.add, [1, 2], 3)), [4, 5])


def test_who_passes_it_on_imports_nothing_heavy() -> None:
    """Dask's scheduler unpacks the name of `run_pickled_call`, and for that imports its module."""
    heavy = "{'torch', 'numpy', 'zarr'}"
    script = f"import sys, hmsa_pipeline.pipeline.workers.pickled_call; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
