"""CPU time of listing a large dataset with its masks: empty files in the layouts of Cityscapes, SHIFT and IDD.

    python benchmarks/bench_listing.py --images 20000

Another version is measured by turns with ``PYTHONPATH`` set to a folder in which ``hmsa_pipeline`` links to it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from hmsa_pipeline.datasets.layout.image_mask_pairs import find_pairs

LAYOUTS = ("cityscapes", "shift", "idd")


def names(layout: str, number: int) -> tuple[str, str]:
    """Image and mask of one number, relative to the root."""
    group = f"{number // 200:03d}"
    if layout == "cityscapes":
        stem = f"train/{group}/{group}_{number:06d}_000019"
        return f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
    if layout == "idd":
        stem = f"train/{group}/{number:06d}"
        return f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_polygons.json"
    stem = f"discrete/images/train/front/{number // 50:04x}-17fb/{number:08d}"
    return f"{stem}_img_front.jpg", f"{stem}_semseg_front.png"


def listed(root: Path, layout: str, turns: int) -> float:
    """Seconds of CPU time, the least of some turns; the first one, which reads the facts, does not count."""
    times = []
    for _ in range(turns + 1):
        start = time.process_time()
        pairs, alone = find_pairs(root, layout, "train")
        times.append(time.process_time() - start)
        assert pairs and not alone
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for layout in LAYOUTS:
            root = Path(folder, layout)
            for number in range(args.images):
                for name in names(layout, number):
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).touch()
            print(f"{layout}: {listed(root, layout, args.turns):.3f} s CPU for {args.images} images and masks")


if __name__ == "__main__":
    main()
