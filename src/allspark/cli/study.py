"""`allspark study`: plan, run what is missing, write the table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from allspark.cli.common import DataOption, PluginOption


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="methods, partitions and seeds (docs/studies.md)")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the study (default: runs/NAME)")] = None,
    data: DataOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field of all runs; may be repeated")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at once (default: one a GPU, else 1)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the runs")] = False,
    plugin: PluginOption = None,
) -> None:
    """Compare methods: run what is missing of methods x partitions x seeds, and write one table.

    Run it again to go on after an interruption, or to add methods and seeds. Writes results.md, .csv and .png.
    """
    extra = [*([f"data.root={data.absolute()}"] if data else []), *(overrides or [])]
    compare(file, out or Path("runs") / file.stem, jobs, extra=extra, dry_run=dry_run)


def compare(file: Path, out: Path, jobs: int | None, *, extra: Sequence[str] = (), dry_run: bool = False) -> None:
    """Bring a study as far as it goes, and keep its table up to date after every run.

    Args:
        file: the study file.
        out: folder of the study.
        jobs: runs at once; None: one a GPU, else one.
        extra: ``key=value`` for all runs.
        dry_run: only list the runs.

    Raises:
        UserError: the file is wrong, or runs failed.
        Interrupted: it was asked to stop; nothing is lost.
    """
    from allspark.cli.show import stderr, stdout
    from allspark.study.figure import draw, draw_cost
    from allspark.study.plan import load_study, plan, require_lists
    from allspark.study.published import beside
    from allspark.study.ranking import ranking
    from allspark.study.run import go_on_command, missing, run_study
    from allspark.study.table import rows_of, write_tables

    wanted = load_study(file)
    runs = plan(wanted, file, out, extra)
    todo = missing(runs)
    console, note = stdout(), stderr()
    if dry_run:
        for run in runs:
            state = "to do" if run in todo else "done"
            console.print(f"{state:6}{run}: {run.out}", markup=False, soft_wrap=True)
        for line in beside(runs, wanted.paper, wanted.published):
            console.print(line, markup=False, soft_wrap=True)
    require_lists(todo)
    if dry_run:
        return
    gpus = _gpus()
    jobs = jobs or max(1, len(gpus))
    out.mkdir(parents=True, exist_ok=True)

    def write() -> str:
        rows = rows_of(runs, wanted.paper)
        draw(rows, out / "results.png", file.stem)
        draw_cost(rows, out / "cost.png", file.stem)
        more = [*ranking(rows), *beside(runs, wanted.paper, wanted.published)]
        return write_tables(rows, runs, out, file.stem, more)

    note.print(f"{len(runs)} runs, {len(runs) - len(todo)} finished, {jobs} at once; writing to {out}", markup=False)
    if todo:
        run_study(
            todo,
            jobs=jobs,
            gpus=gpus,
            again=go_on_command(file, out, jobs, extra),
            note=lambda line: note.print(line, markup=False),
            finished=write,
        )
    console.print(write(), markup=False, soft_wrap=True)


def _gpus() -> list[str]:
    """The GPUs that may be used, by the names that CUDA_VISIBLE_DEVICES knows."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
