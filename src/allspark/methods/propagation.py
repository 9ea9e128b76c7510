"""Labels that spread over regions of an image whose positions are alike (CorrMatch, Sun et al., CVPR 2024)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.kernels.logits import Logits

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie evenly between 0 and 1


def spread_places(chance: Float[Tensor, " u"], count: int, positions: int) -> Int[Tensor, "u r"]:
    """So many of an image's positions, evenly over all of them, from one that chance chooses.

    Args:
        chance: from [0, 1), for each image.
        count: r.
        positions: how many there are.
    """
    multiples = _GOLDEN * torch.arange(count, device=chance.device, dtype=chance.dtype)
    return ((chance[:, None] + multiples) % 1 * positions).long().clamp(max=positions - 1)


def region_maps(likeness: Float[Tensor, "u n n"], places: Int[Tensor, "u r"], like: Logits) -> Bool[Tensor, "u r H W"]:
    """The pixels that are more like a position than half of the way from the least to the most of the image.

    Args:
        likeness: of all positions with all.
        places: r of them.
        like: logits at the same positions, for the sizes.
    """
    grid = like.coarse.shape[2:]
    maps = []
    for rows, chosen in zip(likeness, places, strict=True):  # (n, n); one image at a time is held
        full = replace(like, coarse=rows[chosen].unflatten(1, grid)[None]).full()[0]  # (r, H, W)
        least, most = full.amin((1, 2), keepdim=True), full.amax((1, 2), keepdim=True)
        maps.append((full - least) / (most - least) > 0.5)
    return torch.stack(maps)


def spread_labels(
    labels: Int[Tensor, "u H W"],
    confident: Bool[Tensor, "u H W"],
    regions: Bool[Tensor, "u r H W"],
    threshold: Float[Tensor, ""],
    num_classes: int,
) -> tuple[Int[Tensor, "u H W"], Bool[Tensor, "u H W"]]:
    """Give a whole region the label that prevails among its confident pixels; one region after the other.

    A region changes if at least a share of ``threshold`` of it is confident, and a greater share of these pixels has
    one label, earlier changes included.

    Args:
        labels: class ids.
        confident: which of them count.
        regions: r for each image.
        threshold: a share, 0 to 1, on the device.
        num_classes: k.

    Returns:
        The labels, and which of them count: the confident ones, and those of regions that changed.
    """
    trusted = confident
    for region in regions.unbind(1):
        sure = region & confident
        votes = labels.new_zeros(len(labels), num_classes)
        votes.scatter_add_(1, labels.flatten(1), sure.flatten(1).to(votes.dtype))
        most, best = votes.max(1)
        confident_pixels = votes.sum(1).double()
        taken = (confident_pixels / region.sum((1, 2)) >= threshold) & (most / confident_pixels > threshold)
        grown = region & taken[:, None, None]  # nothing of a region without confident pixels: 0 / 0 is not above
        labels, trusted = best[:, None, None].where(grown, labels), trusted | grown
    return labels, trusted
