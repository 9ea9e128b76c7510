"""FPL (*Fuzzy Positive Learning for Semi-Supervised Semantic Segmentation*, Qiao et al., CVPR 2023), on CPS and AEL."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from allspark.config import methods as config
from allspark.config.methods.fpl import FuzzyPositives
from allspark.kernels.logits import Logits
from allspark.methods.ael import AEL, Found
from allspark.methods.cps import CPS
from allspark.models.segmenter import Segmenter
from allspark.runtime.collectives import all_reduce

_MOST = 3  # positive classes of a pixel
_BEND = 50.0  # of the concave weight


class FPL(CPS):
    """CPS whose labels are up to three positive classes of each pixel, which only have to outrank the others.

    The loss has the value that it has in CPS: that of both networks together is scaled to it.
    """

    settings = config.FPL

    def __init__(self, settings: config.FPL, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.positives = settings

    def target(self, logits: Logits) -> Float[Tensor, "b k H W"]:
        """What the other network says of every class."""
        return logits.full().detach()

    def labels(self, target: Float[Tensor, "b k H W"]) -> Int[Tensor, "b H W"]:
        """Its best class."""
        return target.argmax(1)

    def cross_losses(self, logits: Sequence[Logits], targets: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each pixel for both networks."""
        hard = super().cross_losses(logits, [self.labels(target) for target in targets])
        fuzzy = [fuzzy_losses(a, b, self.positives) for a, b in zip(logits, reversed(targets), strict=True)]
        scale = balance(torch.stack(hard).detach().sum(), torch.stack(fuzzy).detach().sum())
        return [scale * x for x in fuzzy]


class FPLOnAEL(AEL):
    """AEL whose labels are up to three positive classes of each pixel; scaled as cross-entropy with hard labels is."""

    settings = config.FPLOnAEL

    def __init__(self, settings: config.FPLOnAEL, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.positives = settings

    def target(self, scores: Logits, labels: Int[Tensor, "b H W"]) -> Float[Tensor, "b k H W"]:
        """What the teacher says of every class."""
        return scores.full()

    def losses(self, logits: Logits, found: Found) -> Float[Tensor, "b H W"]:
        """The loss of each pixel."""
        counts = found.sure & found.valid
        fuzzy = fuzzy_losses(logits, found.target, self.positives)
        hard = logits.losses(found.labels).detach()
        return balance(hard.where(counts, 0).sum(), fuzzy.detach().where(counts, 0).sum()) * fuzzy


def fuzzy_losses(logits: Logits, target: Float[Tensor, "b k H W"], settings: FuzzyPositives) -> Float[Tensor, "b H W"]:
    """How far positive classes are from outranking all others, times the weight of the pixel.

    The positive classes are the best one, two or three of the target: one where two of them reach ``positive_mass``,
    two where three do, else three; one class at least stays negative.

    Args:
        logits: of b images, with gradient.
        target: logits of the labels, without.
        settings: ``positive_mass``, ``fuzziness`` and ``convex_slope`` are read.
    """
    own = logits.full()
    own = own.to(torch.promote_types(own.dtype, torch.float32))
    best, classes = target.to(own.dtype).softmax(1).topk(min(_MOST + 1, target.shape[1]), 1)
    mass = best.cumsum(1)
    count = 1 + (mass[:, 1:-1] < settings.positive_mass).sum(1, keepdim=True)  # (b, 1, H, W)
    classes = classes[:, :-1]
    positive = torch.arange(classes.shape[1], device=own.device)[:, None, None] < count
    lowest = (-own.gather(1, classes)).masked_fill(~positive, -torch.inf).logsumexp(1)
    taken = torch.zeros_like(own, dtype=torch.bool).scatter(1, classes, positive)
    highest = own.masked_fill(taken, -torch.inf).logsumexp(1)
    mean, following = (x.gather(1, count).squeeze(1) for x in (mass, best))
    mean = mean / (count.squeeze(1) + 1)
    return F.softplus(lowest + highest) * fuzziness(mean, following, settings)


def fuzziness(
    mean: Float[Tensor, "b H W"], following: Float[Tensor, "b H W"], settings: FuzzyPositives
) -> Float[Tensor, "b H W"]:
    """The weight of a pixel, 0 to 1: the less, the nearer the best class that is not positive is.

    Args:
        mean: probability of the positive classes and that one.
        following: probability of that one.
        settings: ``fuzziness`` and ``convex_slope`` are read.
    """
    if settings.fuzziness == "concave":
        return ((_BEND * (mean - following)).log1p() / (_BEND * mean).log1p()).clamp(max=1)
    if settings.fuzziness == "linear":
        return (mean - following) / mean
    if settings.fuzziness == "convex":
        return (mean - following) / (settings.convex_slope * following + mean)
    return torch.ones_like(mean)


def balance(wanted: Tensor, found: Tensor) -> Tensor:
    """What a sum has to be multiplied by to be another one, in all processes together; 0 where it is nothing."""
    wanted, found = all_reduce(torch.stack([wanted, found]))
    return wanted / found.where(found > 0, 1)
