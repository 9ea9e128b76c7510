"""What several commands share: options of the same meaning, and results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

DataOption = Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the data set (data.root)")]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field; may be repeated")
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="published settings of the method: for voc, cityscapes or coco (default: the recipe's data set), or none",
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="its layout, for example voc: see docs/data-sets.md (default: recognised)"
    ),
]


def _load(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from allspark.config.plugins import load_plugin

        for path in paths:
            load_plugin(path)
    return paths


PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        callback=_load,
        is_eager=True,
        help="a file with methods, data sets or encoders of your own; it is executed",
    ),
]


def print_json(value: Any) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
