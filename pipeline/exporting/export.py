"""The stage ``export``: a member's network becomes a graph, which is run and compared with the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datasets.decode.tensors import MEAN, STD, normalise
from ...errors import CheckpointError, HmsaError, ManifestError, nearest, reason
from ...files import atomic_path
from ...models.export.image_graph import ImageGraph
from ...models.export.write_graph import FORMATS, files_of, open_graph, require_libraries, write_graph
from ...models.hmsa import OCRNet
from ...models.prepare_inference import prepare_for_inference
from ...models.registry import ARCHITECTURES
from ..config.manifest import Manifest
from ..config.member import Member
from ..inference.member_check import MemberChecks
from ..inference.member_network import load_network, network_classes

LOGITS, PREDICTION = "logits", "prediction"
RESULTS = (LOGITS, PREDICTION)
SIZES = ((96, 160), (97, 129), (150, 71))
"""Height and width of the images that a file is tried on: one as the graph was made with, two odd ones."""
TOLERANCE = 1e-3
"""Largest difference of logits, or of probabilities, that rounding explains."""


@dataclass(frozen=True)
class ExportPlan:
    """A member, and what becomes of it.

    Attributes:
        member: of the manifest.
        names: of the classes that the network scores.
        path: of the file.
        kind: a key of `FORMATS`.
        result: `LOGITS`, raw as in a store, or `PREDICTION`, with the member's temperature.
        scales, flip: how an image is looked at.
        manifest: that the member is of.
    """

    member: Member
    names: tuple[str, ...]
    path: Path
    kind: str
    result: str
    scales: tuple[float, ...]
    flip: bool
    manifest: Manifest


@dataclass(frozen=True)
class ExportResult:
    """The file that was written, and how it compares with the network on noise of the sizes `SIZES`.

    Attributes:
        file: its path.
        bytes: its size, of OpenVINO's with its weights.
        difference: the largest one of logits, or of probabilities.
        same: the share of pixels of the same class.
    """

    file: str
    bytes: int
    difference: float
    same: float

    def as_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def plan_export(manifest: Manifest, path: Path, *, kind: str | None, result: str, overwrite: bool) -> ExportPlan:
    """Check the member, its checkpoint, the format and its libraries.

    Args:
        manifest: its only member is exported.
        path: of the file.
        kind: a key of `FORMATS`; None for the one that the file's ending says.
        result: one of `RESULTS`.
        overwrite: weights that stand beside the path may be replaced.

    Raises:
        HmsaError: the format is unknown, the file's ending belongs to another one, or weights are there already.
        ManifestError: it has several members, the network is of another library or drops features, a
            scale cannot be part of a graph, or a library is missing.
        CheckpointError: its checkpoint does not fit.
    """
    kind = _format(path, kind)
    there = [file for file in files_of(path, kind) if file != path and file.exists()]
    if there and not overwrite:
        said = f"its weights, {there[0]}, are there already; name another file, or add --overwrite"
        raise HmsaError(f"--write {path}: {said}")
    member = _member(manifest)
    where = f"model '{member.name}'"
    if member.arch not in ARCHITECTURES:
        raise ManifestError(
            f"{where}: is a network of another library (arch: {member.arch}); export it with that library"
        )
    sample = member.sample
    if sample is not None and sample.dropout is not None:
        raise ManifestError(
            f"{where}: draws random numbers for dropout, which a graph does not; export the model itself"
        )
    if sample is not None and sample.ending:
        raise ManifestError(f"{where}: is a view of another model; export that one")
    if result == PREDICTION and member.calibration:
        raise ManifestError(
            f"{where}: its calibration, unlike one temperature, is no part of a graph; "
            "take --result logits, or remove it"
        )
    options = member.options(manifest.inference)
    require_libraries(kind)
    MemberChecks(manifest.class_set).check(member, "fp32")
    count, table = network_classes(member, manifest.class_set)
    names = manifest.class_set.names if table is None else table.names
    assert len(names) == count
    return ExportPlan(member, tuple(names), path, kind, result, tuple(options.scales), options.flip, manifest)


def _format(path: Path, kind: str | None) -> str:
    if kind is not None and kind not in FORMATS:
        raise HmsaError(f"--format {kind}: is none; {nearest(kind, FORMATS)}")
    if kind is None:
        found = [name for name, ending in FORMATS.items() if path.suffix == ending]
        if not found:
            endings = ", ".join(f"{ending} ({name})" for name, ending in FORMATS.items())
            raise HmsaError(
                f"--write {path}: no format ends so; name a file that ends in {endings}, or give --format"
            )
        return found[0]
    if path.suffix != FORMATS[kind]:
        raise HmsaError(f"--write {path}: files of --format {kind} end in {FORMATS[kind]}; name it so")
    return kind


def _member(manifest: Manifest) -> Member:
    names = [member.name for member in manifest.models]
    if len(names) > 1:
        raise ManifestError(f"--models: name the one that is exported, of {', '.join(names)}")
    return manifest.models[0]


@torch.no_grad()
def export(plan: ExportPlan) -> ExportResult:
    """Write the file, run it, and compare it with the network.

    Nothing is left at the path if the comparison fails; what was there before stays.

    Raises:
        CheckpointError: the checkpoint cannot be read, no graph can be made of the network, or the file gives
            something else.
        ManifestError: a scale cannot be part of a graph.
        HmsaError: the file cannot be written.
    """
    network = load_network(plan.member, plan.manifest.class_set)
    assert isinstance(network, OCRNet)
    network = prepare_for_inference(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    temperature = plan.member.temperature if plan.result == PREDICTION else None
    try:
        graph = ImageGraph(network, plan.scales, flip=plan.flip, mean=MEAN, std=STD, temperature=temperature)
    except ValueError as error:
        raise ManifestError(f"model '{plan.member.name}': inference.scales: {error}") from error
    try:
        with ExitStack() as stack:
            # Entered in turn and left the other way round: the last file that gets its name is the graph.
            files = [stack.enter_context(atomic_path(file)) for file in reversed(files_of(plan.path, plan.kind))]
            files.reverse()
            with torch.enable_grad():
                write_graph(graph, files, plan.kind, plan.names)
            difference, same = _compared(plan, network, files)
            size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise HmsaError(f"--write {plan.path}: cannot be written ({reason(error)}); name another file") from error
    return ExportResult(str(plan.path), size, difference, same)


def _compared(plan: ExportPlan, network: OCRNet, files: Sequence[Path]) -> tuple[float, float]:
    """Largest difference and share of equal classes, over images of noise; CheckpointError if they are too far."""
    run = open_graph(files, plan.kind)
    generator = torch.Generator().manual_seed(0)
    differences, shares = [], []
    for size in SIZES:
        image = torch.randint(256, (1, 3, *size), generator=generator, dtype=torch.uint8)
        logits = network.predict(normalise(image), plan.scales, plan.flip)
        difference, other, sure = _distance(plan, run(image), logits)
        if not difference <= TOLERANCE or bool((other & sure).any()):
            raise CheckpointError(
                f"{plan.path}: the graph gives {difference:.2g} more or less than the network for an image of "
                f"{size[0]}x{size[1]}, and another class on {100 * other.float().mean().item():.2f} % of the pixels; "
                "take another --format"
            )
        differences.append(difference)
        shares.append(1 - other.float().mean().item())
    return max(differences), min(shares)


def _distance(plan: ExportPlan, outputs: Sequence[Tensor], logits: Tensor) -> tuple[float, Tensor, Tensor]:
    """Largest difference; where the class is another one, and where rounding cannot change it: (1, H, W) bool."""
    (first, second), wanted = logits.topk(2, dim=1).values[0], logits.argmax(1)
    sure = (first - second > 2 * TOLERANCE)[None]
    if plan.result == LOGITS:
        (found,) = outputs
        classes, values, expected = found.argmax(1), found, logits
    else:
        classes, values = outputs
        expected = (logits / plan.member.temperature).softmax(1).amax(1)
    if values.shape != expected.shape:
        return float("nan"), torch.ones_like(sure), sure
    return (values - expected).abs().max().item(), classes.long() != wanted, sure


def member_lines(plan: ExportPlan) -> list[str]:
    """Write the model of a manifest that runs the file, as YAML; none for OpenVINO's, which no member runs."""
    if plan.kind == "openvino":
        return []
    lines = [f"- name: {plan.member.name}", f"  arch: {plan.kind}", f"  checkpoint: {plan.path}"]
    lines += ["  mean: [0, 0, 0]", "  std: [1, 1, 1]"]
    if plan.kind == "exported":
        lines.append(f"  classes: [{', '.join(plan.names)}]")
    return [*lines, "  inference: {scales: [1.0], flip: false}"]
