"""`allspark train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allspark.cli.common import DataOption, OverridesOption, PluginOption, PresetOption
from allspark.errors import ConfigError

if TYPE_CHECKING:
    from allspark.config.schema import Config


_FOLDER, _FOLDER_ON_GPU = "folder", "dinov2-small"


def train(
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="a recipe, see `allspark config list`")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="a configuration file")] = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the run (default: runs/NAME)")] = None,
    overrides: OverridesOption = None,
    labeled: Annotated[Path | None, typer.Option(metavar="LIST", help="list of the labelled images")] = None,
    unlabeled: Annotated[Path | None, typer.Option(metavar="LIST", help="list of the unlabelled images")] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="shorthand for --set method.name=NAME")] = None,
    encoder: Annotated[str | None, typer.Option(metavar="NAME", help="shorthand for --set model.encoder=NAME")] = None,
    preset: PresetOption = None,
    epochs: Annotated[float | None, typer.Option(help="shorthand for --set train.epochs=N")] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="shorthand for --set train.device=NAME")] = None,
    workers: Annotated[int | None, typer.Option(help="shorthand for --set data.workers=N")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on exactly where the run in --out stopped")] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="start so many processes on this machine, one a GPU or on the CPU")
    ] = 1,
    plugin: PluginOption = None,
) -> None:
    """Train, on a GPU if there is one, else on the CPU.

    Writes the complete configuration, a log and the checkpoints `last` and `best` into --out. Several processes
    (--processes, torchrun, accelerate launch) share each update: each has data.batch_labeled + data.batch_unlabeled
    images of it, and all hold the same network and the same memory.
    """
    from allspark.runtime.launch import follow_parent, launch, launched

    paths = {"root": data, "labeled": labeled, "unlabeled": unlabeled}
    short = {"method.name": method, "model.encoder": encoder, "train.epochs": epochs, "train.device": device}
    short |= {"data.workers": workers}
    changes = [f"{key}={value}" for key, value in short.items() if value is not None] + (overrides or [])
    begins_others = processes > 1 and not launched()
    silent = begins_others or not _main_process()
    config, out = chosen(
        recipe,
        config_file,
        out,
        resume=resume,
        changes=changes,
        paths=paths,
        preset=preset,
        note=_silent if silent else _say,
    )
    if begins_others:
        launch(sys.argv[1:], processes)
        return
    follow_parent()

    from allspark.cli.show import print_result, stderr
    from allspark.engine.bar import Bar
    from allspark.engine.train import train as run_training

    result = run_training(config, out, resume=resume, sinks=[Bar(stderr())])
    if _main_process():
        print_result(result)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def chosen(
    recipe: str | None,
    config_file: Path | None,
    out: Path | None,
    *,
    resume: bool,
    changes: Sequence[str],
    paths: Mapping[str, Path | None],
    preset: str | None = None,
    note: Callable[[str], None] = _say,
) -> tuple[Config, Path]:
    """The configuration and the folder that the options of `train` ask for.

    Args:
        recipe: name of a recipe.
        config_file: a file, in place of a recipe.
        out: folder of the run; None: runs/NAME.
        resume: go on with the run in ``out``; its own configuration is taken unless another is named.
        changes: overrides, see :func:`allspark.config.files.apply_overrides`.
        paths: fields of ``data`` that have an option of their own. What exists is made absolute; a list may also be
            named as it lies in the data set's folder.
        preset: data set whose published settings of the method are wanted, or ``none``; None: the recipe's.
        note: called with lines that the user should know.

    Raises:
        ConfigError: the options contradict each other, or name something that is not there.
    """
    from allspark.config.files import apply_overrides, load_config, load_recipe
    from allspark.config.presets import with_preset
    from allspark.recipes import RECIPES

    if recipe and config_file:
        raise ConfigError("--recipe and --config exclude each other: give one of them")
    if resume and out is None:
        raise ConfigError("--resume needs --out RUN, the folder of the run to go on with")
    if config_file:
        config, name = load_config(config_file), config_file.stem
    elif recipe:
        config, name = load_recipe(_for_this_machine(recipe, changes, note)), recipe
    elif resume and out is not None:
        if not (out / "config.yaml").is_file():
            raise ConfigError(f"{out / 'config.yaml'}: no such file, so there is no run to resume in {out}")
        config, name = load_config(out / "config.yaml"), out.name
    else:
        raise ConfigError(f"say what to train: --recipe NAME ({', '.join(RECIPES)}) or --config FILE")
    applied = with_preset(config, recipe, preset, changes)
    for line in applied.lines:
        note(line)
    config = apply_overrides(applied.config, changes)
    given = {key: path.absolute() if _is_here(path) else path for key, path in paths.items() if path is not None}
    data = config.data.model_copy(update=given)
    return config.model_copy(update={"data": data}), out or Path("runs") / name


def _for_this_machine(recipe: str, changes: Sequence[str], note: Callable[[str], None]) -> str:
    """On a GPU the recipe ``folder`` is that of a larger network, unless the network or the device is asked for."""
    asked = {item.partition("=")[0].strip(): item.partition("=")[2].strip() for item in changes}
    if recipe != _FOLDER or "model.encoder" in asked or asked.get("train.device") == "cpu":
        return recipe
    from torch import cuda

    if not cuda.is_available():
        return recipe
    note(
        f"note: there is a GPU, recipe {_FOLDER_ON_GPU} is used in place of {_FOLDER}; "
        "--set train.device=cpu or --set model.encoder=efficientnet-lite0 keeps the small network"
    )
    return _FOLDER_ON_GPU


def _is_here(path: Path) -> bool:
    """Whether a path, or a pattern of tar files, is meant from the current folder."""
    return path.exists() or any(path.parent.glob(path.name) if path.suffix == ".tar" else ())


def _silent(line: str) -> None:
    """Another process says it."""


def _main_process() -> bool:
    """Whether this process, of those that torchrun or ``--processes`` started, talks to the user."""
    return os.environ.get("RANK", "0") == "0"
