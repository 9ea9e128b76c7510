"""Sliding windows: plan, crops, stitched class probabilities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allspark.kernels.logits import Logits

Box = tuple[int, int, int, int]
"""top, left, bottom, right [pixels]; bottom and right are exclusive."""


def plan(height: int, width: int, window: tuple[int, int], stride: float) -> list[Box]:
    """Place windows that cover an image.

    All windows of an image have one size: the window's, or the image's where the image is smaller. The last window of
    a row or column is aligned to the far edge, so that it sees as much context as the others.

    Args:
        height: of the image [pixels].
        width: of the image [pixels].
        window: height and width of a window [pixels].
        stride: distance of two windows as a fraction of the window, in (0, 1].

    Returns:
        The windows, row by row.

    Raises:
        ValueError: a size is below 1, or the stride is not in (0, 1].
    """
    if min(height, width, *window) < 1 or not 0 < stride <= 1:
        raise ValueError(
            f"no windows of {window[0]} x {window[1]} at stride {stride} on an image of {height} x {width} pixels: "
            "sizes must be at least 1 and the stride in (0, 1]"
        )
    tall, wide = min(window[0], height), min(window[1], width)
    return [
        (top, left, top + tall, left + wide)
        for top in _starts(height, window[0], stride)
        for left in _starts(width, window[1], stride)
    ]


def _starts(length: int, window: int, stride: float) -> list[int]:
    last = max(length - window, 0)
    step = max(1, round(window * stride))
    return [*range(0, last, step), last]


def windowed(
    forward: Callable[[Tensor], Logits], image: Tensor, window: tuple[int, int], stride: float, batch: int
) -> Tensor:
    """Average the class probabilities of overlapping windows.

    Args:
        forward: maps crops (n, 3, h, w) to their logits, each crop on its own.
        image: (b, 3, H, W).
        window: height and width of a window [pixels].
        stride: distance of two windows as a fraction of the window.
        batch: most windows in one call of ``forward``.

    Returns:
        (b, k, H, W) probabilities, float32 (float64 where the logits are), on the image's device.
    """
    height, width = image.shape[-2:]
    boxes = plan(height, width, window, stride)
    jobs = [(index, box) for index in range(len(image)) for box in boxes]
    total: Tensor | None = None
    for start in range(0, len(jobs), batch):
        chunk = jobs[start : start + batch]
        crops = torch.stack([image[i, :, top:bottom, left:right] for i, (top, left, bottom, right) in chunk])
        logits = forward(crops)
        for crops_here, rows, band in logits.bands():
            probabilities = band.softmax(1)  # (n', k, r, w)
            if total is None:
                total = probabilities.new_zeros(len(image), probabilities.shape[1], height, width)
            for (i, (top, left, _, right)), part in zip(chunk[crops_here], probabilities, strict=True):
                total[i, :, top + rows.start : top + rows.stop, left:right] += part
    if total is None:
        raise ValueError("no image to predict: the batch is empty")
    count = total.new_zeros(height, width)
    for top, left, bottom, right in boxes:
        count[top:bottom, left:right] += 1
    return total.div_(count)
