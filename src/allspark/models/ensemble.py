"""Several networks that predict as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allspark.batch import Normalisation
from allspark.kernels.logits import Logits
from allspark.models.segmenter import Segmenter


class Ensemble(nn.Module):
    """The mean of the probabilities that networks give each pixel. It predicts, and does not train.

    Args:
        networks: one at least, for the same classes and images; they are not copied.
    """

    def __init__(self, networks: Sequence[Segmenter]) -> None:
        super().__init__()
        self.networks = tuple(networks)
        for number, network in enumerate(networks):
            self.add_module(str(number), network)
        self.num_classes = networks[0].num_classes
        self.normalisation: Normalisation = networks[0].normalisation

    def logits(self, image: Float[Tensor, "b 3 H W"], *, from_memory: bool = False) -> Logits:
        """Logits of every pixel whose softmax is that mean; without gradient. ``from_memory``: as of each network."""
        each = (network.logits(image, from_memory=from_memory).probabilities() for network in self.networks)
        total = torch.stack(list(each)).mean(0)
        size = (image.shape[2], image.shape[3])
        # a product of weights that hold a zero comes later: minus infinity would be no number there
        return Logits(total.clamp(min=torch.finfo(total.dtype).tiny).log(), size, size)


Network = Segmenter | Ensemble
"""What predicts."""
