"""Networks of segmentation_models_pytorch (smp) from folders of ``save_pretrained``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import CheckpointError, ManifestError, nearest, reason
from ..checkpoint import load_weights
from .body import Body, PixelScaling, Sizes
from .folder import demand_folder, read_json

EXTRA = "arch: smp needs the extra 'members'; pip install 'hmsa-pipeline[members]'"
CLASSES = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet"),
    *("DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet", "Segformer", "DPT"),
)
KINDS = {
    None: "logits",
    "identity": "logits",
    "logsoftmax": "logits",
    "softmax2d": "probabilities",
    "sigmoid": "scores",
}
"""``activation`` in config.json -> kind of the output, see `member_output`."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SMPNetwork(Body):
    """A network of smp in evaluation mode; made by `load`.

    Args:
        network: the library's.
        config: content of its config.json.
        scaling: of its pixels.
        notes: lines for the user.
    """

    def __init__(self, network: Any, config: dict[str, Any], scaling: PixelScaling, notes: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.scaling, self.notes = network, scaling, notes
        self.kind, self.channels, self.labels = KINDS[config.get("activation")], config["classes"], None
        self.sizes = _sizes(network, config)
        self._named = f"{config['_model_class']} with {config.get('encoder_name', 'its default encoder')}"

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute output (N, K, H, W), as `Body.forward` says."""
        output = self.network(self.scaling(pixels))
        return output[0] if isinstance(output, tuple) else output  # the second is of the whole image

    def details(self) -> dict[str, Any]:
        return {"network": self._named}


def load(folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> SMPNetwork:
    """Read the network in a folder of ``save_pretrained``, strictly, on the CPU; nothing is asked of a hub.

    Args:
        folder: absolute.
        mean, std: of its pixels, red, green, blue, 0..1; the folder does not hold them.

    Raises:
        CheckpointError: it is no folder of a network of smp for classes of pixels, or its weights do not fit.
        ManifestError: the library is not installed, or mean and std are missing.
    """
    demand_folder(folder, "smp")
    config = read_json(folder / "config.json")
    _check(folder, config)
    encoder, notes = str(config.get("encoder_name", "")), ()
    if mean is None or std is None:
        if not encoder.startswith("tu-"):
            raise ManifestError(
                f"{folder}: does not hold the mean and deviation of its pixels; give the 'mean' and 'std' that it "
                f"was trained with; smp.encoders.get_preprocessing_params('{encoder}') has those of its encoder"
            )
        mean, std = IMAGENET
        notes = ("its pixels' mean and deviation are taken to be ImageNet's; 'mean' and 'std' give others",)
    library = _library()
    values = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        # Encoder weights would be fetched, only to be replaced by those of the file.
        network = getattr(library, config["_model_class"])(**values | {"encoder_weights": None})
    except Exception as error:  # of the library's parts there is no end
        raise CheckpointError(
            f"{folder}: smp {library.__version__} cannot build it ({type(error).__name__}: {reason(error)[:300]}); "
            "save the network again with the installed version"
        ) from error
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) > 1:
        raise CheckpointError(f"{folder}: holds {len(weights)} files of weights; leave model.safetensors alone there")
    load_weights(network, weights[0], f"smp.{config['_model_class']}")
    return SMPNetwork(network.eval(), config, PixelScaling(mean, std), notes)


def _library() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise ManifestError(f"{EXTRA} ({reason(error)})") from error


def _check(folder: Path, config: dict[str, Any]) -> None:
    name = config.get("_model_class")
    if name is None and config.get("architectures"):
        raise CheckpointError(f"{folder}: was saved by transformers; say 'arch: transformers'")
    if name not in CLASSES:
        shown = "names no class of smp" if name is None else f"names the class {name}, which smp does not have"
        raise CheckpointError(f"{folder}: config.json {shown}; {nearest(str(name), CLASSES)}")
    if config.get("in_channels", 3) != 3:
        raise CheckpointError(f"{folder}: takes {config['in_channels']} channels, where photographs have 3")
    count = config.get("classes", 1)
    if not isinstance(count, int) or count < 2:
        raise CheckpointError(f"{folder}: has {count} class, where a member needs two or more")
    activation = config.get("activation")
    if activation not in KINDS:
        known = ", ".join(str(one) for one in KINDS if one)
        raise CheckpointError(
            f"{folder}: ends in the activation {activation}, from which no belief can be had; save it with none, or "
            f"one of {known}"
        )


def _sizes(network: Any, config: dict[str, Any]) -> Sizes:
    stride = int(network.encoder.output_stride)
    multiple = stride if config["_model_class"] == "DPT" else math.lcm(32, stride)
    known = getattr(getattr(network.encoder, "model", None), "pretrained_cfg", None) or {}
    if not known.get("fixed_input_size") or config.get("dynamic_img_size"):
        return Sizes(multiple)
    side = config.get("img_size") or known["input_size"][1:]
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return Sizes(multiple, fixed=(height, width))
