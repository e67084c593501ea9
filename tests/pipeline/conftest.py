from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .stores import chunks_of_five, strips_of_eight


@pytest.fixture
def low_strips() -> Iterator[None]:
    """Strips of eight rows, so that small images have several."""
    with strips_of_eight():
        yield


@pytest.fixture
def short_chunks() -> Iterator[None]:
    """Chunks of five rows in the table of images."""
    with chunks_of_five():
        yield


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Where a test's store lies."""
    return tmp_path / "logits" / "street" / "ant.zarr"
