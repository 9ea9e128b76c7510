"""The confusion matrix of an evaluation, as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from allspark.errors import printable
from allspark.files import atomic_path, atomic_write

_NUMBERED = 12  # classes up to which each cell shows its number


def write_confusion(matrix: NDArray[np.int64], classes: Sequence[str], out: Path) -> None:
    """Write OUT/confusion.csv (pixels) and OUT/confusion.png (share of each true class).

    Args:
        matrix: (k, k), pixels; the row is the true class, the column the predicted one.
        classes: their names.
        out: a folder.
    """
    with atomic_write(out / "confusion.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true \\ predicted", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    with atomic_path(out / "confusion.png") as path:
        draw_confusion(matrix, classes).savefig(path, format="png")


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Each row in percent of its true class; classes without a pixel are left blank."""
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(100.0 * matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = 2.5 + 0.42 * len(classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=110)
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [printable(name).replace("$", r"\$") for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= _NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                colour = "white" if share > 60 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, ax=axes, label="% of the true class", shrink=0.7)
    return figure
