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
        matrix: (k, k) int64, pixels; the row is the true class, the column the predicted one.
        boundary_iou: (k,) float64, see :class:`allspark.inference.boundary.BoundaryIoU`; None: it was not asked for.
    """

    iou: NDArray[np.float64]
    miou: float
    pixel_accuracy: float
    matrix: NDArray[np.int64]
    boundary_iou: NDArray[np.float64] | None = None

    @property
    def precision(self) -> NDArray[np.float64]:
        """(k,), share of the pixels predicted as a class that are of it; nan where none is predicted so."""
        return _share(self.matrix.diagonal(), self.matrix.sum(0))

    @property
    def recall(self) -> NDArray[np.float64]:
        """(k,), share of a class's pixels that are found; nan where there are none."""
        return _share(self.matrix.diagonal(), self.matrix.sum(1))

    @property
    def dice(self) -> NDArray[np.float64]:
        """(k,), also called F1: the harmonic mean of precision and recall; nan where the class does not occur."""
        return _share(2 * self.matrix.diagonal(), self.matrix.sum(0) + self.matrix.sum(1))

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

    def details(self, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """Return what else there is to say of each class, as plain values for a JSON file."""
        found = {"precision": self.precision, "recall": self.recall, "dice": self.dice}
        if self.boundary_iou is not None:
            found["boundary_iou"] = self.boundary_iou
        return {
            key: {name: _plain(value) for name, value in zip(classes, values, strict=True)}
            for key, values in found.items()
        }


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return shares


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
        iou = _share(hits, matrix.sum(0) + matrix.sum(1) - hits)
        total = int(matrix.sum())
        return Scores(
            iou=iou,
            miou=float(np.nanmean(iou)) if total else float("nan"),
            pixel_accuracy=float(hits.sum() / total) if total else float("nan"),
            matrix=matrix,
        )
