"""Commands for trained networks: `allspark eval`, `predict`, `plot` and `import-checkpoint`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from allspark.cli.common import PluginOption, SourceOption, print_json
from allspark.cli.data import data_config
from allspark.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from allspark.config.schema import Config, DataConfig
    from allspark.data.source import Sample, Source
    from allspark.engine.run import Run
    from allspark.inference.metrics import Scores
    from allspark.inference.predictor import Predictor

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder that `allspark train --out` wrote")]
CheckpointOption = Annotated[Literal["best", "last"], typer.Option(help="which checkpoint of the run")]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="which network of the method: student, teacher; first, second, mean (cps); network, average (supervised) "
        "(default: the one that was kept as best)",
    ),
]
ModeOption = Annotated[
    Literal["whole", "window"] | None, typer.Option(help="whole image at once or sliding window (default: the run's)")
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "fp16", "fp64"] | None,
    typer.Option(help="arithmetic; bf16 and (on a GPU) fp16 are faster and not exact (default: the run's)"),
]
MemoryOption = Annotated[
    bool | None,
    typer.Option("--memory/--no-memory", help="attend to the semantic memory, as in training (default: the run's)"),
]


def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="another data set (default: the run's)")] = None,
    source_name: SourceOption = None,
    split_name: Annotated[
        str, typer.Option("--split", metavar="NAME", help="val, train, a list file, or NAME for DATA/NAME.txt")
    ] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
    checkpoint: Annotated[
        Literal["best", "last"] | None,
        typer.Option(help="which checkpoint of the run (default: best; with --network last, which holds all networks)"),
    ] = None,
    network: NetworkOption = None,
    mode: ModeOption = None,
    precision: PrecisionOption = None,
    memory: MemoryOption = None,
    boundary: Annotated[bool, typer.Option("--boundary", help="also the IoU of what lies near edges")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write scores.json, confusion.csv and confusion.png there")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Score a run: IoU, precision, recall and Dice of each class, mean IoU and pixel accuracy."""
    from allspark.cli.show import counting, print_scores
    from allspark.data.sets import open_source
    from allspark.engine.run import open_run
    from allspark.inference.evaluate import evaluate as score

    opened = open_run(run, checkpoint or ("best" if network is None else "last"), network)
    where = data_of_run(opened.config, data, split_name, source_name)
    source = open_source(where, require_labels=False)
    require_same_classes(opened.classes, source)
    samples, notes = to_score(source, where, split_name, another=data is not None)
    for note in notes:
        typer.echo(f"note: {printable(note)}", err=True)
    with counting("evaluating", "images") as progress:
        scores = score(
            predictor_of(opened, mode, precision, memory),
            samples,
            source,
            workers=where.workers,
            max_pixels=where.max_pixels,
            progress=progress,
            on_bad=_skipped if where.on_bad_image == "skip" else None,
            boundary=boundary,
        )
    head = {
        "run": str(run),
        "checkpoint": opened.checkpoint,
        "step": opened.step,
        "network": network,
        "split": split_name,
        "images": len(samples),
    }
    content = head | scores.to_json(opened.classes) | scores.details(opened.classes)
    if out is not None:
        _write_scores(content, scores, opened.classes, out)
    if as_json:
        print_json(content)
        return
    at = "" if opened.step is None else f" of step {opened.step}"
    chosen = opened.checkpoint == "best" and split_name == "val" and data is None
    remark = ", on which it was chosen as best: another score may be lower (--checkpoint last)" if chosen else ""
    typer.echo(f"checkpoint {opened.checkpoint}{at} on {len(samples)} images of {split_name}{remark}\n")
    print_scores(scores, opened.classes, len(samples))


def _write_scores(content: Mapping[str, object], scores: Scores, classes: Sequence[str], out: Path) -> None:
    from allspark.figures.confusion import write_confusion
    from allspark.files import atomic_write

    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "scores.json", "w") as file:
        json.dump(content, file, indent=2)
    write_confusion(scores.matrix, classes, out)


def _skipped(error: DataError) -> None:
    typer.echo(f"skipped: {error}", err=True)


def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="images, folders, quoted globs")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the masks")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="also write images under their coloured masks, to DIR-overlays")
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="also write the confidence of each pixel, to DIR-scores")
    ] = False,
    checkpoint: CheckpointOption = "best",
    mode: ModeOption = None,
    precision: PrecisionOption = None,
    memory: MemoryOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write a mask for each image: a palette PNG of the image's own size and name."""
    from allspark.cli.show import counting
    from allspark.engine.run import open_run
    from allspark.inference.files import predict_files, unread_inputs

    opened = open_run(run, checkpoint)
    if unread := unread_inputs(images):
        kinds = ", ".join(sorted({path.suffix.lower() for path in unread}))
        more = f" and {len(unread) - 1} more" * (len(unread) > 1)
        typer.echo(f"note: {kinds} cannot be read: {printable(str(unread[0]))}{more}; save them as PNG", err=True)
    with counting("predicting", "images") as progress:
        masks = predict_files(
            predictor_of(opened, mode, precision, memory),
            images,
            out,
            opened.palette,
            classes=opened.classes,
            overlay=overlay,
            scores=scores,
            max_pixels=opened.config.data.max_pixels,
            white=opened.config.data.white,
            progress=progress,
        )
    typer.echo(f"{len(masks)} mask{'s' * (len(masks) != 1)} in {out}")


def plot(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="the picture (default: RUN/health.png)")] = None,
) -> None:
    """Draw a run's course and health: scores, pseudo-labels against labels, agreement, memory. Also while it trains."""
    from allspark.figures.health import draw_run

    typer.echo(draw_run(run, out or run / "health.png"))


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


def predictor_of(opened: Run, mode: str | None, precision: str | None, memory: bool | None) -> Predictor:
    """What predicts as the options say. Tells where the memory that it attends to is not full.

    Raises:
        ConfigError: see :meth:`allspark.engine.run.Run.predictor`.
    """
    predictor = opened.predictor(mode=mode, precision=precision, memory=memory)
    read = opened.memory if predictor.config.memory else None
    if read is not None and read.writes and (partly := int((read.fill < 1).sum())):  # an imported one does not know
        typer.echo(
            f"note: the memory of {partly} of {len(opened.classes)} classes is not full: the rest is noise", err=True
        )
    return predictor


def data_of_run(config: Config, data: Path | None, split: str, source: str | None = None) -> DataConfig:
    """The data set that a run is evaluated on.

    Args:
        config: of the run.
        data: another data set, with its own lists; None: the run's.
        split: `val` or `train`, else a list file, or the name of one in the data set's folder (`test` for test.txt),
            whose images then stand where the validation images are.
        source: layout of the other data set; None: recognised by its folder.

    Raises:
        ConfigError: a layout, but no data set.
        DataError: there is no such list.
    """
    changes: dict[str, object] = {}
    if data is not None:
        lists = {"split": None, "labeled": None, "unlabeled": None, "val": None}
        changes = {"root": data, "source": data_config(data, source).source, **lists}
    elif source is not None:
        raise ConfigError("--source belongs to --data: the run knows the layout of its own data set")
    where = config.data.model_copy(update=changes)
    if split in {"val", "train"}:
        return where
    root = where.root or Path()
    for path in (Path(split), root / split, (root / split).with_suffix(".txt")):
        if path.is_file():
            return where.model_copy(update={"val": path})
    known = ", ".join(sorted(path.name for path in root.glob("*.txt"))) or "none"
    raise DataError(f"--split {split}: expected val, train, a list file, or the name of one in {root} (there: {known})")


def to_score(
    source: Source, config: DataConfig, split: str, *, another: bool
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """The images to score, and what the user should know of the choice.

    Args:
        source: the open data set.
        config: how it was opened.
        split: as for :func:`data_of_run`.
        another: the data set is not the one that the run was trained on. All its masks may be scored then, if it has
            no list of validation images.
    """
    if split == "train":
        return source.labeled, ()
    if another and config.source == "folder" and config.val is None and not (source.root / "val.txt").is_file():
        samples = sorted((*source.labeled, *source.val), key=lambda sample: sample.id)
        return tuple(samples), (f"no {source.root / 'val.txt'}: all {len(samples)} images with a mask are scored",)
    return source.val, source.notes


def require_same_classes(trained: Sequence[str], source: Source) -> None:
    """Refuse to score a network on classes of other names; an imported one that knows no names fits any.

    Raises:
        DataError: a name differs. (Another number of classes is found by the evaluator.)
    """
    if len(trained) != source.num_classes:
        return
    for k, (name, here) in enumerate(zip(trained, source.classes, strict=True)):
        if name not in (here, f"class {k}"):
            raise DataError(
                f"class {k} is {here!r} in {source.root}, but {name!r} where the network was trained; "
                "the order and the names of classes must be the same"
            )
