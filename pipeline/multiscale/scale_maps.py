"""Runs a network with attention between scales, and says what each scale contributes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ...datasets.class_set import ClassSet
from ...datasets.decode.tensors import normalise
from ...models.hmsa import HMSA, ScaleOutput, blend, scale_images
from ...models.hrnet import resize
from ...models.registry import ARCHITECTURES, build
from ...models.sampling import dropout_pass
from ..config.member import Member
from ..config.member_inference import InferenceOptions, Sample
from ..inference.member_network import network_classes
from ..inference.predictor import Predictor
from ..runtime.device import AUTOCAST


@dataclass(frozen=True)
class ScaleMaps:
    """Class maps of the scales of a network, and their shares in the blend, of one image.

    Attributes:
        scales: S factors, from the largest to the smallest.
        shares: (S, H, W) float32, the share of each scale in the blend; they sum to one at each pixel.
        labels: (S, H, W) uint8, the class map of each scale alone.
        blended: (H, W) uint8, the class map of all scales together.
    """

    scales: tuple[float, ...]
    shares: Tensor
    labels: Tensor
    blended: Tensor


def has_attention(member: Member) -> bool:
    """Say whether the network of a member blends scales by attention."""
    if member.arch not in ARCHITECTURES:
        return False
    with torch.device("meta"):
        return isinstance(build(member.arch), HMSA)


def scale_shares(outputs: tuple[ScaleOutput, ...]) -> Tensor:
    """Compute the share of each scale in the blend of `blend`, (N, S, H, W) float32.

    A blend is linear in the scores. So the share of a scale is the blend of maps that are one at this scale and zero
    at all others. With attentions a at scales 2.0, 1.0 and 0.5, the shares are (1 - a1) (1 - a0.5), a1 (1 - a0.5) and
    a0.5 (arXiv 2005.10821, section 3.2).

    Args:
        outputs: from the largest scale to the smallest, with attention.
    """
    chosen = []
    for number, output in enumerate(outputs):
        map_ = output.scores.new_zeros(len(output.scores), len(outputs), *output.scores.shape[-2:])
        map_[:, number] = 1.0
        chosen.append(output._replace(scores=map_))
    return blend(chosen)


class ScaleNetwork:
    """The network of a member, which says what each of its scales contributes.

    Args:
        device: it runs on.
        options: the manifest's, as `usable_options` returns them.
        member: as `usable_members` returns it; see `has_attention`.
        classes: of the manifest.

    Raises:
        CheckpointError: the checkpoint does not fit the network, or has weights beyond the precision's range.
    """

    def __init__(self, device: torch.device, options: InferenceOptions, member: Member, classes: ClassSet) -> None:
        # One pass for each image: graphs and compilers would take longer than they save.
        plain = options.model_copy(update={"cuda_graphs": False, "compile": "off"})
        self._model = cast("HMSA", Predictor(device, plain, member, None, classes).model)
        self._device, self._sample = device, member.sample or Sample()
        self._scales = member.options(plain).scales
        self._dtype = AUTOCAST.get(member.options(plain).precision, torch.float32)
        self._table = network_classes(member, classes)[1]

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> ScaleMaps:
        """Run the network on an image (3, H, W) uint8, without flip; scales leave the device one by one.

        Raises:
            MemoryError, torch.OutOfMemoryError: it does not fit into the memory.
        """
        sample, size = self._sample, image.shape[-2:]
        pixels = normalise(image[None].to(self._device)).to(self._dtype, memory_format=torch.channels_last)
        seen = scale_images(pixels, sample.scale)
        if sample.flip:
            seen = seen.flip(-1)
        with contextlib.ExitStack() as passes:
            if sample.dropout is not None:
                passes.enter_context(dropout_pass(self._model, image, sample.dropout))
            logits, outputs = self._model.predict_scales(seen, self._scales, gather=torch.device("cpu"))

        def placed(maps: Tensor) -> Tensor:
            return resize(maps.flip(-1) if sample.flip else maps, size)

        def label(scores: Tensor) -> Tensor:
            rounded = placed(scores).to(torch.float16)  # as stores hold them
            mapped = rounded if self._table is None else self._table.apply(rounded)
            return mapped[0].float().argmax(0).to(torch.uint8)

        return ScaleMaps(
            scales=tuple(output.scale for output in outputs),
            shares=placed(scale_shares(outputs))[0],
            labels=torch.stack([label(output.scores) for output in outputs]),
            blended=label(logits),
        )
