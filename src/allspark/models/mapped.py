"""A network with a mapping between what its decoder makes of features and the classifier."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.kernels.logits import Logits
from allspark.models.segmenter import Features, Segmenter


class MappedSegmenter(Segmenter):
    """Its classifier reads what a 1x1 convolution with batch norm makes of features, with channels dropped.

    Args:
        network: whose parts it takes over.
        dropout: share of the mapped channels that are dropped in training.
    """

    def __init__(self, network: Segmenter, dropout: float) -> None:
        super().__init__(network.encoder, network.decoder, network.bottleneck, network.auxiliary)
        width = network.hidden_channels
        self.mapping = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout = dropout

    def hidden(self, features: Features) -> Float[Tensor, "b c h w"]:
        """What the classifier reads: mapped, and with channels dropped."""
        return F.dropout2d(self.mapping(super().hidden(features)), self.dropout, self.training)

    def decode(self, features: Features) -> Logits:
        """Logits of features."""
        return self.classify(self.hidden(features), features)
