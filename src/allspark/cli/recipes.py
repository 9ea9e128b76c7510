"""`allspark config show` and `list`: the recipes."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Show recipes: complete configurations, each field explained.")


@app.command()
def show(recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="see `allspark config list`")]) -> None:
    """Print a recipe: the complete YAML, each field with its meaning and unit."""
    from allspark.config.files import describe, load_recipe, recipe_header

    typer.echo(f"{recipe_header(recipe)}\n\n{describe(load_recipe(recipe))}", nl=False)


@app.command("list")
def list_recipes() -> None:
    """List the recipes."""
    from allspark.config.files import recipe_header
    from allspark.recipes import RECIPES

    for name in RECIPES:
        typer.echo(f"{name:12}{recipe_header(name).splitlines()[0].removeprefix('# ')}")
