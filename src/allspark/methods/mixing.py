"""CutMix: boxes of one image pasted into another, the same for images, labels, confidences and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from allspark.batch import UnlabeledBatch
from allspark.kernels.logits import Logits


def box_masks(boxes: Int[Tensor, "b r 4"], size: Sequence[int]) -> Bool[Tensor, "b H W"]:
    """Where the boxes are: pixels that an odd number of an image's r boxes holds.

    Args:
        boxes: top, left, bottom, right [pixels]; bottom and right are exclusive.
        size: height and width [pixels].
    """
    rows = torch.arange(size[0], device=boxes.device)[:, None]
    columns = torch.arange(size[1], device=boxes.device)
    top, left, bottom, right = boxes[..., None, None].unbind(2)  # (b, r, 1, 1) each
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return inside.sum(1) % 2 == 1


def mix(own: Shaped[Tensor, "b ..."], other: Shaped[Tensor, "b ..."], where: Bool[Tensor, "b H W"]) -> Tensor:
    """``other`` inside the boxes, ``own`` outside.

    Args:
        own: (b, H, W) or (b, c, H, W).
        other: like ``own``.
        where: (b, H, W), what is pasted.
    """
    return torch.where(where if own.dim() == where.dim() else where[:, None], other, own)


def pasted(x: Shaped[Tensor, "b ..."], where: Bool[Tensor, "b H W"]) -> Tensor:
    """The batch with itself in reverse order inside the boxes; arguments as of :func:`mix`."""
    return mix(x, x.flip(0), where)


def pasted_next(x: Shaped[Tensor, "b ..."], where: Bool[Tensor, "b H W"]) -> Tensor:
    """The next image of the batch inside the boxes, the first one in the last; arguments as of :func:`mix`."""
    return mix(x, x.roll(-1, 0), where)


def partners(count: int, device: torch.device) -> Int[Tensor, " b"]:
    """Which image is pasted into each one: its neighbour; the last of an odd number is its own.

    Images come in random order, so neighbours are as good as drawn; and they are the same with several processes.
    """
    return (torch.arange(count, device=device) ^ 1).clamp(max=count - 1)


def view_boxes(batch: UnlabeledBatch) -> list[Tensor]:
    """Where the boxes of each draw are, (u, H, W) each."""
    assert batch.boxes is not None
    return [box_masks(boxes, batch.weak.shape[2:]) for boxes in batch.boxes]


def mix_logits(own: Logits, other: Logits, where: Bool[Tensor, "b H W"]) -> Logits:
    """The same for logits, on the decoder's grid: each of its cells is the one's or the other's, as its middle is."""
    return replace(own, coarse=mix(own.coarse, other.coarse, on_grid(where, own.coarse.shape[2:], own.padded)))


def on_grid(where: Bool[Tensor, "b H W"], grid: Sequence[int], padded: Sequence[int]) -> Bool[Tensor, "b h w"]:
    """The same on a coarser grid: each of its cells is as its middle is.

    Args:
        where: what is pasted.
        grid: height and width of the grid.
        padded: pixels that the grid stands for; ``where`` is the upper left part of them.
    """
    rows, columns = (
        ((torch.arange(n, device=where.device) + 0.5) * (size / n)).long().clamp(max=most - 1)
        for n, size, most in zip(grid, padded, where.shape[1:], strict=True)
    )
    return where[:, rows[:, None], columns]


def valid_pixels(batch: UnlabeledBatch) -> Bool[Tensor, "u H W"]:
    """(u, H, W), False where a crop was padded."""
    if batch.valid is not None:
        return batch.valid
    return torch.ones(batch.weak[:, 0].shape, dtype=torch.bool, device=batch.weak.device)


def reversed_batch(batch: UnlabeledBatch) -> UnlabeledBatch:
    """The images in reverse order, each the partner of another (of an odd number the middle one of itself)."""
    return UnlabeledBatch(
        batch.weak.flip(0),
        None if batch.valid is None else batch.valid.flip(0),
        batch.ids[::-1],
        None if batch.strong is None else batch.strong.flip(1),
        None if batch.boxes is None else batch.boxes.flip(1),
        None if batch.chance is None else batch.chance.flip(0),
    )
