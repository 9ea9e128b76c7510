"""How alike the positions of a feature map are, and scores spread by it (CorrMatch, Sun et al., CVPR 2024)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class CorrelationHead(nn.Module):
    """Learns which positions of an image belong together. For training only: inference does without.

    Args:
        channels: of the feature map.
        num_classes: k, which is also the number of channels that are compared.
        width: channels of the projection before.
        dropout: whole channels of it that are dropped.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.query = nn.Conv2d(width, num_classes, 1)
        self.key = nn.Conv2d(width, num_classes, 1)
        self.dropout = dropout

    def forward(
        self, feature: Float[Tensor, "b c h w"], scores: Float[Tensor, "b k h w"]
    ) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b n n"]]:
        """Spread scores to positions that look alike.

        Args:
            feature: of b images.
            scores: logits at the same positions.

        Returns:
            The scores of each position, from those of all; and how much each position (first index) gives to each other
            one, which adds up to 1 over the latter.
        """
        projected = F.dropout2d(self.project(feature), self.dropout, self.training)
        query, key = self.query(projected).flatten(2), self.key(projected).flatten(2)  # (b, k, n)
        likeness = (query.mT @ key / math.sqrt(query.shape[1])).softmax(2)
        return (scores.flatten(2) @ likeness).view_as(scores), likeness
