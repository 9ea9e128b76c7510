"""A check's report for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from allspark.data.check import Finding, Report
from allspark.data.check.findings import ROLE_NAMES, count, percent
from allspark.data.source import Source
from allspark.errors import printable

_SHOWN = 5  # files of one finding
_ROWS = 40  # classes shown; of more, the most and the least frequent ones


def print_report(report: Report, source: Source, console: Console) -> None:
    """Print counts, sizes, class frequencies, all findings with at most five files each, and whether it is safe."""
    console.print(Text(printable(str(source.root)), "bold"), soft_wrap=True)
    for note in source.notes:
        console.print(Text(f"note: {printable(note)}"), soft_wrap=True)
    console.print()
    console.print(_lists(report))
    if report.size_statistics():
        console.print()
        console.print(_sizes(report))
    if report.class_pixels:
        console.print()
        console.print(_classes(report, colours=console.is_terminal))
    for finding in report.findings:
        console.print()
        _print_finding(finding, console)
    console.print()
    errors = [finding for finding in report.findings if finding.level == "error"]
    if report.safe:
        console.print(Text("safe to train", "bold green"))
    else:
        console.print(Text(f"not safe: {count(len(errors), 'error')}", "bold red"))


def _table() -> Table:
    return Table(box=None, header_style="bold", padding=(0, 2, 0, 0))


def _lists(report: Report) -> Table:
    table = _table()
    table.add_column("list")
    table.add_column("images", justify="right")
    table.add_column("masks read", justify="right")
    for role, name in ROLE_NAMES.items():
        masks = f"{report.masks[role]:,}" if role in report.masks else "-"
        table.add_row(name, f"{report.counts[role]:,}", masks)
    return table


def _sizes(report: Report) -> Table:
    table = _table()
    table.add_column("size [pixels]")
    statistics = report.size_statistics()
    for name in statistics:
        table.add_column(name, justify="right")
    if report.crop:
        table.add_column("crop", justify="right")
    for axis, name in enumerate(("width", "height")):
        crop = [str(report.crop[1 - axis])] if report.crop else []
        table.add_row(name, *(str(size[axis]) for size in statistics.values()), *crop)
    return table


def _classes(report: Report, *, colours: bool) -> Table:
    """Share of the pixels and number of images of each class."""
    table = _table()
    table.add_column("id", justify="right")
    table.add_column("class")
    for role in report.class_pixels:
        table.add_column(f"{'labelled' if role == 'labeled' else role} pixels", justify="right")
        table.add_column("images", justify="right")
    totals = {role: max(int(pixels.sum()), 1) for role, pixels in report.class_pixels.items()}
    shown, left_out = _shown(report)
    for index in shown:
        cells: list[Text | str] = []
        for role, pixels in report.class_pixels.items():
            share = int(pixels[index]) / totals[role]
            cells += [percent(share) if share else Text("none", "yellow"), f"{report.class_images[role][index]:,}"]
        name = Text(report.classes[index])
        if colours:  # elsewhere a block of no colour would say nothing
            name = Text.assemble(("\u2588\u2588 ", "rgb({},{},{})".format(*report.palette[index])), name)
        table.add_row(str(index), name, *cells)
    if left_out:
        table.add_row("", f"and {left_out} more between these (all with --json)")
    return table


def _shown(report: Report) -> tuple[list[int], int]:
    """The classes to show, in the order of their ids, and how many are not."""
    everything = [index for index in range(len(report.classes)) if report.named or _occurs(report, index)]
    if len(everything) <= _ROWS:
        return list(everything), 0
    totals = [sum(int(pixels[index]) for pixels in report.class_pixels.values()) for index in everything]
    ranked = sorted(everything, key=lambda index: (-totals[index], index))
    return sorted([*ranked[: _ROWS // 2], *ranked[-(_ROWS // 2) :]]), len(everything) - _ROWS


def _occurs(report: Report, index: int) -> bool:
    return any(int(pixels[index]) for pixels in report.class_pixels.values())


def _print_finding(finding: Finding, console: Console) -> None:
    colour = "red" if finding.level == "error" else "yellow"
    console.print(f"[bold {colour}]{finding.level}[/] {escape(printable(finding.summary))}", soft_wrap=True)
    for line in finding.details[:_SHOWN]:
        console.print(Text(f"    {printable(line)}"), soft_wrap=True)
    if len(finding.details) > _SHOWN:
        console.print(Text(f"    and {len(finding.details) - _SHOWN:,} more"))
    if finding.fix:
        console.print(Text.assemble(("  fix ", "green"), printable(finding.fix)), soft_wrap=True)
    for line in finding.paste:
        print(line, file=console.file)  # as it is: rich would turn its tabs into blanks
