"""From the command line's options to configurations, data sets and predictors. torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allspark.config.files import apply_overrides, load_config, load_recipe
from allspark.config.schema import Config, DataConfig
from allspark.data.sets import layout_of
from allspark.errors import ConfigError, DataError
from allspark.recipes import RECIPES

if TYPE_CHECKING:
    from allspark.data.source import Sample, Source
    from allspark.engine.checkpoint import Run
    from allspark.inference.predictor import Predictor


def data_config(data: Path, source: str | None) -> DataConfig:
    """Where `check` and `split` look.

    Args:
        data: folder of the data set.
        source: its layout, a name of ``DATA_SETS``; None: told from the folder.
    """
    return DataConfig().model_copy(update={"source": source or layout_of(data), "root": data})


def data_of_run(config: Config, data: Path | None, split: str, source: str | None = None) -> DataConfig:
    """The data set that a run is evaluated on.

    Args:
        config: of the run.
        data: another data set, with its own lists; None: the run's.
        split: `val` or `train`, else a list file, or the name of one in the data set's folder (`test` for test.txt),
            whose images then stand where the validation images are.
        source: layout of the other data set; None: told from its folder.

    Raises:
        ConfigError: there is no such layout, or a layout but no data set.
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


def chosen(
    recipe: str | None,
    config_file: Path | None,
    out: Path | None,
    resume: bool,
    changes: list[str],
    paths: dict[str, Path | None],
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

    Raises:
        ConfigError: the options contradict each other, or name something that is not there.
    """
    if recipe and config_file:
        raise ConfigError("--recipe and --config exclude each other: give one of them")
    if resume and out is None:
        raise ConfigError("--resume needs --out RUN, the folder of the run to go on with")
    if config_file:
        config, name = load_config(config_file), config_file.stem
    elif recipe:
        config, name = load_recipe(recipe), recipe
    elif resume and out is not None:
        if not (out / "config.yaml").is_file():
            raise ConfigError(f"{out / 'config.yaml'}: no such file, so there is no run to resume in {out}")
        config, name = load_config(out / "config.yaml"), out.name
    else:
        raise ConfigError(f"say what to train: --recipe NAME ({', '.join(RECIPES)}) or --config FILE")
    config = apply_overrides(config, changes)
    given = {key: path.absolute() if _is_here(path) else path for key, path in paths.items() if path is not None}
    data = config.data.model_copy(update=given)
    return config.model_copy(update={"data": data}), out or Path("runs") / name


def _is_here(path: Path) -> bool:
    """Whether a path, or a pattern of tar files, is meant from the current folder."""
    return path.exists() or any(path.parent.glob(path.name) if path.suffix == ".tar" else ())


def predictor(run: Run, mode: str | None = None, precision: str | None = None) -> Predictor:
    """The predictor of a run, on a GPU if there is one, unless the run was made for the CPU.

    Args:
        run: an open run.
        mode: `whole` or `window`; None: as the run says.
        precision: of the network, as ``eval.precision``; None: as the run says.

    Raises:
        ConfigError: fp16 on a CPU, where it is ten times as slow.
    """
    import torch

    from allspark.inference.predictor import Predictor

    chosen = {"mode": mode, "precision": precision}
    config = run.config.eval.model_copy(update={name: value for name, value in chosen.items() if value is not None})
    on_cpu = run.config.train.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.precision == "fp16":
        raise ConfigError("precision fp16 needs a GPU: use --precision fp32 or bf16")
    return Predictor(run.segmenter, config, "cpu" if on_cpu else "cuda")
