"""What several commands share: options of the same meaning, and results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

DataOption = Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the data set (data.root)")]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="its layout, for example voc: see docs/data-sets.md (default: recognised)"
    ),
]


def print_json(value: Any) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
