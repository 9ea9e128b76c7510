"""How dense a pixel lies among the features of its class, and which pixels are taken, for DGCL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.batch import IGNORE
from allspark.kernels.logits import Logits
from allspark.methods.bank import nth_members
from allspark.methods.contrast import at_grid
from allspark.methods.filters import lowest_share

_BLOCK = 2**26  # similarities at one time: 256 MiB


def sure_labels(scores: Logits, valid: Bool[Tensor, "u H W"], drop: float) -> Int[Tensor, "u h w"]:
    """Labels on the decoder's grid, but for the pixels there of the highest entropy.

    Args:
        scores: of u images.
        valid: False where a crop was padded.
        drop: share of the pixels that is left out, 0 to 1.
    """
    there = at_grid(valid, scores, 0)
    grid = (scores.coarse.shape[2], scores.coarse.shape[3])
    plain = replace(scores, padded=grid, size=grid)
    return plain.labels().masked_fill(~lowest_share(plain.entropy(), there, 1 - drop), IGNORE)


@torch.no_grad()
def density(
    features: Float[Tensor, "n c"],
    bank: Float[Tensor, "m c"],
    neighbours: Sequence[int],
    known: Bool[Tensor, " m"] | None = None,
) -> Float[Tensor, " n"]:
    """How similar the nearest rows of a bank are, by the cosine: a mean over several numbers of neighbours.

    Args:
        features: whose density is asked for.
        bank: as many rows as there are neighbours, or more.
        neighbours: so many of them.
        known: which rows there are; None: all.
    """
    bank = F.normalize(bank, dim=1)
    found = []
    for part in F.normalize(features, dim=1).split(max(1, _BLOCK // len(bank))):
        similar = part @ bank.T
        if known is not None:
            similar = similar.masked_fill(~known, -torch.inf)
        nearest = similar.topk(max(neighbours)).values
        found.append(torch.stack([nearest[:, :k].mean(1) for k in neighbours]).mean(0))
    return torch.cat(found)


def first_members(members: Bool[Tensor, "k n"], order: Int[Tensor, " n"], most: int) -> tuple[Tensor, Tensor]:
    """The first members in an order, at most so many: their numbers (k, s), and whether there are so many (k, s)."""
    ranked = members[:, order]
    place = torch.arange(min(most, len(order)), device=order.device).expand(len(members), -1)
    return order[nth_members(ranked, place)], place < ranked.sum(1, keepdim=True)
