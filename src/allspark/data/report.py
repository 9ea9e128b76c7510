"""A check's report for people."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allspark.data.check import Report
from allspark.data.source import Source

_SHOWN = 5


def print_report(report: Report, source: Source, console: Console) -> None:
    """Print counts, class frequencies, sizes, and all findings with at most five files each."""
    counts = report.counts
    console.print(
        f"[bold]{escape(str(source.root))}[/]: {counts['labeled']} labelled, {counts['unlabeled']} unlabelled, "
        f"{counts['val']} validation images",
        highlight=False,
    )
    for note in source.notes:
        console.print(f"note: {escape(note)}", highlight=False)
    if len(report.sizes):
        low, mid, high = (function(report.sizes, 0).astype(int) for function in (np.min, np.median, np.max))
        console.print(
            f"image sizes: {low[0]}x{low[1]} to {high[0]}x{high[1]}, median {mid[0]}x{mid[1]}", highlight=False
        )
    if report.class_pixels:
        console.print(_class_table(report, source))
    for finding in report.findings:
        colour = "red" if finding.level == "error" else "yellow"
        console.print(f"[{colour} bold]{finding.level}[/]: {escape(finding.summary)}", highlight=False)
        for line in finding.details[:_SHOWN]:
            console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
        if len(finding.details) > _SHOWN:
            console.print(f"    and {len(finding.details) - _SHOWN} more", highlight=False)
    errors = sum(finding.level == "error" for finding in report.findings)
    verdict = (
        "[green bold]safe to train[/]" if report.safe else f"[red bold]not safe to train[/]: {errors} kinds of errors"
    )
    console.print(verdict, highlight=False)


def _class_table(report: Report, source: Source) -> Table:
    table = Table("id", "class", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for role in report.class_pixels:
        table.add_column(f"{role} pixels", justify="right")
        table.add_column("images", justify="right")
    totals = {role: max(int(pixels.sum()), 1) for role, pixels in report.class_pixels.items()}
    for k, name in enumerate(source.classes):
        cells = []
        for role, pixels in report.class_pixels.items():
            share = 100 * int(pixels[k]) / totals[role]
            cells += [f"{share:.2f} %" if pixels[k] else "[yellow]none[/]", str(int(report.class_images[role][k]))]
        table.add_row(str(k), escape(name), *cells)
    return table
