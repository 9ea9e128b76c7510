"""Figures as a table, a page and curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from rich.table import Table

from benchmarks.measure import MB

COLUMNS = ("part", "case", "variant", "time [s]", "a second", "product faster", "peak [MB]", "product's share", "GFLOP")
_AXES = ("classes", "crop [pixels]", "images")
_BASE = (21, 513, 4)  # what stays where one of them grows


def table(facts: dict[str, str], results: Sequence[dict[str, Any]]) -> Table:
    """For the terminal."""
    out = Table(title="Product against plain versions", caption=_said(facts))
    for number, column in enumerate(COLUMNS):
        out.add_column(column, justify="left" if number < 3 else "right")
    for result in results:
        for row in _rows(result):
            out.add_row(*row)
    return out


def write_report(folder: Path, facts: dict[str, str], results: Sequence[dict[str, Any]]) -> None:
    """Write figures.json, README.md, and scaling.svg where there is something to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
    lines = ["# Measured figures", "", f"Written by `make bench`: {_said(facts)}.", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * 3 + "|--:" * (len(COLUMNS) - 3) + "|"]
    lines += ["| " + " | ".join(row) + " |" for result in results for row in _rows(result)]
    if any(result["growth"] for result in results):
        _draw(folder / "scaling.svg", results)
        lines += ["", "![time and memory of a step as classes, crop and batch grow](scaling.svg)"]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _said(facts: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _rows(result: dict[str, Any]) -> list[list[str]]:
    product = result["variants"]["product"]
    rows = []
    for number, (name, figures) in enumerate(result["variants"].items()):
        speed = figures["median_s"] / product["median_s"]
        share = product["peak_bytes"] / max(1, figures["peak_bytes"])
        goal = result["goal"] if number == 0 and name != "product" else {"speed": None, "memory": None}
        units = result["units"]
        rows.append(
            [
                result["part"],
                result["case"],
                name,
                f"{figures['median_s']:.3f}",
                f"{units[0] / figures['median_s']:.2f} {units[1]}" if units else "",
                "" if name == "product" else f"{speed:.2f}" + _verdict(goal["speed"], speed, 1),
                f"{figures['peak_bytes'] / MB:.0f}",
                "" if name == "product" else f"{share:.2f}" + _verdict(goal["memory"], share, -1),
                f"{figures['operations'] / 1e9:.0f}" if figures["operations"] else "",
            ]
        )
    return rows


def _verdict(goal: float | None, value: float, sign: int) -> str:
    if goal is None:
        return ""
    met = sign * (value - goal) >= 0
    return f" (goal {'>=' if sign > 0 else '<='} {goal:g}: {'met' if met else 'missed'})"


def _draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Time and memory of a step, one column for each quantity that grows."""
    grown = [result for result in results if result["growth"]]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
    for column, label in enumerate(_AXES):
        points = [r for r in grown if all(r["growth"][i] == _BASE[i] for i in range(3) if i != column)]
        points.sort(key=lambda r: r["growth"][column])
        sizes = [r["growth"][column] for r in points]
        for variant, colour in (("textbook", "0.55"), ("product", "tab:orange")):
            figures = [r["variants"][variant] for r in points]
            axes[0, column].plot(sizes, [f["median_s"] for f in figures], "o-", color=colour, label=variant)
            axes[1, column].plot(sizes, [f["peak_bytes"] / 2**30 for f in figures], "o-", color=colour, label=variant)
        axes[1, column].set_xlabel(label)
        for row in (0, 1):
            axes[row, column].set_ylim(bottom=0)
            axes[row, column].set_xticks(sizes)
            axes[row, column].spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("time of a step [s]")
    axes[1, 0].set_ylabel("peak memory [GiB]")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
