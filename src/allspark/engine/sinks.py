"""Where a run's progress goes: log.jsonl and log.csv, a bar or plain lines, TensorBoard. All share one protocol."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from allspark.errors import printable
from allspark.files import atomic_write


class Sink:
    """Hears of everything that happens in a run; this one does nothing. Override what is of interest."""

    def begin(self, step: int, total: int) -> None:
        """Training starts (or goes on) at ``step`` of ``total``."""

    def advance(self, step: int) -> None:
        """``step`` weight updates are done."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of the log: training means, or validation scores. ``row["step"]`` counts the weight updates done."""

    def note(self, line: str) -> None:
        """One line for the user."""

    def end(self) -> None:
        """Training is over, for whatever reason."""


class Sinks(Sink):
    """Several as one, each called in turn."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def begin(self, step: int, total: int) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink.begin(step, total)

    def advance(self, step: int) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink.advance(step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink.row(row)

    def note(self, line: str) -> None:
        """Pass it on; names of files and classes in it do nothing to a terminal."""
        for sink in self._sinks:
            sink.note(printable(line))

    def end(self) -> None:
        """Pass it on, in reverse."""
        for sink in reversed(self._sinks):
            sink.end()


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log; a last line that a killed run left unfinished is passed over."""
    path = run / "log.jsonl"
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


class FileLog(Sink):
    """log.jsonl holds everything, each row on disk when ``row`` returns; log.csv is the same for spreadsheets.

    The columns of log.csv are whatever was logged so far: a row with something new writes the file anew.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._jsonl: IO[str] | None = None
        self._csv: IO[str] | None = None
        self._columns: dict[str, None] = {}

    def begin(self, step: int, total: int) -> None:
        """Cut rows of later steps than ``step``, which a resumed run writes again, and open the files."""
        kept = [row for row in read_log(self._run) if row["step"] <= step] if step else []
        with atomic_write(self._run / "log.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        self._jsonl = (self._run / "log.jsonl").open("a", encoding="utf-8")
        self._columns = {}
        self._write_csv(kept)

    def row(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        assert self._jsonl is not None
        self._jsonl.write(json.dumps(dict(row)) + "\n")
        self._jsonl.flush()
        flat = flattened(row)
        if flat.keys() <= self._columns.keys():
            assert self._csv is not None
            self._csv.write(_csv_line([flat.get(column, "") for column in self._columns]))
            self._csv.flush()
        else:
            self._write_csv(read_log(self._run))

    def _write_csv(self, rows: Sequence[Mapping[str, Any]]) -> None:
        table = [flattened(row) for row in rows]
        self._columns |= dict.fromkeys(column for row in table for column in row)
        self._close_csv()
        with atomic_write(self._run / "log.csv", "w") as file:
            file.write(_csv_line(list(self._columns)) if self._columns else "")
            file.writelines(_csv_line([row.get(column, "") for column in self._columns]) for row in table)
        self._csv = (self._run / "log.csv").open("a", encoding="utf-8")

    def _close_csv(self) -> None:
        if self._csv is not None:
            self._csv.close()
            self._csv = None

    def end(self) -> None:
        """Close the files."""
        self._close_csv()
        if self._jsonl is not None:
            self._jsonl.close()
            self._jsonl = None


class TensorBoard(Sink):
    """RUN/tensorboard, where TensorBoard is installed; else nothing.

    Each row is on disk when ``row`` returns, written by no thread (as torch's writer has) that would print a traceback
    when the folder is removed.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / "tensorboard"
        self._file: IO[bytes] | None = None
        self._records: Any = None

    def begin(self, step: int, total: int) -> None:
        """Open the board; what it has of later steps is hidden."""
        if not importlib.util.find_spec("tensorboard"):
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        self._file = (self._folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def row(self, row: Mapping[str, Any]) -> None:
        """Add all numbers."""
        if self._file is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=re.sub(r"[^\w./-]", "_", name), simple_value=value)
            for name, value in flattened(row).items()
            if name not in {"step", "epoch"} and isinstance(value, (int, float))
        ]
        self._write(step=row["step"], summary=Summary(value=values))

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        assert self._file is not None
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()

    def end(self) -> None:
        """Close the board."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _csv_line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's tables (the IoU of each class, the health of a run) as values of their own, like ``iou road``."""

    def walk(table: Mapping[str, Any], head: str) -> Iterator[tuple[str, Any]]:
        for name, value in table.items():
            if isinstance(value, Mapping):
                yield from walk(value, "" if name == "health" else f"{name} ")
            else:
                yield f"{head}{name}", value

    return dict(walk(row, ""))
