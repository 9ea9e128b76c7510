"""The record of a run: log.jsonl (everything), log.csv (for spreadsheets), TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from allspark.files import atomic_write

COLUMNS = (
    *("step", "epoch", "loss", "loss_labeled", "loss_unlabeled", "memory_fill", "lr", "images_per_s", "seconds"),
    *("miou", "pixel_accuracy", "agreement", "pseudo_accuracy", "miou_labeled", "miou_unlabeled", "warning"),
)
CLASS_COLUMNS = ("iou", "labeled_share", "pseudo_share", "memory_fill", "memory_age")
"""Each of these has a column for every class, for example ``iou road``."""


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


class RunLog:
    """Appends rows, each on disk when ``write`` returns.

    Args:
        run: folder of the run.
        step: weight updates done so far; rows of later steps, which a resumed run will write again, are cut.
        classes: names of the classes, for the columns of log.csv.
    """

    def __init__(self, run: Path, step: int = 0, classes: Sequence[str] = ()) -> None:
        self._columns = (*COLUMNS, *(f"{table} {name}" for table in CLASS_COLUMNS for name in classes))
        kept = [row for row in read_log(run) if row["step"] <= step] if step else []
        with atomic_write(run / "log.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        with atomic_write(run / "log.csv", "w") as file:
            file.write(self._csv_line({name: name for name in self._columns}))
            file.writelines(self._csv_line(row) for row in kept)
        self._jsonl = (run / "log.jsonl").open("a", encoding="utf-8")
        self._csv = (run / "log.csv").open("a", encoding="utf-8")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; ``step`` counts the weight updates done."""
        self._jsonl.write(json.dumps(dict(row)) + "\n")
        self._csv.write(self._csv_line(row))
        self._jsonl.flush()
        self._csv.flush()
        if self._board is not None:
            for name, value in _flat(row).items():
                if name not in {"step", "epoch"} and isinstance(value, (int, float)):
                    self._board.add_scalar(re.sub(r"[^\w./-]", "_", name), value, row["step"])

    def _csv_line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        values = _flat(row)
        csv.writer(text, lineterminator="\n").writerow([values.get(column, "") for column in self._columns])
        return text.getvalue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jsonl.close()
        self._csv.close()
        if self._board is not None:
            self._board.close()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in tables (the IoU of each class, the health of a run) as values of their own."""
    flat = {name: value for name, value in row.items() if not isinstance(value, dict)}
    tables = {**row.get("health", {}), "iou": row.get("iou", {})}
    for table, entry in tables.items():
        if isinstance(entry, dict):
            flat |= {f"{table} {name}": value for name, value in entry.items()}
        else:
            flat[table] = entry
    return flat
