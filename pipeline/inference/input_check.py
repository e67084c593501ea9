"""Which of the checkpoints and images that a manifest names are there and can be used."""

from __future__ import annotations

from ...errors import HmsaError


def _said(error: HmsaError | OSError) -> str:
    return f"{error.filename}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
