"""What an image classifier looked at, spread by attention (PseudoSeg, Zou et al., ICLR 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allspark.batch import IGNORE

_NEVER = -1e9  # added to no probability: what is masked attends to all alike, where there is nothing else


class CamHead(nn.Module):
    """Classes of a whole image, and scores of its positions from them. For training only.

    The classifier is linear in the mean of the last feature map. So Grad-CAM's weights, the mean gradients of a class's
    logit, are its own weights by a factor that the norm to a maximum of 1 takes away: no backward pass is needed.

    Args:
        channels: of the encoder's maps, of which the last two are used.
        num_classes: k.
        background: the class that no image is said to have; None: there is none.
        width: channels of queries and keys.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, background: int | None, width: int = 128) -> None:
        super().__init__()
        self.background = background
        self.num_classes = num_classes
        self.classifier = nn.Linear(channels[-1], num_classes - (background is not None))
        self.query = nn.Conv2d(sum(channels[-2:]), width, 1, bias=False)
        self.key = nn.Conv2d(sum(channels[-2:]), width, 1, bias=False)
        self.score = nn.Sequential(nn.Conv2d(num_classes, num_classes, 1, bias=False), nn.BatchNorm2d(num_classes))

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b _ _ _"]],
        valid: Bool[Tensor, "b H W"],
        present: Bool[Tensor, "b o"] | None = None,
    ) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b k h w"]]:
        """Return logits of the o classes of each image, and of the k classes of each position of the last map.

        Args:
            maps: the encoder's; the scores of positions send no gradient into them.
            valid: False where a crop was padded; nothing attends to it.
            present: the classes that each image has; None: those that the classifier finds.
        """
        last = maps[-1]
        grid = last.shape[2:]
        classes: Tensor = self.classifier(last.mean((2, 3)))
        seen = F.relu(torch.einsum("bchw,oc->bohw", last.detach(), self.classifier.weight.detach()))
        seen = seen * (classes >= 0 if present is None else present)[:, :, None, None]
        seen = seen / seen.amax((2, 3), keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)  # 0 where all are
        pair = [F.interpolate(x.detach(), grid, mode="bilinear", align_corners=False) for x in maps[-2:]]
        tokens = torch.cat(pair, 1)
        query, key = self.query(tokens).flatten(2), self.key(tokens).flatten(2)  # (b, c, n)
        attention = query.mT @ key / math.sqrt(query.shape[1])
        inside = F.interpolate(valid[:, None].to(last.dtype), grid, mode="nearest").flatten(2) > 0  # (b, 1, n)
        attention = attention.masked_fill(~(inside.mT & inside), _NEVER).softmax(2)
        spread = (seen.flatten(2) @ attention.mT).view_as(seen) + seen  # from 0 to 2
        if self.background is not None:
            spread = torch.cat([2 - spread.amax(1, keepdim=True), spread], 1)
        scores: Tensor = self.score(spread)
        return classes, scores

    def present(self, mask: Int[Tensor, "b H W"]) -> tuple[Bool[Tensor, "b o"], Bool[Tensor, "b 1"]]:
        """The classes of images with masks, but for the background; and whether an image has any label at all."""
        found = mask.new_zeros(len(mask), self.num_classes + 1, dtype=torch.bool)
        found.scatter_(1, mask.where(mask != IGNORE, self.num_classes).flatten(1), True)
        found = found[:, : self.num_classes]
        kept = [found[:, number] for number in range(self.num_classes) if number != self.background]
        return torch.stack(kept, 1), found.any(1, keepdim=True)
