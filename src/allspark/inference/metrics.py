"""One confusion matrix, and what is read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allspark.batch import IGNORE
from allspark.errors import DataError
from allspark.runtime.collectives import all_reduce


@dataclass(frozen=True)
class Scores:
    """Scores of a whole data set, as fractions from 0 to 1 (not percent).

    A class that occurs neither in a mask nor in a prediction has no IoU: it is nan and is left out of the mean, as in
    the evaluation of PASCAL VOC. (The published code counts it as 0.) A class that is only predicted, or only present,
    has IoU 0 and counts.

    Attributes:
        iou: (k,) float64, intersection over union of each class, summed over all pixels of all images.
        miou: mean of ``iou`` over the classes that occur; nan where no pixel was counted.
        pixel_accuracy: share of the counted pixels whose class is right; nan where no pixel was counted.
    """

    iou: NDArray[np.float64]
    miou: float
    pixel_accuracy: float

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return plain values for a JSON file: fractions from 0 to 1, None for nan.

        Args:
            classes: names, in the order of the class ids.

        Raises:
            ValueError: the number of names is not the number of classes.
        """
        if len(classes) != len(self.iou):
            raise ValueError(f"{len(classes)} class names for the scores of {len(self.iou)} classes: give one each")
        return {
            "miou": _plain(self.miou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "iou": {name: _plain(value) for name, value in zip(classes, self.iou, strict=True)},
        }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class ConfusionMatrix:
    """Counts pixels by true and predicted class, on the device of the predictions.

    An update never waits for the device: there is no branch on values, so that wrong mask values are counted too
    and reported by ``scores``. Counts are integers and add up over processes and images in any order.

    Args:
        num_classes: number of classes k.
        device: where to count.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # k*k cells, then one for ignored pixels and one for values that are no class
        self._counts = torch.zeros(num_classes * num_classes + 2, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    @property
    def matrix(self) -> Tensor:
        """The counts, (k, k) int64: row is the true class, column the predicted one. A view, not a copy."""
        k = self.num_classes
        return self._counts[: k * k].view(k, k)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Add the pixels of one image or of a batch.

        Args:
            pred: (H, W) or (b, H, W) integer, predicted class of each pixel.
            target: same shape, integer, true class of each pixel; 255 does not count.

        Raises:
            ValueError: the shapes differ.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"prediction of shape {tuple(pred.shape)} for a mask of shape {tuple(target.shape)}: shapes must agree"
            )
        k = self.num_classes
        pred = pred.to(self._counts.device, torch.int64)
        target = target.to(self._counts.device, non_blocking=True).to(torch.int64)  # masks are bytes on the way
        known = (target >= 0) & (target < k) & (pred >= 0) & (pred < k)
        cell = torch.where(known, target * k + pred, k * k + 1)
        cell.masked_fill_(target == IGNORE, k * k)
        # Not torch.bincount: on CUDA it copies the minimum and the maximum to the host; this is also faster on CPU.
        self._counts.index_add_(0, cell.flatten(), self._one.expand(cell.numel()))

    def add_up(self) -> None:
        """Add the counts of all processes, so that each has the sum."""
        self._counts = all_reduce(self._counts)

    def scores(self) -> Scores:
        """Compute the scores of all pixels so far.

        Raises:
            DataError: masks held values that are neither a class nor ignored.
        """
        wrong = int(self._counts[-1])
        if wrong:
            raise DataError(
                f"{wrong} pixels have a class outside 0..{self.num_classes - 1} that is not the ignore value "
                f"{IGNORE}: correct the masks (`allspark check` names the files) or the list of classes"
            )
        matrix = self.matrix.cpu().numpy()
        hits = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - hits
        iou = np.full(self.num_classes, np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        total = int(matrix.sum())
        return Scores(
            iou=iou,
            miou=float(np.nanmean(iou)) if total else float("nan"),
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
        )
