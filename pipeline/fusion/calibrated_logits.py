"""Logits as a member's calibration changes them, before its temperature divides them.

=================  ==============================================================================
method             logits z (C,) become
=================  ==============================================================================
vector             w z + b, class by class (Guo et al., On Calibration of Modern Neural Networks,
                   ICML 2017, arXiv 1706.04599, section 4.2)
class-conditional  z / T_k, with k the first class of the highest z
dirichlet          W log softmax(z) + b, with a matrix W (Kull et al., Beyond Temperature Scaling,
                   NeurIPS 2019, arXiv 1910.12656, equation 6)
=================  ==============================================================================

Dirichlet and vector calibration change which class is the most likely; the other two do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.member import Member
from .member_sums import LogitMap, first_maximum


def logit_map(member: Member) -> LogitMap | None:
    """Return the calibration of a member as a function that changes logits (C, P) in place; None if it has none.

    Raises:
        ValueError: the member is not yet one of a dataset, see `Member.on`.
    """
    if not member.calibration:
        return None
    calibration = member.calibration[0]
    if len(member.calibration) > 1 or calibration.dataset is not None or calibration.temperature is not None:
        raise ValueError(f"the calibration of {member.name} depends on the dataset; take Member.on(dataset)")
    scale, bias, temperatures, matrix = (
        None if numbers is None else torch.tensor(numbers, dtype=torch.float64)
        for numbers in (calibration.scale, calibration.bias, calibration.temperatures, calibration.matrix)
    )

    def change(z: Tensor) -> None:
        if scale is not None and bias is not None:
            z.mul_(scale.to(z)[:, None]).add_(bias.to(z)[:, None])
        elif matrix is not None and bias is not None:
            z.copy_(torch.addmm(bias.to(z)[:, None], matrix.to(z), z.log_softmax(0)))
        elif temperatures is not None:
            highest, _ = first_maximum(z)
            highest.clamp_(max=len(z) - 1)  # NaN equals no class
            z.div_(temperatures.to(z)[highest.int()])

    return change


def calibrated_logits(logits: Tensor, member: Member) -> Tensor:
    """Compute calibrated logits (C, ...) float32, divided by the member's temperature.

    Args:
        logits: (C, ...), of any floating type.
        member: as it is calibrated on the dataset, see `Member.on`.
    """
    z = logits.float().reshape(len(logits), -1)
    if (change := logit_map(member)) is not None:
        z = z.clone()
        change(z)
    return (z / member.temperature).view(logits.shape)
