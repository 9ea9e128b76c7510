"""What the command line shows: progress on standard error, results on standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from allspark.engine.train import TrainResult
    from allspark.inference.metrics import Scores


def stdout() -> Console:
    """Results go here: plain text where it is no terminal."""
    return Console(highlight=False)


def stderr() -> Console:
    """Progress and remarks go here."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar in a terminal while something is counted; call the value with the number done and of all."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


def print_scores(scores: Scores, classes: Sequence[str], images: int) -> None:
    """Print the scores of each class, mean IoU and pixel accuracy in percent."""
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("class")
    columns = {"IoU %": scores.iou, "precision": scores.precision, "recall": scores.recall, "Dice": scores.dice}
    if scores.boundary_iou is not None:
        columns["boundary IoU"] = scores.boundary_iou
    for name in columns:
        table.add_column(name, justify="right")
    for name, *values in zip(classes, *columns.values(), strict=True):
        shown = ["-" if value != value else f"{100 * value:.2f}" for value in values]
        table.add_row(escape(name), *(["absent"] if shown[0] == "-" else shown[:1]), *shown[1:])
    console = stdout()
    console.print(table)
    console.print(
        f"\nmIoU {100 * scores.miou:.2f} %   pixel accuracy {100 * scores.pixel_accuracy:.2f} %   {images} images"
    )


def print_result(result: TrainResult) -> None:
    """Print where a run is and what it reached."""
    scores = {"best": result.best, "last": result.last}
    reached = ", ".join(f"{name} mIoU {100 * score:.2f} %" for name, score in scores.items() if score is not None)
    stdout().print(f"{result.out}: {result.steps} steps{reached and f'; {reached}'}", markup=False, soft_wrap=True)
