"""Pictures of runs: curves, IoU per class, predictions side by side. Pure functions of numbers and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from allspark.data.image import overlay
from allspark.data.source import RGB
from allspark.files import atomic_path

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
_STYLE: dict[str, Any] = {"fontsize": 9}


@dataclass(frozen=True)
class MethodResult:
    """What the pictures need of one run."""

    name: str
    rows: Sequence[Mapping[str, Any]]  # of its log
    iou: NDArray[np.float64]  # (k,), 0 to 1, nan for absent classes
    miou: float


@dataclass(frozen=True)
class Example:
    """One image with its truth and the methods' predictions, all (H, W)."""

    image: Image.Image
    truth: NDArray[np.uint8]
    predictions: Mapping[str, NDArray[np.uint8]]


def one_page(
    title: str,
    results: Sequence[MethodResult],
    examples: Sequence[Example],
    classes: Sequence[str],
    palette: Sequence[RGB],
) -> Figure:
    """Compare methods on one page: loss and mIoU curves, IoU per class, examples."""
    figure = Figure(figsize=(11, 5.6 + 1.75 * len(examples)), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    halves: Any = figure.subfigures(2, 1, height_ratios=[5.2, 1.75 * len(examples) + 0.4])
    top, bottom = halves
    axes = top.subplot_mosaic("ab\ncc", gridspec_kw={"height_ratios": [1.1, 1]})
    draw_curve(axes["a"], results, "loss_labeled", "loss on labelled crops")
    draw_curve(axes["b"], results, "miou", "mIoU on validation images [%]", scale=100)
    draw_class_bars(axes["c"], results, classes)
    draw_examples(bottom, examples, classes, palette)
    return figure


def draw_curve(axes: Axes, results: Sequence[MethodResult], key: str, label: str, scale: float = 1) -> None:
    """Draw one number of the logs over steps, a line a method."""
    for result, colour in zip(results, COLOURS, strict=False):
        points = [(row["step"], scale * row[key]) for row in result.rows if key in row]
        if points:
            marker = "o" if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), color=colour, label=result.name, linewidth=1.5, marker=marker, ms=3)
    axes.set_xlabel("weight updates", **_STYLE)
    axes.set_ylabel(label, **_STYLE)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def draw_class_bars(axes: Axes, results: Sequence[MethodResult], classes: Sequence[str]) -> None:
    """Draw the IoU of each class, grouped by class, and the mean."""
    width = 0.8 / max(len(results), 1)
    places = np.arange(len(classes) + 1)
    for i, (result, colour) in enumerate(zip(results, COLOURS, strict=False)):
        heights = 100 * np.nan_to_num(np.append(result.iou, result.miou))
        bars = axes.bar(places + (i - (len(results) - 1) / 2) * width, heights, width, color=colour, label=result.name)
        if len(places) <= 12:
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.axvline(len(classes) - 0.5, color="grey", linewidth=0.8)
    axes.set_xticks(places, [*classes, "mean"], fontsize=8, rotation=45 if len(classes) > 12 else 0)
    axes.set_ylabel("IoU [%]", **_STYLE)
    axes.set_ylim(0, 105)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_examples(figure: Any, examples: Sequence[Example], classes: Sequence[str], palette: Sequence[RGB]) -> None:
    """Draw input, truth and predictions, a row an example, with a legend of the classes."""
    names = list(examples[0].predictions) if examples else []
    grid = figure.subplots(max(len(examples), 1), 2 + len(names), squeeze=False)
    for row, example in zip(grid, examples, strict=False):
        masks = [example.truth, *(example.predictions[name] for name in names)]
        pictures = [example.image, *(overlay(example.image, mask, palette, alpha=0.75) for mask in masks)]
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(np.asarray(picture), interpolation="nearest")
    for axes, name in zip(grid[0], ["input", "truth", *names], strict=True):
        axes.set_title(name, **_STYLE)
    for axes in grid.flat:
        axes.set_axis_off()
    patches = [Patch(color=np.array(rgb) / 255, label=name) for name, rgb in zip(classes, palette, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 11), frameon=False, fontsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
