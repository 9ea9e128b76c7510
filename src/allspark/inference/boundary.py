"""Boundary IoU (Cheng, Girshick, Dollar, Berg, Kirillov; CVPR 2021): IoU of what lies near the edges of classes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from allspark.batch import IGNORE
from allspark.runtime.collectives import all_reduce

_WIDTH = 0.02  # of the boundary, as a share of the image's diagonal: as published


class BoundaryIoU:
    """Counts pixels near edges over a data set, on the device of the predictions.

    A class's boundary are its pixels within a distance, 2 % of the image's diagonal, of another class or of the image's
    edge (distances as a square window measures them, as the authors' code does). IoU is taken of the boundaries in mask
    and prediction. Ignored pixels count for nothing, and are another class where distances are measured.

    Args:
        num_classes: number of classes k.
        device: where to count.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self._counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # both, predicted, true

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add the pixels of a batch.

        Args:
            pred: (b, H, W) integer, predicted class of each pixel.
            target: same shape, integer, true class of each pixel; 255 does not count.
        """
        pred, target = (x.to(self._counts.device).long() for x in (pred, target))
        width = max(1, round(_WIDTH * math.hypot(*pred.shape[-2:])))
        counted = target != IGNORE
        near_pred, near_true = near_edge(pred, width) & counted, near_edge(target, width) & counted
        both = near_pred & near_true & (pred == target)
        for row, labels in ((0, target[both]), (1, pred[near_pred]), (2, target[near_true])):
            self._counts[row] += torch.bincount(labels, minlength=self.num_classes)[: self.num_classes]

    def add_up(self) -> None:
        """Add the counts of all processes, so that each has the sum."""
        self._counts = all_reduce(self._counts)

    def iou(self) -> NDArray[np.float64]:
        """(k,), from 0 to 1; nan for a class that occurs neither in masks nor in predictions."""
        both, predicted, true = self._counts.cpu().numpy().astype(np.float64)
        union = predicted + true - both
        iou: NDArray[np.float64] = np.divide(both, union, out=np.full(self.num_classes, np.nan), where=union > 0)
        return iou


def near_edge(labels: Tensor, width: int) -> Tensor:
    """(b, H, W) -> the same, which pixels have another class, or the image's edge, within ``width`` pixels."""
    padded = F.pad(labels[:, None].float(), [width] * 4, value=-1)
    largest, negated = (F.max_pool2d(sign * padded, 2 * width + 1, stride=1)[:, 0] for sign in (1, -1))
    return largest != -negated
