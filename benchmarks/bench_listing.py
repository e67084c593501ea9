"""CPU time of listing a large dataset with its masks: empty files in the layouts of Cityscapes, SHIFT and IDD.

    python benchmarks/bench_listing.py --images 20000

With ``--against`` another revision lists the same folders by turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from builds import BuildProcess, add_against, builds
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
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--turns", type=int, default=3)
    add_against(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, builds(options.against) as them:
        for layout in LAYOUTS:
            root = Path(folder, layout)
            for number in range(options.images):
                for name in names(layout, number):
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).touch()
            found: dict[str, list[float]] = {build.name: [] for build in them}
            for _ in range(options.turns):
                for build in them:
                    with BuildProcess(build) as process:
                        found[build.name].append(process.call(listed, root, layout, 1))
            medians = {name: statistics.median(seconds) for name, seconds in found.items()}
            for name, seconds in medians.items():
                print(f"{layout}, {name}: {seconds:.3f} s CPU for {options.images} images and masks")
            if len(them) > 1:
                print(f"{layout}: {medians['now'] / medians[options.against]:.2f}x the time")


if __name__ == "__main__":
    main()
