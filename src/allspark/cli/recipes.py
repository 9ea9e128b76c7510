"""`allspark config show` and `list`: the recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from allspark.cli.common import OverridesOption, PluginOption, PresetOption

app = typer.Typer(help="Show recipes: complete configurations, each field explained.")


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="see `allspark config list`")],
    overrides: OverridesOption = None,
    preset: PresetOption = None,
    plugin: PluginOption = None,
) -> None:
    """Print a recipe: the complete YAML, each field with its meaning and unit.

    With `--set method.name=NAME` it shows the settings of that method, as `train` would take them.
    """
    from allspark.config.files import apply_overrides, describe, load_recipe, recipe_header
    from allspark.config.presets import with_preset

    applied = with_preset(load_recipe(recipe), recipe, preset, overrides or [])
    for line in applied.lines:
        typer.echo(line, err=True)
    config = apply_overrides(applied.config, overrides or [])
    typer.echo(f"{recipe_header(recipe)}\n\n{describe(config)}", nl=False)


@app.command("list")
def list_recipes() -> None:
    """List the recipes."""
    from allspark.config.files import recipe_header
    from allspark.recipes import RECIPES

    width = max(map(len, RECIPES)) + 2
    for name in RECIPES:
        typer.echo(f"{name:{width}}{recipe_header(name).splitlines()[0].removeprefix('# ')}")
