"""What holds for every test: where modules come from, and which machine a test needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# With the repository's root on the path, `import datasets` would find ours instead of Hugging Face's,
# and the tests would not see that the package imports its own modules by a wrong name.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip themselves where torch sees no CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
