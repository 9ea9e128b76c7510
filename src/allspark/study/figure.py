"""The figure of a study: every seed as a dot, the mean as a line, the paper's number as a star."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from allspark.figures.comparison import COLOURS, save_figure
from allspark.study.table import Row, comparable


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw a panel for each family of partitions; nothing is drawn while nothing is finished.

    Args:
        rows: of the table.
        path: PNG to write.
        title: of the figure.
    """
    rows = [row for row in rows if row.last]
    families = list(dict.fromkeys(row.family for row in rows))
    if not families:
        return
    methods = list(dict.fromkeys(row.method for row in rows))
    widest = max(len({row.partition for row in rows if row.family == family}) for family in families)
    width = 3 + max(2.0, 0.35 * len(methods)) * widest
    figure = Figure(figsize=(min(width, 14), 3.8 * len(families)), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    panels: Any = figure.subplots(len(families), 1, squeeze=False)
    for axes, family in zip(panels[:, 0], families, strict=True):
        _panel(axes, [row for row in rows if row.family == family], methods)
        axes.set_title(family, fontsize=9, loc="left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_cost(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw score against cost, a panel for each partition that two methods share; nothing where there is none.

    Args:
        rows: of the table.
        path: PNG to write.
        title: of the figure.
    """
    panels = comparable(rows)
    if not panels:
        return
    figure = Figure(figsize=(9, 5.2 * len(panels)), layout="constrained", dpi=110)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    all_axes: Any = figure.subplots(len(panels), 1, squeeze=False)
    for axes, ((family, partition), some) in zip(all_axes[:, 0], panels.items(), strict=True):
        for number, row in enumerate(some):
            cost = row.mean_of("train_seconds") / row.mean_of("steps")
            height = statistics.stdev(row.last) if len(row.last) > 1 else 0.0
            mean = statistics.fmean(row.last)
            axes.errorbar(cost, mean, height, fmt="o", color=COLOURS[number % len(COLOURS)], ms=5, capsize=3)
            axes.annotate(row.method, (cost, mean), (6, 4), textcoords="offset points", fontsize=8)
        axes.set_title(f"{family}, {partition}", fontsize=9, loc="left")
        axes.set_xlabel("cost of an update [s], on the table's hardware", fontsize=9)
        axes.set_ylabel("mIoU, last checkpoint [%], mean and standard deviation", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.15, y=0.12)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _panel(axes: Any, rows: Sequence[Row], methods: Sequence[str]) -> None:
    partitions = list(dict.fromkeys(row.partition for row in rows))
    step = 0.8 / len(methods)
    starred = False
    for number, method in enumerate(methods):
        colour = COLOURS[number % len(COLOURS)]
        label: str | None = method
        for row in (row for row in rows if row.method == method):
            place = partitions.index(row.partition) + (number - (len(methods) - 1) / 2) * step
            axes.plot(np.full(len(row.last), place), row.last, "o", color=colour, ms=4, alpha=0.6)
            mean = statistics.fmean(row.last)
            axes.plot([place - step / 3, place + step / 3], [mean, mean], color=colour, linewidth=3, label=label)
            axes.annotate(
                f"{mean:.1f}", (place, max(row.last)), (0, 5), textcoords="offset points", ha="center", fontsize=7
            )
            label = None
            if row.paper is not None:
                axes.plot(place, row.paper, "*", color="black", ms=9, label=None if starred else "paper")
                starred = True
    axes.set_xticks(range(len(partitions)), partitions, fontsize=8)
    axes.set_xlim(-0.6, len(partitions) - 0.4)
    axes.margins(y=0.15)
    axes.set_ylabel("mIoU, last epoch [%]", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
