"""Street scenes drawn by rule, with their masks: for those who have no photographs at hand, and for tests."""

from .dataset_frames import LOOKS, SPLITS, DatasetLook, Frame, draw_frame
from .scene import Scene, draw_scene
from .style import STYLES, Style
from .write_bravo import write_bravo
from .write_datasets import write_source

__all__ = [
    "LOOKS",
    "SPLITS",
    "STYLES",
    "DatasetLook",
    "Frame",
    "Scene",
    "Style",
    "draw_frame",
    "draw_scene",
    "write_bravo",
    "write_source",
]
