"""A network of another architecture."""

from hmsa_pipeline.models.plain import PlainNetwork
from torch import Tensor, nn


class StackedConvolutions(PlainNetwork):
    """Three convolutions, at a quarter of the image's size.

    Args:
        num_classes: C, of the scores.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, num_classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to scores (N, C, ceil(H / 4), ceil(W / 4))."""
        return self.layers(images)
