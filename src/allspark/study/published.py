"""Published numbers beside a study's own: what the paper says of a row, what its authors say, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from allspark.engine.result import read_result
from allspark.study.plan import Planned, Published
from allspark.study.table import spread, table_line

_NOTHING, _NOT_RUN = "-", "not run"


def beside(
    runs: Sequence[Planned], paper: Mapping[str, Mapping[str, float]], published: Mapping[str, Published]
) -> list[str]:
    """Lines of Markdown: all rows of the study, and all methods that have a number, run or not.

    Args:
        runs: the study.
        paper: mIoU of the paper whose table the study is, method -> partition -> percent.
        published: what the methods' own authors report.

    Returns:
        Nothing where no number is published.
    """
    if not paper and not published:
        return []
    methods = dict.fromkeys((*(run.method for run in runs), *paper, *published))
    partitions = list(dict.fromkeys(run.partition for run in runs))
    lines = [
        "",
        "## Beside published numbers",
        "",
        "mIoU in percent: in the paper / published elsewhere, by the method's authors or as said below / here (last). "
        "Networks, crops and which epoch is reported differ from source to source.",
        "",
        f"| method | {' | '.join(partitions)} |",
        "|---" * (1 + len(partitions)) + "|",
    ]
    for method in methods:
        own = published[method].miou if method in published else {}
        cells = []
        for partition in partitions:
            numbers = (paper.get(method, {}).get(partition), own.get(partition))
            said = [_NOTHING if number is None else str(number) for number in numbers]
            cells.append(" / ".join((*said, _here(runs, method, partition))))
        lines.append(table_line(method, *cells))
    if published:
        lines += ["", "Published elsewhere:", ""]
        lines += [f"- {method}: {published[method].source}" for method in methods if method in published]
    return lines


def _here(runs: Sequence[Planned], method: str, partition: str) -> str:
    """Last mIoU of the seeds that are finished."""
    planned = [run for run in runs if (run.method, run.partition) == (method, partition)]
    results = [result for run in planned if (result := read_result(run.out)) is not None]
    scores = [100 * result["last_miou"] for result in results if result["last_miou"] is not None]
    if not scores:
        return _NOT_RUN
    part = f" ({len(scores)} of {len(planned)} seeds)" if len(scores) < len(planned) else ""
    return spread(scores) + part
