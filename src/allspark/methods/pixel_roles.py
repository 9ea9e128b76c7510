"""What each pixel is for each class in U2PL's contrast: a member, an anchor, a negative."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from allspark.batch import IGNORE
from allspark.config.methods import U2PL
from allspark.kernels.logits import Logits
from allspark.methods.contrast import at_grid
from allspark.methods.filters import percentile


@dataclass(frozen=True)
class Roles:
    """What each pixel of the decoder's grid is for each class, (b, h, w, k) each.

    Attributes:
        members: of the class, and sure: the teacher's mean of them is its positive.
        anchors: members that the teacher gives the class some probability.
        keys: its negatives, for the bank.
    """

    members: Bool[Tensor, "b h w k"]
    anchors: Bool[Tensor, "b h w k"]
    keys: Bool[Tensor, "b h w k"]

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three of them."""
        return self.members, self.anchors, self.keys


def entropy_masks(
    scores: Logits, target: Int[Tensor, "b H W"], valid: Bool[Tensor, "u H W"], share: float
) -> tuple[Bool[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Pixels of low and of high entropy on the decoder's grid; labelled ones are of both.

    Args:
        scores: of the u unlabelled images, mixed.
        target: of labelled, then of unlabelled images, class ids and IGNORE.
        valid: False where an unlabelled crop was padded.
        share: of the valid pixels of all processes that are low, and as many high, 0 to 1.
    """
    labeled = target[: len(target) - len(valid)] != IGNORE
    entropy = scores.entropy()
    low = (entropy <= percentile(entropy, valid, share)) & valid
    high = (entropy >= percentile(entropy, valid, 1 - share)) & valid
    return at_grid(torch.cat([labeled, low]), scores, 0), at_grid(torch.cat([labeled, high]), scores, 0)


def pixel_roles(
    target: Int[Tensor, "b h w"],
    low: Bool[Tensor, "b h w"],
    high: Bool[Tensor, "b h w"],
    scores: Logits,
    labeled: int,
    settings: U2PL,
) -> Roles:
    """What each pixel is for each class.

    Args:
        target: on the decoder's grid.
        low: see :func:`entropy_masks`.
        high: the same.
        scores: the teacher's, of all b images.
        labeled: labelled images, which come first.
        settings: ``anchor_confidence``, ``ranks`` and ``contrast_rule`` are read.
    """
    probability = scores.coarse.permute(0, 2, 3, 1).softmax(-1)
    rank = probability.argsort(-1, descending=True).argsort(-1)  # of each class, 0 is the best
    first, end = settings.ranks
    coded = settings.contrast_rule == "code"
    classes = probability.shape[-1]
    if coded:
        is_class = torch.cat([_heaped(x, classes) for x in (target[:labeled], target[labeled:])])
    else:
        is_class = _one_hot(target, classes)
    members = is_class & low[..., None]
    near = (rank < first) & ~is_class & high[..., None]
    middle = (rank >= first) & (rank < end) & high[..., None]
    keys = torch.cat([near[:labeled], middle[labeled:]])
    if coded:
        keys = keys & is_class  # of labelled pixels none, which are not of the class
    return Roles(members, members & (probability > settings.anchor_confidence), keys)


def _one_hot(target: Int[Tensor, "b h w"], classes: int) -> Bool[Tensor, "b h w k"]:
    return target[..., None] == torch.arange(classes, device=target.device)


def _heaped(target: Int[Tensor, "b h w"], classes: int) -> Bool[Tensor, "b h w k"]:
    """As coded: the first image has the classes of all images of its kind and process, the others have none."""
    found = _one_hot(target.where(target != IGNORE, 0), classes).any(0) & (target[0] != IGNORE)[..., None]
    first = torch.arange(len(target), device=target.device) == 0
    return found & first[:, None, None, None]


def matched_classes(present: Bool[Tensor, " k"], rule: str) -> tuple[Bool[Tensor, " k"], Int[Tensor, " k"]]:
    """Which classes are compared, and whose bank each is compared with; none where there is one class alone.

    Args:
        present: classes that have members.
        rule: ``contrast_rule`` of the settings.
    """
    ids = torch.arange(len(present), device=present.device)
    several = present.sum() > 1
    if rule == "paper":
        return present & several, ids
    return (ids < present.sum()) & several, (~present).long().argsort(stable=True)
