"""The program: all commands, and one line with exit status 2 for whatever a user can cause.

Each command takes what it is given to one function and prints what that returns: results to standard output, progress
and errors to standard error. torch is imported inside commands only, so that help is fast.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from allspark.cli import data, doctor, label, recipes, study, train, use
from allspark.errors import UserError
from allspark.runtime.host_memory import keep_freed_memory, restart_without_caches
from allspark.runtime.version import VERSION

_CTRL_C = 130
# typer passes on the errors of its click: the package click, or (from typer 0.26 on) a copy of it inside typer.
_USAGE_ERROR: Any = import_module(typer.BadParameter.__module__).UsageError

app = typer.Typer(
    name="allspark",
    help="Semantic segmentation from a few labelled images and many unlabelled ones (AllSpark, CVPR 2024).",
    epilog="Begin with `allspark demo`, or `allspark check DATA` on your own folder.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"allspark {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="seed of weights and sampling")] = 0,
    steps: Annotated[int | None, typer.Option(min=4, help="weight updates a method (default: the recipe's)")] = None,
) -> None:
    """Train with and without unlabelled images on generated scenes, in some minutes on a CPU, and compare."""
    from allspark.cli.demo import run_demo

    run_demo(out, seed=seed, steps=steps)


app.command("check")(data.check)
app.command("split")(data.split)
app.command("train")(train.train)
app.command("eval")(use.evaluate)
app.command("predict")(use.predict)
app.command("label")(label.label)
app.command("plot")(use.plot)
app.command("study")(study.study)
app.command("doctor")(doctor.doctor)
app.command("import-checkpoint")(use.import_checkpoint)
app.add_typer(recipes.app, name="config")
app.add_typer(data.prepare_app, name="prepare")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for wrong input, 130 or 143 when interrupted."""
    if argv is not None:
        return _run(argv)
    if sys.argv[1:2] == ["train"]:
        restart_without_caches()
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
    try:
        status = _run(sys.argv[1:])
    except Exception:  # a defect: shown whole, and nothing after it, so that the job's last line says it
        traceback.print_exc()
        status = 1
    agreement = sys.modules.get("allspark.runtime.agreement")
    if agreement is not None and agreement.world_size() > 1:
        agreement.leave_and_exit(status)
    return status


def _run(arguments: list[str]) -> int:
    try:
        status = int(app(arguments or ["--help"], standalone_mode=False, prog_name="allspark") or 0)
        return _fail("interrupted", status) if status == _CTRL_C else status
    except UserError as error:
        return error.exit_code if error.quiet else _fail(str(error), error.exit_code)
    except typer.Abort:  # what older versions of typer make of Ctrl-C
        return _fail("interrupted", _CTRL_C)
    except BrokenPipeError:  # `allspark config show voc | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}")
    except _USAGE_ERROR as error:
        command = error.ctx.command_path if error.ctx else "allspark"
        return _fail(f"{error.format_message().replace('Value error, ', '')} (see `{command} --help`)")


def _fail(message: str, status: int = 2) -> int:
    head = "error: " if status == 2 else ""  # an interrupted run made no mistake
    print(head + " ".join(message.splitlines()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
