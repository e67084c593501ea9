"""Street scenes drawn by rule, with their masks: for those who have no photographs at hand, and for tests."""

from .bravo import write_bravo
from .scene import Scene, draw_scene
from .style import STYLES, Style

__all__ = ["STYLES", "Scene", "Style", "draw_scene", "write_bravo"]
