"""The commands that have commands of their own: `allspark config ...` and `allspark prepare ...`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from allspark.data.sets.prepare import Prepared

config_app = typer.Typer(help="Show recipes: complete configurations, each field explained.")
prepare_app = typer.Typer(help="Draw or cut the files that a published data set lacks; run again to go on.")

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="folder of the data set, as it is published")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="processes  [default: one a core]")]


@config_app.command("show")
def config_show(recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="see `allspark config list`")]) -> None:
    """Print a recipe: the complete YAML, each field with its meaning and unit."""
    from allspark.config.files import describe, load_recipe, recipe_header

    typer.echo(f"{recipe_header(recipe)}\n\n{describe(load_recipe(recipe))}", nl=False)


@config_app.command("list")
def config_list() -> None:
    """List the recipes."""
    from allspark.config.files import recipe_header
    from allspark.recipes import RECIPES

    for name in RECIPES:
        typer.echo(f"{name:12}{recipe_header(name).splitlines()[0].removeprefix('# ')}")


@prepare_app.command("coco")
def prepare_coco(data: DataArgument, workers: WorkersOption = None) -> None:
    """COCO: draw the instances of DATA/annotations as masks of 81 classes into DATA/masks."""
    from allspark.cli.show import counting
    from allspark.data.sets.coco import prepare_coco

    with counting("drawing", "parts") as progress:
        _report(prepare_coco(data, workers=_processes(workers), progress=progress), "masks", data / "masks")


@prepare_app.command("potsdam")
def prepare_potsdam(
    data: DataArgument,
    size: Annotated[int, typer.Option(min=32, help="largest side of a tile [pixels]")] = 512,
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
    _report(made, "tiles", data / "tiles")


def _processes(workers: int | None) -> int:
    return os.cpu_count() or 1 if workers is None else workers


def _report(prepared: Prepared, unit: str, folder: Path) -> None:
    typer.echo(f"{folder}: {prepared.made} {unit} made, {prepared.kept} were there already")
    for note in prepared.notes:
        typer.echo(note)
