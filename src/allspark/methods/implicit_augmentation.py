"""Implicit semantic augmentation of a linear classifier's features (ISDA, Wang et al., NeurIPS 2019)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from allspark.batch import IGNORE
from allspark.runtime.collectives import all_reduce


class ClassStatistics(nn.Module):
    """Mean and variance of each channel of the features of each class, over all pixels of all processes so far.

    Args:
        num_classes: k.
        channels: c.

    Attributes:
        count: (k,), pixels so far.
        mean: (k, c).
        variance: (k, c), divided by the count.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_classes, channels, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(num_classes, channels, dtype=torch.float64))

    @torch.no_grad()
    def update(self, features: Float[Tensor, "b c h w"], labels: Int[Tensor, "b h w"]) -> None:
        """Take up the features of some pixels.

        Args:
            features: of b images.
            labels: class ids and IGNORE, whose pixels do not count.
        """
        classes, channels = self.mean.shape
        known = (labels != IGNORE).flatten()
        of_class = labels.flatten().where(known, 0)
        member = (of_class[:, None] == torch.arange(classes, device=labels.device)) & known[:, None]  # (n, k)
        weight = member.to(self.mean.dtype).mT
        away = features.to(self.mean.dtype).movedim(1, 3).flatten(0, 2) - self.mean[of_class]  # (n, c)
        with torch.autocast(features.device.type, enabled=False):
            sums = torch.cat([weight @ away, weight @ away.square(), weight.sum(1, keepdim=True)], 1)
        shift, square, new = all_reduce(sums).split([channels, channels, 1], 1)
        total = (self.count[:, None] + new).clamp(min=1)
        shift = shift / total
        self.variance.copy_((self.count[:, None] * self.variance + square) / total - shift.square())
        self.mean.add_(shift)
        self.count.add_(new[:, 0])

    @torch.no_grad()
    def margins(self, weight: Float[Tensor, "k c"], strength: float) -> Float[Tensor, "k k"]:
        """What is added to the logits of pixels of each class (rows), for all classes (columns): 0 for its own.

        Half the variance of the difference of two logits, if the features of class y were normal: cross-entropy with
        it is an upper bound of the mean over features drawn around those of a pixel.

        Args:
            weight: of the linear classifier.
            strength: factor of the variances.
        """
        weight = weight.to(self.variance.dtype)
        with torch.autocast(weight.device.type, enabled=False):
            scaled = self.variance * weight  # of y, with its own weight
            own = (scaled * weight).sum(1, keepdim=True)
            return strength / 2 * (self.variance @ weight.square().mT - 2 * scaled @ weight.mT + own)


def hardened(
    logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"], margins: Shaped[Tensor, "k k"]
) -> Float[Tensor, "b k h w"]:
    """Logits with the margins of each pixel's class; as they were where that is IGNORE."""
    known = labels != IGNORE
    added = margins.to(logits.dtype)[labels.where(known, 0)].movedim(3, 1)
    return logits + added.where(known[:, None], 0)
