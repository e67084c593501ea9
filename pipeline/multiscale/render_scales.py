"""The stage of ``render`` that runs networks: attention between scales, and each scale's own prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...datasets.class_set import ClassSet
from ...datasets.decode.tensors import decode_image
from ...datasets.layout.folder_layout import located
from ...errors import DatasetError, ManifestError, disk_error
from ...files import atomic_path
from ..config.manifest import Manifest, select
from ..config.member import Member
from ..fusion.prediction_files import prediction_names
from ..inference.plan import InferencePlan
from ..pictures.colours import class_colours, heat_map
from ..pictures.sheet import member_sheet
from ..runtime.device import is_out_of_memory
from ..runtime.progress import Progress
from .scale_maps import ScaleMaps, ScaleNetwork, has_attention

_TILE = 480  # width of a picture on a sheet, at most


@dataclass(frozen=True)
class ScalesPlan:
    """The networks to run, and the photographs to run them on.

    Attributes:
        checked: members, datasets and device, checked as `predict` checks them.
        target: the folder of the pictures.
        kinds: which of `multiscale.SCALE_KINDS`.
        width: of a picture on a sheet; None for its own, at most 480 pixels.
    """

    checked: InferencePlan
    target: Path
    kinds: tuple[str, ...]
    width: int | None


@dataclass
class ScalesResult:
    """Pictures of one member's scales over one dataset.

    Attributes:
        shares: scale -> its mean share in the blend, over all pixels.
        failed: images of which there are no pictures -> reasons.
    """

    dataset: str
    model: str
    pictures: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def plan_scales(
    manifest: Manifest,
    target: Path,
    kinds: Sequence[str],
    device: torch.device,
    *,
    models: Sequence[str] | None,
    width: int | None,
    limit: int | None,
) -> ScalesPlan:
    """Check networks and photographs; nothing is run.

    Args:
        manifest: its models and datasets.
        target: the folder of all pictures.
        kinds: which of `multiscale.SCALE_KINDS`.
        device: the networks run on.
        models: names of the members; None for all whose network blends several scales by attention.
        width: of a picture on a sheet.
        limit: images per dataset, from the first; None for all.

    Raises:
        ManifestError: no member, or not every one of ``models``, blends several scales by attention.
        HmsaError: a checkpoint or dataset cannot be used.
    """
    reasons = {member.name: _why_not(member, manifest) for member in manifest.models}
    if models is None:
        chosen = tuple(member for member in manifest.models if reasons[member.name] is None)
    else:
        chosen = select("model", manifest.models, models)
    wrong = [member.name for member in chosen if reasons[member.name]] or ([] if chosen else [next(iter(reasons))])
    if wrong:
        raise ManifestError(f"model '{wrong[0]}': {reasons[wrong[0]]}; --kinds {','.join(kinds)} needs one")
    checked = InferencePlan.check(manifest, chosen, device, limit=limit, overwrite=False)
    return ScalesPlan(checked, target, tuple(kinds), width)


def _why_not(member: Member, manifest: Manifest) -> str | None:
    if not has_attention(member):
        return f"a network of arch {member.arch} has no attention between scales"
    if len(member.options(manifest.inference).scales) < 2:
        return "looks at one scale, and blends nothing (inference.scales)"
    return None


def run_scales(plan: ScalesPlan) -> list[ScalesResult]:
    """Run the networks one after another, and draw; images that cannot be used are listed, the others are drawn.

    DiskError if a picture cannot be written.
    """
    checked = plan.checked
    results = []
    photographs = [looked.photographs[: checked.limit] for looked in checked.surveys]
    total = len(checked.members) * sum(map(len, photographs))
    with Progress(total) as progress:
        for member, _ in checked.members:
            network = ScaleNetwork(checked.device, checked.options, member, checked.manifest.class_set)
            for looked, photos in zip(checked.surveys, photographs, strict=True):
                result = ScalesResult(looked.dataset.name, member.name)
                pixels, sums = 0, np.zeros(0)
                progress.job(f"{result.dataset}/{result.model}", len(photos))
                for photo in photos:
                    try:
                        image = decode_image(located(looked.dataset.root_path(), photo.path), looked.dataset.exif)
                        maps = _run(network, image, photo.path)
                    except DatasetError as error:
                        result.failed[photo.path] = str(error)
                        progress.advance()
                        continue
                    _draw(plan, result, photo.path, image.permute(1, 2, 0).numpy(), maps)
                    summed = maps.shares.double().sum((1, 2)).numpy()
                    pixels, sums = pixels + maps.blended.numel(), summed if not pixels else sums + summed
                    result.shares = dict(zip(map(str, maps.scales), (sums / pixels).round(6).tolist(), strict=True))
                    progress.advance()
                results.append(result)
    return results


def _run(network: ScaleNetwork, image: torch.Tensor, path: str) -> ScaleMaps:
    try:
        return network(image)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise DatasetError(f"{path}: does not fit into the device's memory; take --device cpu")


def _draw(plan: ScalesPlan, result: ScalesResult, path: str, photograph: np.ndarray, maps: ScaleMaps) -> None:
    classes = plan.checked.manifest.class_set
    stem = prediction_names(path)[0].removesuffix("_pred.png")
    for kind in plan.kinds:
        sheet = member_sheet(
            [("photograph", photograph), *_tiles(kind, maps, classes)],
            min(plan.width or _TILE, photograph.shape[1]),
            classes if kind == "scales" else "share of the scale in the blend",
        )
        target = plan.target / result.dataset / result.model / f"{stem}_{kind}.png"
        try:
            with atomic_path(target) as temporary:
                sheet.save(temporary, format="PNG")
        except OSError as error:
            raise disk_error(plan.target, error) from error
        result.pictures += 1


def _tiles(kind: str, maps: ScaleMaps, classes: ClassSet) -> list[tuple[str, np.ndarray]]:
    blended = ("all scales", class_colours(maps.blended.numpy(), classes))
    if kind == "scales":
        labels = zip(maps.scales, maps.labels.numpy(), strict=True)
        return [*((f"scale {scale:g}", class_colours(label, classes)) for scale, label in labels), blended]
    shares = zip(maps.scales, maps.shares.numpy(), strict=True)
    return [(f"scale {scale:g}: {100 * share.mean():.0f} %", heat_map(share)) for scale, share in shares]
