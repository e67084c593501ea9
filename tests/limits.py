"""How long tests wait for what must come to pass."""

from __future__ import annotations

PATIENCE = 1800.0
"""Seconds after which something hangs, on however busy a machine; what is waited for is noticed at once."""
