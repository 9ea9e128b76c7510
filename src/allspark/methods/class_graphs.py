"""Images as graphs of their classes and parts, to be compared (SemiCVT, Huang et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

_PARTS = 10  # rows and columns of parts that an image is averaged in
_SEED = 0


@dataclass(frozen=True)
class ClassGraph:
    """What u images are as graphs.

    Attributes:
        nodes: (u, k, n + 1, c), for each class the image's n parts and the class itself, after a convolution.
        classes: (u, k, c), after one more, among the classes.
        there: (u, n + 1), False for parts that are padding.
    """

    nodes: Float[Tensor, "u k _ c"]
    classes: Float[Tensor, "u k c"]
    there: Bool[Tensor, "u _"]

    def distance(self, other: ClassGraph) -> Float[Tensor, " u"]:
        """Mean squared distance of the nodes that are there, and that of the classes, added."""
        nodes = _normed(self.nodes).sub(_normed(other.nodes)).square().mean((1, 3))  # (u, n + 1)
        classes = _normed(self.classes).sub(_normed(other.classes)).square().mean((1, 2))
        there = self.there.to(nodes.dtype)
        return (nodes * there).sum(1) / there.sum(1) + classes


class ClassGraphs(nn.Module):
    """Two graph convolutions whose matrices are drawn once and do not learn, the same in all processes.

    Args:
        channels: c, of the features.
    """

    first: Tensor
    second: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator, limit = torch.Generator().manual_seed(_SEED), channels**-0.5
        for name in ("first", "second"):
            self.register_buffer(name, torch.empty(channels, channels).uniform_(-limit, limit, generator=generator))

    def forward(
        self,
        features: Float[Tensor, "u c h w"],
        probabilities: Float[Tensor, "u k h w"],
        valid: Bool[Tensor, "u h w"],
    ) -> ClassGraph:
        """The graphs of u images.

        Args:
            features: of their cells.
            probabilities: of the cells' classes; their softmax over the image says what a class is the mean of.
            valid: False in padding, which is neither in a class nor in a part.
        """
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        share = probabilities.masked_fill(~valid[:, None], torch.finfo(probabilities.dtype).min).flatten(2).softmax(2)
        centres = share @ features.flatten(2).mT  # (u, k, c)
        seen = valid[:, None].to(features.dtype)
        filled = F.adaptive_avg_pool2d(seen, _PARTS)
        parts = F.adaptive_avg_pool2d(features * seen, _PARTS) / filled.where(filled > 0, 1)
        own = parts.flatten(2).mT[:, None].expand(-1, centres.shape[1], -1, -1)
        nodes = torch.cat([own, centres[:, :, None]], 2)  # (u, k, n + 1, c)
        there = F.pad(filled.flatten(1) > 0, (0, 1), value=True)
        near = (nodes @ nodes.mT).masked_fill(~there[:, None, None], -torch.inf).softmax(3)
        nodes = F.elu(near @ (nodes @ self.first))
        classes = nodes[:, :, -1]
        return ClassGraph(nodes, (classes @ classes.mT).softmax(2) @ (classes @ self.second), there)


def _normed(x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    return F.layer_norm(x, x.shape[-1:])
