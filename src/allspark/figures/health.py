"""One page on the course of a run: is it learning, are its pseudo-labels still whole, and what its method watches."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from allspark.engine.sinks import read_log
from allspark.errors import DataError
from allspark.figures.comparison import COLOURS, save_figure

_COLUMNS = 3
_MANY = 12  # classes; more of them are drawn without a legend
_LINE = 200  # letters of a warning that fit beside one another
_SMALL: dict[str, Any] = {"fontsize": 8}
Rows = Sequence[Mapping[str, Any]]


def draw_run(run: Path, path: Path) -> Path:
    """Draw the log of a run, finished or not.

    Args:
        run: folder of the run.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        DataError: there is no log, or it holds no validation yet.
    """
    rows = read_log(run)
    looks = [row for row in rows if "health" in row]
    if not looks:
        known = "its log holds no validation yet" if rows else f"no log {run / 'log.jsonl'}"
        raise DataError(f"{run}: {known}; a picture can be drawn after the first epoch")
    figure = Figure(figsize=(13, 7.2), layout="constrained", dpi=110)
    figure.suptitle(f"{run}: {looks[-1]['step']} updates", fontsize=12, fontweight="bold")
    panels: list[Callable[[Axes, Rows], None]] = [
        lambda axes, _: _loss(axes, [row for row in rows if "loss" in row]),
        _scores,
        _agreement,
        _shares,
        *(_table(key) for key in _own_tables(looks)),
    ]
    grid: Any = figure.subplots(-(-len(panels) // _COLUMNS), _COLUMNS)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes, looks)
        axes.set_xlabel(axes.get_xlabel() or "weight updates", **_SMALL)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _, labels = axes.get_legend_handles_labels()
        if 0 < len(labels) <= _MANY:
            axes.legend(frameon=False, fontsize=7, ncols=1 + (len(labels) > 4))
        if not labels:
            axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes, color="grey", **_SMALL)
    warnings = [f"step {row['step']}: {row['warning']}" for row in looks if "warning" in row]
    if warnings:
        lines = [part for line in warnings[-3:] for part in textwrap.wrap(line, _LINE)]
        figure.supxlabel("\n".join(lines), fontsize=8, color="#B00020")
    save_figure(figure, path)
    return path


def _loss(axes: Axes, rows: Rows) -> None:
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("loss_"))
    for number, name in enumerate(names):
        _line(axes, _series(rows, name), name.removeprefix("loss_"), COLOURS[number % len(COLOURS)])
    axes.set_title("loss", **_SMALL)


def _scores(axes: Axes, looks: Rows) -> None:
    """The error margins of the paper's figure 1c: labelled, unlabelled and validation images."""
    _line(axes, _series(looks, "miou", scale=100), "validation", COLOURS[2])
    for role, colour in (("labeled", COLOURS[0]), ("unlabeled", COLOURS[1])):
        _line(axes, _series(looks, "health", f"miou_{role}", scale=100), f"training, {role}", colour)
    axes.set_title("mIoU [%] (watched training images)", **_SMALL)


def _agreement(axes: Axes, looks: Rows) -> None:
    _line(axes, _series(looks, "health", "agreement", scale=100), "agreement with the validation before", COLOURS[4])
    _line(axes, _series(looks, "health", "pseudo_accuracy", scale=100), "accuracy (masks exist)", COLOURS[5])
    axes.set_title("pseudo-labels of watched images [%]", **_SMALL)


def _shares(axes: Axes, looks: Rows) -> None:
    """The class histogram of labels and pseudo-labels since the validation before the last."""
    health = looks[-1]["health"]
    labeled, pseudo = health.get("labeled_share", {}), health.get("pseudo_share", {})
    places = np.arange(len(labeled))
    axes.bar(places - 0.2, [100 * share for share in labeled.values()], 0.4, color=COLOURS[0], label="labels")
    if pseudo:
        heights = [100 * pseudo.get(name, 0) for name in labeled]
        axes.bar(places + 0.2, heights, 0.4, color=COLOURS[1], label="pseudo-labels")
    axes.set_xticks(places, list(labeled), rotation=60, ha="right")
    axes.set_title("share of the pixels, last epoch [%]", **_SMALL)
    axes.set_xlabel("class")


def _own_tables(looks: Rows) -> list[str]:
    """What the method tells of each class, beside the shares that every run has."""
    tables = dict.fromkeys(key for row in looks for key, value in row["health"].items() if isinstance(value, Mapping))
    return [key for key in tables if not key.endswith("_share")]


def _table(key: str) -> Callable[[Axes, Rows], None]:
    """A panel with a line for each class; of equal ones, such as those of a full memory, one for all."""

    def panel(axes: Axes, looks: Rows) -> None:
        names = dict.fromkeys(name for row in looks for name in row["health"].get(key, {}))
        same: dict[tuple[tuple[int, float], ...], list[str]] = {}
        for name in names:
            same.setdefault(tuple(_series(looks, "health", key, name)), []).append(name)
        for number, (points, those) in enumerate(same.items()):
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            label = those[0] if len(those) == 1 else f"{len(those)} of {len(names)} classes"
            _line(axes, points, label, COLOURS[number % len(COLOURS)], style=style)
        axes.set_title(key.replace("_", " "), **_SMALL)

    return panel


def _series(rows: Rows, *keys: str, scale: float = 1) -> list[tuple[int, float]]:
    """(step, value) of the rows that know the value, which may lie in tables within tables."""
    points = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            points.append((row["step"], scale * value))
    return points


def _line(axes: Axes, points: Sequence[tuple[int, float]], label: str, colour: str, *, style: str = "-") -> None:
    if points:
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.4, marker=marker, ms=3)
