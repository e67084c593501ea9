"""Networks of the library transformers from folders: SegFormer, UperNet, BEiT, Mask2Former, EoMT and others.

Mask classification: Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS
2021 (arXiv 2107.06278), section 3.4.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ManifestError, first_few, nearest, reason
from ..checkpoint import demand_numbers
from .body import Body
from .folder import demand_folder, read_json
from .hf_families import FAMILIES, MASK2FORMER, MASKS
from .hf_processor import pixel_scaling, read_processor, replaced

TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""Tokens of "the task is semantic" in CLIP's vocabulary, as OneFormer's processor makes them; zeros follow."""
SQUARE = (384, 384)
"""To which the library resizes Mask2Former's masks, whatever the image."""
EXTRA = "arch: transformers needs the extra 'members'; pip install 'hmsa-pipeline[members]'"


def _library() -> Any:
    """Import transformers so that it asks no hub; ManifestError if it is not installed."""
    # Read when it is imported: a promise for one call, local_files_only, is not kept by all of its parts.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    try:
        # By name: type checkers would read its 2,000 modules, a third of their time, and learn nothing from them.
        return import_module("transformers")
    except ImportError as error:
        raise ManifestError(f"{EXTRA} ({reason(error)})") from error


class HFNetwork(Body):
    """A network of transformers in evaluation mode; made by `load`.

    Args:
        network: the library's.
        architecture: the name of its class.
        processor: numbers of its processor.
        folder: it was read from.
        as_library: the masks of a Mask2Former make the library's detour over a square.
    """

    def __init__(
        self, network: Any, architecture: str, processor: dict[str, Any], folder: Path, as_library: bool = False
    ) -> None:
        super().__init__()
        config, family = network.config, FAMILIES[architecture]
        self.network, self.architecture, self.as_library = network, architecture, as_library
        self.task: Tensor | None
        task = None
        if family.asks_task:
            task = torch.tensor([*TASK, *[0] * (config.task_seq_len - len(TASK))])
            network.model.task_encoder = _InFullPrecision(network.model.task_encoder)
        self.register_buffer("task", task, persistent=False)
        self.masks = family.head == MASKS
        self.kind = "scores" if self.masks else "logits"
        self.channels = config.num_labels
        self.sizes = family.sizes(config, processor)
        self.labels = {int(number): str(name) for number, name in (config.id2label or {}).items()}
        self.scaling = pixel_scaling(folder, processor, family)
        instead = replaced(processor)
        self.notes = (instead,) if instead else ()

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits or scores (N, K, h, w), which cover all of the images, as `Body.forward` says."""
        asked = {} if self.task is None else {"task_inputs": self.task.expand(len(pixels), -1)}
        output = self.network(pixel_values=self.scaling(pixels), **asked)
        if not self.masks:
            return output.logits
        with torch.autocast(pixels.device.type, enabled=False):
            return mask_scores(output.class_queries_logits.float(), self.mask_logits(output))

    def mask_logits(self, output: Any) -> Tensor:
        """Take the masks of an output, (N, Q, h, w) float32."""
        masks = output.masks_queries_logits.float()
        if not self.as_library:
            return masks
        return nn.functional.interpolate(masks, SQUARE, mode="bilinear", align_corners=False)

    def details(self) -> dict[str, Any]:
        return {"network": self.architecture, **({"postprocess": "library"} if self.as_library else {})}


class _InFullPrecision(nn.Module):
    """The part of a network that reads ids of tokens as numbers, most of which half precision does not hold."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, numbers: Tensor) -> Tensor:
        with torch.autocast(numbers.device.type, enabled=False):
            return self.part(numbers.float())


def mask_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Sum over queries of class probability times mask probability, (N, K, h, w) float32.

    Args:
        classes: (N, Q, K + 1) logits; the last class is no object, and is left out.
        masks: (N, Q, h, w) logits.
    """
    return torch.einsum("nqk,nqhw->nkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())


def load(folder: Path, as_library: bool = False) -> HFNetwork:
    """Read the network in a folder of ``save_pretrained``, strictly, on the CPU, in float32.

    Args:
        folder: absolute.
        as_library: see `HFNetwork`.

    Raises:
        CheckpointError: it is no folder of a segmentation network that is known, or its weights do not fit.
        ManifestError: the library is not installed, or ``as_library`` changes nothing about this network.
    """
    demand_folder(folder, "transformers")
    config = read_json(folder / "config.json")
    architecture = _architecture(folder, config)
    _refuse_named_backbone(folder, config)
    if as_library and architecture != MASK2FORMER:
        raise ManifestError(
            f"{folder}: 'postprocess: library' changes {MASK2FORMER} alone, not {architecture}; remove it"
        )
    if FAMILIES[architecture].asks_task and config.get("is_training"):
        raise CheckpointError(
            f"{folder}: 'is_training' in config.json is true, with which the network wants texts; set it to false, "
            "load the network with transformers, and save it again"
        )
    processor = read_processor(folder)
    pixel_scaling(folder, processor, FAMILIES[architecture])
    library = _library()
    made = getattr(library, architecture, None)
    if made is None:
        raise CheckpointError(
            f"{folder}: transformers {library.__version__} has no {architecture}; install a newer one"
        )
    with _quiet(library):
        try:
            network, info = made.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are listed, and refused below
                output_loading_info=True,
            )
        except Exception as error:  # of the library's parts there is no end
            raise CheckpointError(
                f"{folder}: transformers cannot load it ({type(error).__name__}: {reason(error)[:300]}); save the "
                "network again with save_pretrained(folder)"
            ) from error
    _demand_all(folder, architecture, info)
    demand_numbers(folder, {key: value for key, value in network.state_dict().items() if value.is_floating_point()})
    return HFNetwork(network.eval(), architecture, processor, folder, as_library)


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    found = config.get("architectures")
    if isinstance(config.get("_model_class"), str):
        raise CheckpointError(f"{folder}: was saved by segmentation_models_pytorch; say 'arch: smp'")
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise CheckpointError(f"{folder}: 'architectures' in config.json names no class; save the network again")
    name = found[0]
    if name in FAMILIES:
        return name
    close = nearest(name, FAMILIES)
    known = close if close.startswith("known") else f"known: {', '.join(FAMILIES)}"
    raise CheckpointError(
        f"{folder}: {name} is no segmentation network that can be a member ({known}); others join with import-logits"
    )


def _refuse_named_backbone(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError if the library would fetch a part of the network by name."""
    name = config.get("backbone")
    if isinstance(name, str) or config.get("use_pretrained_backbone"):
        raise CheckpointError(
            f"{folder}: config.json names its backbone ({name}), which would be fetched from a hub; save the network "
            "with a 'backbone_config' instead"
        )


def _demand_all(folder: Path, architecture: str, info: Any) -> None:
    """Raise CheckpointError if a weight was missing, left over or of another shape: the library says so in a log."""
    found = info if isinstance(info, dict) else vars(info)
    kinds = (("missing_keys", "missing"), ("unexpected_keys", "unexpected"), ("mismatched_keys", "of another shape"))
    problems = []
    for name, text in kinds:
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(name) or ())
        if keys:
            problems.append(f"{len(keys)} weights are {text} ({first_few(keys, 3)})")
    if problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems)}; are they really of a {architecture}?")


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library's log and progress bars from the terminal: what matters is raised."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
