"""Which row of a study is better, as far as its seeds can tell; and what each had reached in the same time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from allspark.engine.sinks import read_log
from allspark.study.table import Row, comparable, spread, table_line

# Student's t, 97.5 %, by degrees of freedom; beyond them the normal distribution's.
_T = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.96
_BASELINE = "supervised"


@dataclass(frozen=True)
class Difference:
    """How much better one row is than another, seed by seed [mIoU, points].

    Attributes:
        mean: over the seeds that both have.
        half: half of the 95 % interval around it, by Student's t; infinite with one seed.
    """

    mean: float
    half: float

    @classmethod
    def of(cls, scores: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
        """Of scores by seed; None where no seed is in both."""
        found = [score - other[seed] for seed, score in scores.items() if seed in other]
        if not found:
            return None
        free = len(found) - 1
        t = _T[free] if free < len(_T) else _NORMAL
        half = t * statistics.stdev(found) / math.sqrt(len(found)) if free else math.inf
        return cls(statistics.fmean(found), half)

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}" if math.isfinite(self.half) else f"{self.mean:+.2f}"


def ranking(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: a table for each partition that two methods share, best first, by the last checkpoint."""
    lines: list[str] = []
    for some in comparable(rows).values():
        ordered = sorted(some, key=lambda row: statistics.fmean(row.last), reverse=True)
        scores = {row.method: _by_seed(row) for row in ordered}
        best = ordered[0].method
        base = _BASELINE if _BASELINE in scores else ordered[-1].method
        first = ordered[0]
        lines += [
            "",
            f"## Ranking, {first.partition}",
            "",
            "mIoU of the last checkpoint in percent; differences seed by seed, with their 95 % interval (Student's t; "
            "none with one seed).",
            "",
            table_line("", "method", "last", f"against {base}", f"against {best}"),
            "|---" * 5 + "|",
        ]
        alike = []
        for number, row in enumerate(ordered, 1):
            cells = [str(number), row.method, spread(row.last)]
            for other in (base, best):
                one = None if other == row.method else Difference.of(scores[row.method], scores[other])
                cells.append("-" if one is None else str(one))
                if other == best and one is not None and not one.told_apart:
                    alike.append(row.method)
            lines.append(table_line(*cells))
        told = f"cannot be told apart from {best}: {', '.join(alike)}" if alike else "all others are below it"
        lines += ["", f"By these seeds, {told}."]
        lines += _at_equal_time(ordered)
    return lines


def _at_equal_time(rows: Sequence[Row]) -> list[str]:
    """What each row had reached when the quickest of them was finished; nothing where all take as long."""
    limit = min(row.mean_of("train_seconds") for row in rows)
    reached = []
    for row in rows:
        scores = (score_at(run, limit) for run in row.runs)
        reached.append((row, tuple(score for score in scores if score is not None)))
    if not any(then and then != row.last for row, then in reached):
        return []
    reached.sort(key=lambda pair: statistics.fmean(pair[1]) if pair[1] else -math.inf, reverse=True)
    lines = [
        "",
        f"When the quickest of them was finished, after {limit:.0f} s of training, they had reached (the schedules of "
        "the others were not at their end):",
        "",
        "| method | mIoU then | updates an hour |",
        "|---|---|---|",
    ]
    for row, then in reached:
        rate = 3600 * row.mean_of("steps") / row.mean_of("train_seconds")
        lines.append(table_line(row.method, spread(then), f"{rate:.0f}"))
    return lines


def score_at(run: Path, seconds: float) -> float | None:
    """MIoU in percent of a run's last validation within some seconds of training; None: there was none."""
    spent, score = 0.0, None
    for row in read_log(run):
        spent = row.get("seconds", spent)
        if spent > seconds * 1.001:
            break
        if "miou" in row:
            score = 100 * row["miou"]
    return score


def _by_seed(row: Row) -> dict[int, float]:
    results = [result for result in row.results if result["last_miou"] is not None]
    return {result["seed"]: score for result, score in zip(results, row.last, strict=True)}
