"""Connected regions of a class, without leaving the device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.methods.draws import choose

_SWEEPS = 8  # along rows and columns in turn: a region that takes more turns falls into pieces


def regions(mask: Bool[Tensor, "b H W"], sweeps: int = _SWEEPS) -> Int[Tensor, "b H W"]:
    """Numbers of the regions whose pixels meet at their sides, 0 outside.

    A region's number is the largest place, from 1, row by row, of its pixels. It spreads along whole runs of a row,
    then of a column: what takes more turns than there are sweeps falls into pieces, which have numbers of their own.

    Args:
        mask: the pixels of some class.
        sweeps: how often it spreads.
    """
    places = torch.arange(1, mask[0].numel() + 1, device=mask.device).view(mask.shape[1:])
    numbers = places.where(mask, 0)
    for _ in range(sweeps):
        for axis in (2, 1):
            after = _spread(numbers, mask, axis)
            before = _spread(numbers.flip(axis), mask.flip(axis), axis).flip(axis)
            numbers = torch.maximum(after, before)
    return numbers


def region_boxes(
    mask: Bool[Tensor, "b H W"], least: float, draw: Float[Tensor, " b"]
) -> tuple[Int[Tensor, "b 4"], Bool[Tensor, " b"]]:
    """The box around one region of each mask, each as likely, and whether there is one that is large enough.

    Args:
        mask: the pixels of some class.
        least: area that a region has to exceed [share of the mask].
        draw: from [0, 1), which one it is.

    Returns:
        Top, left, bottom and right [pixels], bottom and right exclusive; anything where there is none.
    """
    numbers = regions(mask)
    flat = numbers.flatten(1)  # (b, H * W)
    areas = flat.new_zeros(len(flat), flat.shape[1] + 1).scatter_add(1, flat, torch.ones_like(flat))[:, 1:]
    places = torch.arange(flat.shape[1], device=mask.device)
    named = (flat == places + 1) & (areas > least * flat.shape[1])  # at the pixel that a region is called by
    region = numbers == choose(named, draw)[:, None, None] + 1
    edges = []
    for inside in (region.any(2), region.any(1)):  # (b, H), (b, W)
        last = inside.shape[1] - inside.flip(1).int().argmax(1)
        edges.append((inside.int().argmax(1), last))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], 1), named.any(1)


def _spread(numbers: Tensor, mask: Tensor, axis: int) -> Tensor:
    """The largest number so far of each run of pixels along an axis."""
    run = (~mask).cumsum(axis) * (mask[0].numel() + 1)  # larger than all before, so that these do not count
    return ((numbers + run).cummax(axis).values - run).where(mask, 0)
