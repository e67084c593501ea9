"""How plots look, whatever they show."""

from __future__ import annotations

from typing import Any

PLOT_SETTINGS: Any = {
    "svg.hashsalt": "hmsa-pipeline",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
"""Settings of matplotlib."""
