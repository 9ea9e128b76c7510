"""Losses as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allspark.batch import IGNORE
from allspark.config.schema import MethodConfig
from allspark.kernels.logits import Logits
from allspark.runtime.collectives import mean_count

Loss = Callable[[Logits, Tensor], Tensor]
"""Logits and target (b, H, W), class ids or IGNORE -> a scalar."""


def labeled_loss(config: MethodConfig) -> Loss:
    """The loss of labelled images that a configuration names."""
    if config.labeled_loss == "ohem":
        return partial(ohem_cross_entropy, threshold=config.ohem_threshold, min_kept=config.ohem_min_kept)
    return cross_entropy


def cross_entropy(logits: Logits, target: Int[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that are not ignored; 0 where all are.

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.

    Returns:
        A scalar. (Torch's own mean is NaN where every pixel is ignored.) Where several processes train, the pixels of
        all of them are counted: their mean of this is the mean over all pixels, as one process would compute it.
    """
    total = logits.losses(target).sum()
    return total / mean_count((target != IGNORE).sum()).to(total.dtype)


def ohem_cross_entropy(
    logits: Logits, target: Int[Tensor, "b H W"], *, threshold: float, min_kept: int
) -> Float[Tensor, ""]:
    """Cross-entropy over the hard pixels (online hard example mining, Shrivastava et al., CVPR 2016).

    Hard are pixels whose own class has a probability of at most ``threshold``. At least the ``min_kept`` hardest pixels
    of the batch, each process for its own, count (more where some are equally hard; all where there are no more).

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.
        threshold: probability up to which a pixel is hard, 0 to 1.
        min_kept: pixels of the whole batch that count at least.

    Returns:
        A scalar, the mean over the pixels that count; 0 where every pixel is ignored.
    """
    losses = logits.losses(target)  # (b, H, W), -log probability
    valid = target != IGNORE
    with torch.no_grad():
        probability = torch.exp(-losses.detach()).masked_fill(~valid, 1).flatten()
        # The published code sorts all pixels; only one place of that order is needed, and nothing is read back.
        place = min(max(min_kept, 1), probability.numel())
        hardest = probability.kthvalue(place).values if min_kept else probability.new_zeros(())
        kept = valid & (probability.view_as(valid) <= hardest.clamp(min=threshold))
    return losses.where(kept, 0).sum() / kept.sum().clamp(min=1)
