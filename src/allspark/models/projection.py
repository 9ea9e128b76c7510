"""A head beside the classifier, whose output is compared in contrastive losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Convolutions with batch norm and ReLU, then a 1x1 convolution.

    Two of size 3 with dropout are the head of U2PL (Wang et al., CVPR 2022), one of size 1 is the perceptron of DGCL
    (Wang et al., CVPR 2023).

    Args:
        inputs: channels of what it reads, :attr:`allspark.models.segmenter.Segmenter.hidden_channels`.
        channels: of each convolution, and of what it gives.
        kernels: size of each convolution but the last.
        dropout: whole channels dropped after each of them.
    """

    def __init__(self, inputs: int, channels: int, kernels: Sequence[int] = (1,), dropout: float = 0.0) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for kernel in kernels:
            blocks += [
                nn.Conv2d(inputs, channels, kernel, padding=kernel // 2),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
            ]
            inputs = channels
        self.layers = nn.Sequential(*blocks, nn.Conv2d(inputs, channels, 1))

    def forward(self, hidden: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b d h w"]:
        """Return projections, not normalised, in float32 or better, of what the classifier reads."""
        projected: Tensor = self.layers(hidden)
        return projected.to(torch.promote_types(projected.dtype, torch.float32))
