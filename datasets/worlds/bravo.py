"""Drawn photographs in the folders of the BRAVO challenge, named as its own are."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ...files import write_bytes
from .scene import draw_scene
from .style import STYLES

# Path, style, and which of three sizes: the one asked for, one with odd sides, or a small one.
_PICTURES = (
    *(
        (f"bravo_ACDC/{style}/test/drawn/drawn_frame_{number:06d}_rgb_anon.png", style, "whole")
        for number, style in enumerate(("fog", "night", "rain", "snow"), start=1)
    ),
    ("bravo_SMIYC/RoadAnomaly21/images/animal0001.jpg", "animal", "odd"),
    ("bravo_SMIYC/RoadObsticle21/images/obstacle0001.jpg", "obstacle", "odd"),
    ("bravo_synobjs/animal/1.png", "animal", "whole"),
    ("bravo_synobjs/obstacle/1.png", "obstacle", "whole"),
    ("bravo_outofcontext/drawn/drawn_000000_000001_leftImg8bit.png", "out of context", "whole"),
    ("bravo_synflare/drawn/drawn_000000_000001_leftImg8bit.png", "flare", "whole"),
    ("bravo_synrain/drawn/drawn_000000_000001_leftImg8bit.png", "raindrops", "small"),
    ("bravo_synrain/drawn/drawn_000000_000002_leftImg8bit.png", "raindrops", "small"),
)


def write_bravo(root: Path, *, seed: int = 0, size: tuple[int, int] = (192, 384)) -> list[Path]:
    """Write a dozen drawn photographs over the six subsets of BRAVO; the same seed gives the same bytes.

    Args:
        root: takes the place of ``bravo_1.0/``; files there that have the same names are replaced.
        seed: of the streets, not negative.
        size: (height, width) of most of them, at least (32, 32); those of SMIYC have odd sides, those of synrain
            are smaller.

    Returns:
        The files, in the order of their names.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a negative seed, or a size that is too small.
    """
    height, width = size
    sizes = {
        "whole": size,
        "odd": (int(height * 0.84) | 1, int(width * 0.785) | 1),
        "small": (height * 2 // 3, width * 2 // 3),
    }
    written = []
    for number, (name, style, kind) in enumerate(_PICTURES):
        scene = draw_scene(100 * seed + number, *sizes[kind], STYLES[style])
        file = io.BytesIO()
        Image.fromarray(scene.image).save(file, "JPEG" if name.endswith(".jpg") else "PNG", quality=92)
        write_bytes(root / name, file.getvalue())
        written.append(root / name)
    return sorted(written)
