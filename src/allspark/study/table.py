"""The results of a study as one table: CSV, Markdown and a figure, beside the paper's numbers where there are any."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allspark.engine.result import read_result
from allspark.files import atomic_write
from allspark.study.plan import Planned

COLUMNS = (
    *("family", "partition", "labeled", "method", "encoder", "seeds", "best_miou", "best_std", "last_miou", "last_std"),
    *(
        "paper_miou",
        "steps",
        "images_seen",
        "train_seconds",
        "peak_memory_gb",
        "pseudo_kept",
        "pseudo_precision",
        "device",
    ),
    "apart",
)
_PSEUDO = ("kept", "precision")
_LENGTH = ("train.epochs", "train.steps_per_epoch", "optim.accumulate", "data.batch_unlabeled")
_PAPER_METHOD = "allspark"
_PAPER_MODEL = {"encoder": "mit-b5", "bottleneck_memory": True, "bottleneck_grouping": "class-scores"}


@dataclass(frozen=True)
class Row:
    """One method on one partition, over all its seeds that are finished. Scores are in percent.

    Attributes:
        family: lists whose results may be compared; results of different families never share a table.
        best: (seeds,), mIoU of the best epoch by validation.
        last: (seeds,), mIoU of the last epoch.
        paper: the paper's mIoU; None: it has no such row.
        results: result.json of each seed.
        runs: folder of each seed.
        apart: what this row has of its own that is not the method, as :class:`allspark.study.plan.Planned` says it.
        after: the row that it begins after; None: it begins by itself.
    """

    family: str
    partition: str
    method: str
    best: tuple[float, ...]
    last: tuple[float, ...]
    paper: float | None
    results: tuple[Mapping[str, Any], ...]
    apart: Mapping[str, str] = field(default_factory=dict)
    after: str | None = None
    runs: tuple[Path, ...] = ()

    def pseudo(self, key: str) -> tuple[float, ...]:
        """(seeds,), what is known of the pseudo-labels at the end, in percent; without those that do not know it."""
        found = (result.get("pseudo_labels", {}).get(key) for result in self.results)
        return tuple(100 * value for value in found if value is not None)

    def mean_of(self, key: str) -> float:
        """Mean of a number of the results over the seeds."""
        return statistics.fmean(result[key] for result in self.results)


def rows_of(runs: Sequence[Planned], paper: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Gather what is finished, in the order of the study.

    Args:
        runs: the study.
        paper: published mIoU that the study file gives, method -> partition -> percent.
    """
    groups: dict[tuple[str, str], list[tuple[Planned, dict[str, Any]]]] = defaultdict(list)
    order = dict.fromkeys((run.partition, run.method) for run in runs)
    for run in runs:
        result = read_result(run.out)
        if result is not None:
            groups[run.partition, run.method].append((run, result))
    rows = []
    for partition, method in order:
        found = groups.get((partition, method))
        if not found:
            continue
        run, first = found[0]
        scores = {
            key: tuple(100 * r[key] for _, r in found if r[key] is not None) for key in ("best_miou", "last_miou")
        }
        published = first["paper_miou"] if _is_papers(run) else None
        rows.append(
            Row(
                first["family"] or f"{first['data']} (own lists)",
                first["partition"] or partition,
                method,
                scores["best_miou"],
                scores["last_miou"],
                paper.get(method, {}).get(partition, published),
                tuple(result for _, result in found),
                run.apart,
                None if run.stage is None else run.stage.after,
                tuple(run.out for run, _ in found),
            )
        )
    return rows


def _is_papers(run: Planned) -> bool:
    """Whether the paper's main tables hold this row: the whole method on MiT-B5."""
    same = all(getattr(run.config.model, name) == value for name, value in _PAPER_MODEL.items())
    return same and run.config.method.name == _PAPER_METHOD


def fairness(runs: Sequence[Planned]) -> list[str]:
    """What the runs had in common, as found in their results; a line each, exceptions first.

    Rows that are apart by their length or by what they begin with are held against each other where that is the same.
    """
    results = [(run, result) for run in runs if (result := read_result(run.out)) is not None]
    lines: list[str] = []
    scopes: list[tuple[str, str, Callable[[Planned], tuple[Any, ...]]]] = [
        ("lists of images", "lists", lambda run: (run.partition, run.seed)),
        ("weight updates", "steps", lambda run: (run.partition, run.seed, *_own(run, _LENGTH))),
        (
            "initial weights of encoder and decoder",
            "initial_weights",
            lambda run: (run.seed, _network(run), *_own(run, ("train.begin_with",))),
        ),
    ]
    for what, key, scope in scopes:
        seen: dict[Any, set[Any]] = defaultdict(set)
        for run, result in results:
            value = result[key]
            if isinstance(value, dict):  # what a stage makes of the images is the method's own
                value = {name: found for name, found in value.items() if name != "pseudo"}
            seen[scope(run)].add(str(value))
        unequal = [group for group, values in seen.items() if len(values) > 1]
        if unequal:
            lines.insert(0, f"NOT EQUAL: {what} of {unequal[0]}")
        else:
            lines.append(f"same {what}")
    return lines


def _own(run: Planned, names: Sequence[str]) -> list[str]:
    return [f"{name} {run.apart[name]}" for name in names if name in run.apart]


def _network(run: Planned) -> str:
    """All but the bottleneck, which is drawn last: encoder and decoder begin alike with any."""
    model = run.config.model.model_dump(mode="json")
    return str({name: value for name, value in model.items() if not name.startswith("bottleneck")})


def write_tables(rows: Sequence[Row], runs: Sequence[Planned], out: Path, title: str, more: Sequence[str] = ()) -> str:
    """Write results.csv and results.md into ``out``, each whole or not at all.

    Args:
        rows: what is finished.
        runs: the study.
        out: its folder.
        title: of the Markdown.
        more: lines at its end.

    Returns:
        The Markdown.
    """
    text = markdown(rows, runs, title) + "".join(f"{line}\n" for line in more)
    with atomic_write(out / "results.md", "w") as file:
        file.write(text)
    with atomic_write(out / "results.csv", "w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_plain(row) for row in rows)
    return text


def markdown(rows: Sequence[Row], runs: Sequence[Planned], title: str) -> str:
    """One table for each family of partitions, with what the runs had in common."""
    done = sum(len(row.results) for row in rows)
    lines = [
        f"# {title}",
        "",
        f"{done} of {len(runs)} runs are finished. mIoU on validation images in percent, mean ± ",
    ]
    lines[-1] += "standard deviation over seeds (n - 1); best is chosen on these images, last is not."
    if rows:
        but = "; but for what is said below the table of some rows" if any(row.apart for row in rows) else ""
        same = f"The runs of one seed and partition have the {', '.join(fairness(runs))}; the same views{but}."
        lines += ["", same]
    for family in dict.fromkeys(row.family for row in rows):
        some = [row for row in rows if row.family == family]
        lines += ["", f"## {family}", "", "| partition | labelled | method | encoder | seeds | best | last | paper |"]
        lines[-1] += " updates | images seen | training time | peak memory | pseudo-labels kept | right of these |"
        lines.append("|---" * 14 + "|")
        lines += [_line(row) for row in some]
        apart = dict.fromkeys(f"{row.method}: {_apart(row)}" for row in some if row.apart)
        lines += ["", f"Not the method alone: {'. '.join(apart)}."] if apart else []
        stages = dict.fromkeys(f"{row.method} after {row.after}" for row in some if row.after is not None)
        if stages:
            lines += ["", f"Stages: {', '.join(stages)}. Updates, images and time are of a row's own training alone."]
    devices = sorted({result["device"] for row in rows for result in row.results})
    if devices:
        lines += ["", f"Hardware: {'; '.join(devices)}."]
    warned = [f"{row.method}, {row.partition}" for row in rows if any(r["warnings"] for r in row.results)]
    if warned:
        lines += ["", f"Runs that ended with a warning of their health: {'; '.join(warned)}."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    first = row.results[0]
    cells = [
        row.partition,
        str(first["labeled"]),
        row.method,
        first["encoder"],
        str(len(row.results)),
        spread(row.best),
        spread(row.last),
        "-" if row.paper is None else f"{row.paper:.2f}",
        f"{row.mean_of('steps'):.0f}",
        f"{row.mean_of('images_seen'):.0f}",
        _duration(row.mean_of("train_seconds")),
        f"{max(result['peak_memory'] for result in row.results) / 1e9:.2f} GB",
        *(spread(values) if (values := row.pseudo(key)) else "-" for key in _PSEUDO),
    ]
    return table_line(*cells)


def table_line(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def comparable(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows with scores by family and partition, where there are two at least."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.last:
            groups[row.family, row.partition].append(row)
    return {place: some for place, some in groups.items() if len(some) > 1}


def _apart(row: Row) -> str:
    return ", ".join(f"{name} {what}" for name, what in row.apart.items())


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; a single value has no spread."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _plain(row: Row) -> dict[str, Any]:
    first = row.results[0]
    numbers: dict[str, Any] = {}
    for name, values in (("best", row.best), ("last", row.last)):
        numbers[f"{name}_miou"] = round(statistics.fmean(values), 4) if values else ""
        numbers[f"{name}_std"] = round(statistics.stdev(values), 4) if len(values) > 1 else ""
    return {
        "family": row.family,
        "partition": row.partition,
        "method": row.method,
        "seeds": " ".join(str(result["seed"]) for result in row.results),
        "paper_miou": "" if row.paper is None else row.paper,
        "apart": _apart(row),
        **{name: first[name] for name in ("labeled", "encoder", "device")},
        **{name: round(row.mean_of(name)) for name in ("steps", "images_seen", "train_seconds")},
        "peak_memory_gb": round(max(result["peak_memory"] for result in row.results) / 1e9, 3),
        **{
            f"pseudo_{key}": round(statistics.fmean(values), 4) if (values := row.pseudo(key)) else ""
            for key in _PSEUDO
        },
        **numbers,
    }
