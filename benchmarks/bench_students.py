"""One student from an ensemble of teachers: without them, with their labels, and with their probabilities.

For each seed draws labelled streets of one dataset in fair weather and unlabelled photographs in the target sets'
weather, labels the latter with the demo's seven members, and trains the tiny network (a) on the labels alone, (b)
with hard auto-labels from several confidences, (c) with class-balanced ones, (d) with the members' probabilities, in
the mean and as a distribution, whose confidence is that of its energy, too. "distilled alone" sees no labels.
Students and (e) the ensemble are scored on a target set of yet another seed: mIoU, AUROC of confidence for right
against wrong pixels, ECE. All students of a seed see the same number of images. The networks are scored by
themselves, in float32 and without stores.

    python benchmarks/bench_students.py --folder students --seeds 0 1 2
    python benchmarks/bench_students.py --folder tried --seeds 0 --labelled 4 --dozens 1 --exam 1 --epochs 1
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from demo_exams import FIGURES, Counts, count, figures, masks_of, read_masks, top
from hmsa_pipeline.datasets.dataset_specs import NAMES, dataset_spec
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.synthetic.write_bravo import write_bravo
from hmsa_pipeline.models.checkpoint import load_weights
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.load_manifest import SHIPPED
from PIL import Image

ARCH = "hrnet_tiny_ocr_mscale"
DATASET, EXTRA = "cityscapes", "extra"
SCALES = [0.5, 1.0]
THRESHOLDS = (0.5, 0.7, 0.9)
KEPT = 0.5
DISTRIBUTION, ALONE = "distribution", "distilled alone"
SIZE, CROP = (144, 288), [128, 224]
EXAM_SEED, EXTRA_SEED = 1000, 2000  # far from the seeds of whatever was trained on


def main() -> None:
    """Draw, label, train, score, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="everything goes there; what is there is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=120, help="labelled photographs")
    parser.add_argument("--dozens", type=int, default=10, help="dozens of unlabelled photographs")
    parser.add_argument("--exam", type=int, default=4, help="dozens of photographs to be scored on")
    parser.add_argument("--epochs", type=int, default=8, help="of every student, of as many images as are labelled")
    parser.add_argument("--temperature", type=float, default=2.0, help="of distillation")
    parser.add_argument("--init", choices=[*NAMES, "random"], default="random", help="a member to begin with")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate, of the members too")
    parser.add_argument("--students", nargs="+", help="only these")
    parser.add_argument("--json", type=Path, help="write the figures there")
    words = parser.parse_args()
    found: dict[int, dict[str, dict[str, float]]] = {}
    for seed in words.seeds:
        found[seed] = one_seed(words, seed, words.folder.absolute() / str(seed))
        print_seed(seed, found[seed])
    print_all(found)
    if words.json:
        words.json.write_text(json.dumps(found, indent=1))


def one_seed(words: argparse.Namespace, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Figures of all students of one seed, and of the ensemble."""
    folder.mkdir(parents=True, exist_ok=True)
    root = draw(folder, seed, words.labelled, words.dozens)
    teachers = write_manifest(folder, root)
    run(folder, "dump", "--manifest", teachers, "--device", "cpu")
    chosen = [one for one in students(folder, root, words.temperature) if one[0] in (words.students or [one[0]])]
    if any("autolabel" in str(data) for _, data, _ in chosen):
        label(folder, teachers)
    weights = {name: train(folder, name, seed, words, data, loss) for name, data, loss in chosen}
    truth = folder / "truth.tar"
    paths = write_bravo(folder / "exam", seed=EXAM_SEED + seed, size=SIZE, each=words.exam, truth=truth)
    return score(folder / "exam", paths, truth, weights, words.temperature)


def draw(folder: Path, seed: int, labelled: int, dozens: int) -> Path:
    """Labelled streets, and unlabelled ones in the target sets' weather as the split train_extra beside them."""
    root = folder / "data" / dataset_spec(DATASET).folder
    if not root.exists():
        numbers = ("--train", labelled, "--val", 8, "--size", "x".join(map(str, SIZE)), "--seed", 10 + seed)
        # Fair weather alone; a dataset's own look has some of the target sets' conditions.
        run(folder, "datasets", "draw", DATASET, "--output", folder / "data", "--style", "clear", *numbers)
    extra = root / "leftImg8bit_trainextra/leftImg8bit/train_extra/drawn"
    if not extra.exists():
        drawn = folder / "drawn"
        for number, path in enumerate(write_bravo(drawn, seed=EXTRA_SEED + seed, size=SIZE, each=dozens)):
            target = extra / f"drawn_{number:06d}_000000_leftImg8bit.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, target)
        shutil.rmtree(drawn)
    return root


def write_png(source: Path, target: Path) -> None:
    """Copy a photograph; some of the target sets' are JPEG."""
    with Image.open(source) as picture:
        picture.convert("RGB").save(target)


def write_manifest(folder: Path, root: Path) -> Path:
    """The demo's members, and the unlabelled photographs."""
    tree = {
        "version": 1,
        "output": str(folder / "teachers"),
        "inference": {"scales": SCALES},
        "models": [
            {"name": name, "arch": ARCH, "checkpoint": str(SHIPPED / "demo" / f"{name}.safetensors")}
            for name in NAMES
        ],
        "datasets": [{"name": EXTRA, "type": DATASET, "root": str(root), "split": "train_extra"}],
    }
    path = folder / "teachers.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def member_weights(name: str) -> Path:
    """Weights of a member of the demo."""
    return SHIPPED / "demo" / f"{name}.safetensors"


def label(folder: Path, teachers: Path) -> None:
    """Auto-labels from the lowest confidence on, and class-balanced ones."""
    for name, rule in (("confident", ("--threshold", THRESHOLDS[0])), ("balanced", ("--keep", KEPT))):
        if not (folder / name).exists():
            run(folder, "autolabel", "--manifest", teachers, "--write", folder / name, *rule, "--allow-empty")


def students(folder: Path, root: Path, temperature: float) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Name, data and loss of every student."""
    own = {"type": DATASET, "root": str(root)}
    extra = {**own, "train": "train_extra", "share": 0.5}
    half = {**own, "share": 0.5}
    plain = {"criterion": "cross_entropy", "scales": 0.05}

    def auto(name: str, **more: Any) -> list[dict[str, Any]]:
        return [half, {**extra, "labels": f"autolabel {folder / name}", **more}]

    def soft(**more: Any) -> dict[str, Any]:
        return {**plain, "distillation": {"stores": str(folder / "teachers"), "temperature": temperature, **more}}

    unlabelled = [half, {**extra, "labels": "none"}]
    return [
        ("without", [own], plain),
        *((f"confidence {t:g}", auto("confident", threshold=t), plain) for t in THRESHOLDS),
        ("balanced", auto("balanced"), plain),
        ("distilled", unlabelled, soft()),
        (ALONE, [{**extra, "share": 1.0, "labels": "none"}], soft()),
        (DISTRIBUTION, unlabelled, soft(target="distribution", weight=0.05)),
    ]


def train(
    folder: Path,
    name: str,
    seed: int,
    words: argparse.Namespace,
    data: list[dict[str, Any]],
    loss: dict[str, Any],
) -> Path:
    """The last weights of a student, which begins with those of a member or with random ones."""
    output = folder / "students" / name.replace(" ", "-")
    recipe = {
        "version": 1,
        "output": str(output),
        "arch": ARCH,
        "data": data,
        **({} if words.init == "random" else {"init": {"checkpoint": str(member_weights(words.init))}}),
        "epochs": words.epochs,
        "global_batch": 4,
        "batch_size": 4,
        "precision": "fp32",
        "batch_norm": "local",
        "dropout": 0.0,
        "workers": 0,
        "seed": seed,
        "augmentation": {"crop": CROP, "scale": [0.6, 1.5], "color_jitter": 0.25},
        "sampling": {"class_uniform": 0.5, "tile": 64},
        "loss": loss,
        "optimizer": {"name": "adamw", "lr": words.lr, "weight_decay": 0.01},
        "schedule": {"exponent": 1.0},
        # Only the last epoch is scored: the best one would be picked by streets in fair weather.
        "validation": {"every": words.epochs, "scales": [1.0]},
    }
    path = output.with_name(f"{output.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    run(folder, "train", "--manifest", path, "--device", "cpu", "--resume")
    return output / "best_weights.pth"


def score(
    exam: Path, paths: list[Path], truth: Path, weights: dict[str, Path], temperature: float
) -> dict[str, dict[str, float]]:
    """Figures of students, members and ensemble on a target set, and seconds an image takes."""
    networks = {name: (path, build(ARCH)) for name, path in weights.items()}
    networks |= {f"member {name}": (member_weights(name), build(ARCH)) for name in NAMES}
    for path, network in networks.values():
        load_weights(network, path, ARCH)
    masks = read_masks(truth)
    counts: dict[str, Counts] = {}
    seconds = dict.fromkeys([*networks, "ensemble"], 0.0)
    for path in paths:
        if path.is_relative_to(exam / "bravo_SMIYC"):  # nobody labelled the classes there
            continue
        pixels = normalise(decode_image(path)[None])
        beliefs = {}
        for name, (_, network) in networks.items():
            start = time.perf_counter()
            with torch.inference_mode():
                scores = network.predict(pixels, SCALES)[0].double() / (temperature if name == DISTRIBUTION else 1)
                beliefs[name] = scores.softmax(0)
            seconds[name] += time.perf_counter() - start
            if name == DISTRIBUTION:
                energy = scores.logsumexp(0)
                precision = 0.5 + 0.5 * energy / (1 + energy.abs())  # as ensemble.confidence: energy
        members = [name for name in beliefs if name.startswith("member ")]
        beliefs["ensemble"] = torch.stack([beliefs[name] for name in members]).mean(0)
        seconds["ensemble"] = sum(seconds[name] for name in members)
        ids, invalid = masks_of(str(path.relative_to(exam)), masks)
        answers = {name: top(belief) for name, belief in beliefs.items()}
        if DISTRIBUTION in answers:
            answers[f"{DISTRIBUTION}, energy"] = answers[DISTRIBUTION][0], precision
            seconds[f"{DISTRIBUTION}, energy"] = seconds[DISTRIBUTION]
        for name, (answer, confidence) in answers.items():
            known = (ids != 255) & (invalid != 1)
            count(counts.setdefault(name, Counts([], [])), answer.numpy(), confidence.numpy(), ids, known)
    found = {
        name: dict(zip(FIGURES, map(float, figures(one)), strict=True))
        | {"seconds": seconds[name] / len(one.confusion)}
        for name, one in counts.items()
    }
    alone = [found.pop(name) for name in [*found] if name.startswith("member ")]
    return found | {"mean member": {key: statistics.fmean(one[key] for one in alone) for key in alone[0]}}


def run(folder: Path, *words: object) -> None:
    """A command of the package, whose output goes into a log."""
    with (folder / "log.txt").open("a") as log:
        line = [sys.executable, "-P", "-m", "hmsa_pipeline.cli", *map(str, words)]
        subprocess.run(line, check=True, stdout=log, stderr=subprocess.STDOUT)


def print_seed(seed: int, found: dict[str, dict[str, float]]) -> None:
    """A line for each subject."""
    for name, row in found.items():
        said = ", ".join(f"{key} {row[key]:.3f}" for key in FIGURES)
        print(f"seed {seed} {name}: {said}, {1000 * row['seconds']:.0f} ms an image", flush=True)


def print_all(found: dict[int, dict[str, dict[str, float]]]) -> None:
    """Means over the seeds, and what each student gains, as tables."""
    rows = [*found.values()]
    names = [name for name in rows[0] if all(name in one for one in rows)]

    def mean(name: str, key: str) -> float:
        return statistics.fmean(one[name][key] for one in rows)

    print("\n| subject | " + " | ".join(FIGURES) + " | ms an image | mIoU over 'without', least of the seeds |")
    print("|---|---|---|---|---|---|")
    for name in names:
        least = min((one[name]["mIoU"] - one["without"]["mIoU"] for one in rows if "without" in one), default=0.0)
        values = " | ".join(f"{mean(name, key):.3f}" for key in FIGURES)
        print(f"| {name} | {values} | {1000 * mean(name, 'seconds'):.0f} | {least:+.3f} |")
    if "distilled" in names:
        gain = mean("ensemble", "mIoU") - mean("mean member", "mIoU")
        kept = (mean("distilled", "mIoU") - mean("mean member", "mIoU")) / gain if gain else float("nan")
        cost = mean("distilled", "seconds") / mean("ensemble", "seconds")
        print(
            f"\nof the ensemble's gain of {gain:+.3f} over the mean member the distilled student has "
            f"{100 * kept:.0f} %, at {cost:.2f} of its time"
        )


if __name__ == "__main__":
    main()
