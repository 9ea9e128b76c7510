"""Commands for data sets: `allspark check`, `split` and `prepare`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from allspark.cli.common import PluginOption, SourceOption, print_json

if TYPE_CHECKING:
    from allspark.config.schema import DataConfig
    from allspark.data.sets.prepare import Prepared

prepare_app = typer.Typer(help="Draw or cut the files that a published data set lacks; run again to go on.")

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="folder of the data set")]
PublishedArgument = Annotated[Path, typer.Argument(metavar="DATA", help="folder of the data set, as it is published")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="processes (default: one a core)")]


def check(
    data: DataArgument,
    source: SourceOption = None,
    crop: Annotated[int | None, typer.Option(min=1, help="training crop in pixels; warns of smaller images")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
    workers: WorkersOption = None,
    plugin: PluginOption = None,
) -> int:
    """Read every image and mask and report everything wrong at once.

    Exit status: 0 training would be safe, 1 it would not, 2 the data set could not be checked.
    """
    from allspark.cli.check_report import print_report
    from allspark.cli.show import counting, stdout
    from allspark.data.check import check as check_source
    from allspark.data.depth import with_white
    from allspark.data.sets import open_source

    config = data_config(data, source)
    opened = open_source(config, require_labels=False, tolerate=True)
    found: list[str] = []
    opened = replace(with_white(opened, config.max_pixels, found.append), notes=(*opened.notes, *found))
    with counting("reading", "files") as progress:
        report = check_source(
            opened,
            crop=(crop, crop) if crop else None,
            max_pixels=config.max_pixels,
            workers=_processes(workers),
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report, opened, stdout())
    return 0 if report.safe else 1


def split(
    data: DataArgument,
    labeled: Annotated[str, typer.Option(help="labelled part: a fraction like 1/8 or 0.125, or a number of images")],
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same lists")] = 0,
    stratified: Annotated[bool, typer.Option("--stratified", help="keep rare classes present")] = False,
    source: SourceOption = None,
    name: Annotated[str | None, typer.Option(help="name of the partition (default: from the options)")] = None,
    plugin: PluginOption = None,
) -> None:
    """Make lists of labelled and unlabelled training images under DATA/splits."""
    from allspark.cli.show import counting
    from allspark.data.sets import open_source
    from allspark.data.splits import make_split

    opened = open_source(data_config(data, source), require_labels=False)
    with counting("reading", "masks") as progress:
        made = make_split(opened, labeled, seed, stratified=stratified, name=name, progress=progress)
    typer.echo(f"{made.labeled} labelled and {made.unlabeled} unlabelled images: {made.folder}")
    if made.missing_classes:
        typer.echo(f"too few labelled images for all classes; without a label: {', '.join(made.missing_classes)}")
    typer.echo(f"use it with --set data.split={made.folder.name}")


@prepare_app.command("coco")
def coco(data: PublishedArgument, workers: WorkersOption = None) -> None:
    """COCO: draw the instances of DATA/annotations as masks of 81 classes into DATA/masks."""
    from allspark.cli.show import counting
    from allspark.data.sets.coco import prepare_coco

    with counting("drawing", "parts") as progress:
        made = prepare_coco(data, workers=_processes(workers), progress=progress)
    _print_prepared(made, "masks", data / "masks")


@prepare_app.command("potsdam")
def potsdam(
    data: PublishedArgument,
    size: Annotated[int, typer.Option(min=32, help="largest side of a tile in pixels")] = 512,
    labels: Annotated[
        Literal["all", "noBoundary"], typer.Option(help="5_Labels_all, or 5_Labels_all_noBoundary (ignored boundaries)")
    ] = "all",
    workers: WorkersOption = None,
) -> None:
    """Potsdam: cut DATA/2_Ortho_RGB and its labels into DATA/tiles."""
    from allspark.cli.show import counting
    from allspark.data.sets.potsdam import prepare_potsdam

    with counting("cutting", "pictures") as progress:
        made = prepare_potsdam(data, size=size, labels=labels, workers=_processes(workers), progress=progress)
    _print_prepared(made, "tiles", data / "tiles")


def data_config(data: Path, source: str | None) -> DataConfig:
    """Where a command reads a data set that no configuration names.

    Args:
        data: folder of the data set.
        source: a name of ``DATA_SETS``, which `open_source` looks up; None: recognised by the folder.
    """
    from allspark.config.schema import DataConfig
    from allspark.data.sets import layout_of

    return DataConfig().model_copy(update={"source": source or layout_of(data), "root": data})


def _processes(workers: int | None) -> int:
    return os.cpu_count() or 1 if workers is None else workers


def _print_prepared(prepared: Prepared, unit: str, folder: Path) -> None:
    typer.echo(f"{folder}: {prepared.made} {unit} made, {prepared.kept} were there already")
    for note in prepared.notes:
        typer.echo(note)
