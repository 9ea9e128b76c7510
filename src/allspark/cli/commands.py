"""The commands: each takes what it is given to one function and prints what that returns.

Results go to standard output, progress and errors to standard error. torch is imported inside commands only, so that
help is fast.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from allspark.cli.subcommands import config_app, prepare_app

app = typer.Typer(
    name="allspark",
    help="Semantic segmentation from a few labelled images and many unlabelled ones (AllSpark, CVPR 2024).",
    epilog="Begin with `allspark demo`, or `allspark check DATA` on your own folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")
app.add_typer(prepare_app, name="prepare")

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="folder of the data set")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder that `allspark train --out` wrote")]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="layout: folder, voc, cityscapes, coco, loveda or potsdam (default: told from it)"),
]
CheckpointOption = Annotated[Literal["best", "last"], typer.Option(help="which checkpoint of the run")]
ModeOption = Annotated[
    Literal["whole", "window"] | None, typer.Option(help="whole image at once or sliding window (default: the run's)")
]

PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16", "fp64"] | None,
    typer.Option(help="arithmetic; bf16 and (on a GPU) fp16 are faster and not exact (default: the run's)"),
]
DataOption = Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the data set (data.root)")]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="start so many processes on this machine, one a GPU or on the CPU")
]


def _main_process() -> bool:
    """Whether this process, of those that torchrun or ``--processes`` started, talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _version(wanted: bool) -> None:
    if wanted:
        from allspark import __version__

        typer.echo(f"allspark {__version__}")
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
    steps: Annotated[int | None, typer.Option(min=4, help="weight updates a method  [default: the recipe's]")] = None,
) -> None:
    """Train and compare three methods on generated scenes, in some minutes on a CPU."""
    from allspark.cli.demo import run_demo

    run_demo(out, seed=seed, steps=steps)


@app.command()
def check(
    data: DataArgument,
    source: SourceOption = None,
    crop: Annotated[int | None, typer.Option(min=1, help="training crop; warns of smaller images [pixels]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="processes that read (default: one a core)")] = None,
) -> int:
    """Read every image and mask and report everything wrong at once.

    Exit status: 0 training would be safe, 1 it would not, 2 the data set could not be checked.
    """
    from allspark.cli.check_report import print_report
    from allspark.cli.options import data_config
    from allspark.cli.show import counting, stdout
    from allspark.data.check import check as check_source
    from allspark.data.sets import open_source

    config = data_config(data, source)
    opened = open_source(config, require_labels=False, tolerate=True)
    with counting("reading", "files") as progress:
        report = check_source(
            opened,
            crop=(crop, crop) if crop else None,
            max_pixels=config.max_pixels,
            workers=os.cpu_count() or 1 if workers is None else workers,
            progress=progress,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        print_report(report, opened, stdout())
    return 0 if report.safe else 1


@app.command()
def split(
    data: DataArgument,
    labeled: Annotated[str, typer.Option(help="labelled part: a fraction like 1/8 or 0.125, or a number of images")],
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same lists")] = 0,
    stratified: Annotated[bool, typer.Option("--stratified", help="keep rare classes present")] = False,
    source: SourceOption = None,
    name: Annotated[str | None, typer.Option(help="name of the partition (default: from the options)")] = None,
) -> None:
    """Make lists of labelled and unlabelled training images under DATA/splits."""
    from allspark.cli.options import data_config
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


@app.command()
def train(
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="a recipe, see `allspark config list`")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="a configuration file")] = None,
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the run (default: runs/NAME)")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field; may be repeated")
    ] = None,
    labeled: Annotated[Path | None, typer.Option(metavar="LIST", help="list of the labelled images")] = None,
    unlabeled: Annotated[Path | None, typer.Option(metavar="LIST", help="list of the unlabelled images")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on exactly where the run in --out stopped")] = False,
    processes: ProcessesOption = 1,
) -> None:
    """Train, on a GPU if there is one, else on the CPU.

    Writes the complete configuration, a log and the checkpoints `last` and `best` into --out. Several processes
    (--processes, torchrun, accelerate launch) share each update: each has data.batch_labeled + data.batch_unlabeled
    images of it, and all hold the same network and the same memory.
    """
    from allspark.cli.options import chosen
    from allspark.runtime.launch import follow_parent, launch, launched

    paths = {"root": data, "labeled": labeled, "unlabeled": unlabeled}
    config, out = chosen(recipe, config_file, out, resume, overrides or [], paths)
    if processes > 1 and not launched():
        launch(sys.argv[1:], processes)
        return
    follow_parent()

    from allspark.cli.show import print_result, stderr
    from allspark.engine.train import train as run_training
    from allspark.engine.ui import RichUI

    if resume and not (out / "checkpoints").is_dir():
        typer.echo(f"note: nothing to go on with in {out}, a new run begins", err=True)
    result = run_training(config, out, resume=resume, ui=RichUI(stderr()))
    if _main_process():
        print_result(result)


@app.command("eval")
def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="another data set (default: the run's)")] = None,
    source_name: SourceOption = None,
    split_name: Annotated[
        str, typer.Option("--split", metavar="NAME", help="val, train, a list file, or NAME for DATA/NAME.txt")
    ] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
    checkpoint: CheckpointOption = "best",
    mode: ModeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Score a run: IoU of each class, mean IoU and pixel accuracy."""
    from allspark.cli.options import data_of_run, predictor, require_same_classes, to_score
    from allspark.cli.show import counting, print_scores
    from allspark.data.sets import open_source
    from allspark.engine.checkpoint import open_run
    from allspark.inference.evaluate import evaluate as score

    opened = open_run(run, checkpoint)
    where = data_of_run(opened.config, data, split_name, source_name)
    source = open_source(where, require_labels=False)
    require_same_classes(opened.classes, source)
    samples, notes = to_score(source, where, split_name, another=data is not None)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    with counting("evaluating", "images") as progress:
        scores = score(
            predictor(opened, mode, precision),
            samples,
            source,
            workers=where.workers,
            max_pixels=where.max_pixels,
            progress=progress,
        )
    if as_json:
        head = {"run": str(run), "checkpoint": opened.checkpoint, "split": split_name, "images": len(samples)}
        _print_json(head | scores.to_json(opened.classes))
    else:
        print_scores(scores, opened.classes, len(samples))


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="images, folders, quoted globs")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the masks")],
    overlay: Annotated[bool, typer.Option("--overlay", help="also write images under their coloured masks")] = False,
    scores: Annotated[bool, typer.Option("--scores", help="also write the confidence of each pixel")] = False,
    checkpoint: CheckpointOption = "best",
    mode: ModeOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Write a mask for each image: a palette PNG of the image's own size and name."""
    from allspark.cli.options import predictor
    from allspark.cli.show import counting
    from allspark.engine.checkpoint import open_run
    from allspark.inference.files import predict_files

    opened = open_run(run, checkpoint)
    with counting("predicting", "images") as progress:
        masks = predict_files(
            predictor(opened, mode, precision),
            images,
            out,
            opened.palette,
            overlay=overlay,
            scores=scores,
            max_pixels=opened.config.data.max_pixels,
            progress=progress,
        )
    typer.echo(f"{len(masks)} mask{'s' * (len(masks) != 1)} in {out}")


@app.command()
def plot(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="where to  [default: RUN/health.png]")] = None,
) -> None:
    """Draw a run's course and health: scores, pseudo-labels against labels, agreement, memory. Also while it trains."""
    from allspark.figures.health import draw_run

    typer.echo(draw_run(run, out or run / "health.png"))


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="methods, partitions and seeds (docs/studies.md)")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the study  [default: runs/NAME]")] = None,
    data: DataOption = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a field of all runs; may be repeated")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at once  [default: one a GPU, else 1]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the runs")] = False,
) -> None:
    """Compare methods: run what is missing of methods x partitions x seeds, and write one table.

    Run it again to go on after an interruption, or to add methods and seeds. Writes results.md, .csv and .png.
    """
    from allspark.cli.study import compare

    extra = [*([f"data.root={data.absolute()}"] if data else []), *(overrides or [])]
    compare(file, out or Path("runs") / file.stem, jobs, extra=extra, dry_run=dry_run)


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="a published AllSpark checkpoint")],
    classes: Annotated[int, typer.Option(min=2, metavar="N", help="number of classes it was trained on")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="folder of the run to write")],
    names: Annotated[Path | None, typer.Option(metavar="FILE", help="class names, one a line (classes.txt)")] = None,
) -> None:
    """Turn a published AllSpark checkpoint into a run for eval and predict. Nothing in it is executed."""
    from allspark.engine.import_published import import_published

    config = import_published(file, classes, out, names)
    typer.echo(f"{out}: {config.model.encoder}, {classes} classes; try `allspark predict {out} IMAGES... --out masks`")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
