"""Losses as pure functions."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from allspark.types import IGNORE


def cross_entropy(logits: Float[Tensor, "b k H W"], target: Int[Tensor, "b H W"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that are not ignored; 0 where all are.

    Args:
        logits: (b, k, H, W).
        target: (b, H, W), class ids or IGNORE.

    Returns:
        A scalar. (Torch's own mean is NaN where every pixel is ignored.)
    """
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)
