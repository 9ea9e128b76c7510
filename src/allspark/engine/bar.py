"""What a person sees of a run: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from allspark.engine.sinks import Sink


class Bar(Sink):
    """A progress bar with loss, images/s, time to go and the method's own numbers; elsewhere a line for each row.

    Args:
        console: usually of standard error, so that standard output stays for results.
        label: what the bar is headed with.
    """

    def __init__(self, console: Console, label: str = "training") -> None:
        self._console = console
        self._label = label
        self._total = 0
        self._first = (0, 0.0)  # the step that training began with, and when
        self._progress: Progress | None = None
        self._task: Any = None

    def note(self, line: str) -> None:
        """Show one line above the bar."""
        self._console.print(line, highlight=False, markup=False)

    def begin(self, step: int, total: int) -> None:
        """Draw the bar."""
        self._total = total
        self._first = (step, time.monotonic())
        if not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            *([TimeElapsedColumn()] if self._console.width >= 100 else []),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
        )
        self._task = self._progress.add_task(self._label, total=total, completed=step, numbers="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Update the numbers beside the bar, or print a line."""
        if "miou" in row:
            self.note(
                f"step {row['step']}/{self._total}  validation: mIoU {100 * row['miou']:.2f} %, "
                f"pixel accuracy {100 * row['pixel_accuracy']:.2f} %{'  (best)' if row.get('best') else ''}"
            )
            return
        if "loss" not in row:
            return  # no validation images; what is wrong with the run's health comes as a note
        numbers = f"loss {row['loss']:.4f}  {row['images_per_s']:.1f} img/s"
        numbers += "".join(f"  {name} {value:.3g}" for name, value in row.items() if not _is_usual(name))
        if self._progress is not None:
            self._progress.update(self._task, numbers=numbers)
        else:
            self.note(f"step {row['step']}/{self._total}  {numbers}  eta {self._to_go(row['step'])}")

    def _to_go(self, step: int) -> timedelta:
        first, began = self._first
        return timedelta(seconds=round((time.monotonic() - began) / (step - first) * (self._total - step)))

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _is_usual(name: str) -> bool:
    """Whether every method logs this."""
    return name.startswith("loss") or name in {"step", "epoch", "lr", "images_per_s", "seconds", "grad_norm"}
