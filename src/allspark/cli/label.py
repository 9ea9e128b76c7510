"""`allspark label`: pseudo masks for unlabelled images, as a list to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from allspark.cli.common import DataOption, PluginOption, SourceOption
from allspark.cli.use import (
    CheckpointOption,
    MemoryOption,
    ModeOption,
    NetworkOption,
    PrecisionOption,
    RunArgument,
    data_of_run,
    predictor_of,
)
from allspark.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allspark.data.source import Sample, Source
    from allspark.engine.run import Run


def label(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR|LIST.txt", help="folder of masks, list.txt and reliability.csv; or the list")
    ],
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGES", help="a list (.txt), images, folders, globs (default: all unlabelled images)"),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="pixels below this probability get no label (255)")
    ] = None,
    share: Annotated[
        float, typer.Option("--reliable", min=0, max=1, help="share of the images for the list, the most reliable ones")
    ] = 1,
    by: Annotated[
        Literal["stability", "confidence"] | None,
        typer.Option(help="what is reliable (default: stability where the run kept checkpoints, else confidence)"),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="checkpoints for the stability (default: those kept)")
    ] = None,
    also: Annotated[
        Path | None, typer.Option(metavar="LIST", help="a list of pseudo masks that comes first in the new one")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="mean over five sizes and mirrored images; slow")] = False,
    data: DataOption = None,
    source_name: SourceOption = None,
    checkpoint: CheckpointOption = "best",
    network: NetworkOption = None,
    mode: ModeOption = None,
    precision: PrecisionOption = None,
    memory: MemoryOption = None,
    plugin: PluginOption = None,
) -> None:
    """Label images by a trained network: masks, a list `IMAGE MASK` for data.pseudo, and how reliable each mask is.

    Stability is the mean IoU of earlier checkpoints' predictions with the last one's (ST++): train with
    train.keep_every. Run the command again to go on after an interruption.
    """
    from allspark.cli.show import counting
    from allspark.data.pseudo import read_pseudo
    from allspark.data.sets import open_source
    from allspark.engine.run import open_run
    from allspark.inference.label import Labeller, label_images, reliable, write_lists

    opened = open_run(run, checkpoint, network)
    where = data_of_run(opened.config, data, "val", source_name)
    source = open_source(where, require_labels=False)
    folder, path = (out.with_suffix(""), out) if out.suffix == ".txt" else (out, out / "list.txt")
    _require_place(folder, path, source)
    before = read_pseudo(also, source) if also is not None else ()
    several = _checkpoints(run, checkpoints, network, by)
    options: dict[str, Any] = {"mode": mode, "precision": precision, "memory": memory}
    labeller = Labeller(predictor_of(opened, **options), [one.predictor(**options) for one in several], confidence, tta)
    settings = {
        **{"checkpoint": opened.checkpoint, "trained": _identity(opened), "network": network},
        **{"checkpoints": [_identity(one) for one in several], "confidence": confidence, "tta": tta, **options},
    }
    samples, on_bad = _samples(images, source, folder), _note if where.on_bad_image == "skip" else None
    with counting("labelling", "images") as progress:
        labeled = label_images(
            labeller, samples, source, folder, settings, max_pixels=where.max_pixels, progress=progress, on_bad=on_bad
        )
    chosen = reliable(labeled, share)
    if not chosen:
        raise DataError(f"--reliable {share:g} of {len(labeled)} images is none; take a larger share")
    write_lists(labeled, chosen, folder, path, [(_name(one, source), Path(str(one.mask))) for one in before])
    more = f" after {len(before)} of {also}" if also is not None else ""
    what = "stability" if several else "confidence"
    typer.echo(f"{path}: {len(chosen)} of {len(labeled)} images, by {what}{more}; masks and reliability in {folder}")


def _note(error: DataError) -> None:
    typer.echo(f"note: skipped: {error}", err=True)


def _name(sample: Sample, source: Source) -> str:
    from allspark.data.pseudo import name_in_list

    return name_in_list(Path(str(sample.image)), source.root)


def _identity(run: Run) -> dict[str, Any]:
    """Which training made a network, wherever its folder is now."""
    state = run.meta.get("state", {})
    return {"method": run.config.method.name, "step": state.get("step"), "seconds": state.get("seconds")}


def _samples(images: Sequence[str] | None, source: Source, out: Path) -> Sequence[Sample]:
    """What is to be labelled."""
    from allspark.data.pseudo import read_images
    from allspark.data.shards import Shards
    from allspark.data.source import Sample
    from allspark.inference.files import expand_inputs

    if images is None:
        if not source.unlabeled:
            raise DataError(f"{source.root}: no unlabelled image; say which to label with --images")
        if isinstance(source.unlabeled, Shards):
            raise DataError("images in tar files cannot be labelled: a list cannot name them; unpack them")
        return source.unlabeled
    if len(images) == 1 and Path(images[0]).suffix == ".txt":
        return read_images(Path(images[0]), source)
    inputs = expand_inputs([Path(image).absolute() for image in images], [out])
    return [Sample(str(item.relative.with_suffix("")), item.image) for item in inputs]


def _require_place(folder: Path, path: Path, source: Source) -> None:
    """Refuse to write among the images and masks of the data set, or over a list of somebody else's.

    Raises:
        ConfigError: what is there.
    """
    from allspark.data.shards import Shards
    from allspark.inference.label import SETTINGS

    root, place = source.root.resolve(), folder.resolve()
    own = set[Path]()
    unlabeled = () if isinstance(source.unlabeled, Shards) else source.unlabeled
    for sample in (*source.labeled, *unlabeled, *source.val):
        for file in (sample.image, sample.mask):
            if isinstance(file, Path) and file.is_relative_to(source.root):
                first, *below = file.relative_to(source.root).parts
                own |= {root / first} if below else set()
    if place == root or any(place.is_relative_to(top) for top in own):
        raise ConfigError(
            f"{folder}: is among the files of the data set {source.root}, where masks could be taken for images or for "
            "labels; choose another --out"
        )
    if path.exists() and not (folder / SETTINGS).is_file():
        raise ConfigError(f"{path}: is there already, and was not written by `allspark label`; choose another --out")


def _checkpoints(
    run: Path, given: Sequence[Path] | None, network: str | None, by: Literal["stability", "confidence"] | None
) -> list[Run]:
    """The checkpoints whose predictions are compared, the last one last; none where the confidence is to decide.

    Raises:
        ConfigError: there are fewer than two, though the stability is asked for.
    """
    from allspark.engine.checkpoint import checkpoint_path, kept_checkpoints
    from allspark.engine.run import open_checkpoint

    if by == "confidence":
        return []
    paths = list(given) if given else kept_checkpoints(run)
    found = [open_checkpoint(path, network) for path in paths]
    last = checkpoint_path(run, "last")
    if found and not given and last.is_file():
        end = open_checkpoint(last, network)
        if _identity(end)["step"] != _identity(found[-1])["step"]:
            found.append(end)
    if len(found) > 1:
        return found
    if by == "stability" or given:
        raise ConfigError(
            f"{run}: stability needs two checkpoints or more, there {'is' if found else 'are'} {len(found) or 'none'}; "
            "train with train.keep_every, or name them with --checkpoints"
        )
    return []
