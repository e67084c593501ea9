"""Annotation files in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import DatasetError, cannot_read, reason


def read_json(path: Path) -> Any:
    """Parse a file; DatasetError if it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is no JSON ({reason(error)}); unpack it again") from error
