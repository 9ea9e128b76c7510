"""What a study file asks for: methods x partitions x seeds, and why their comparison is fair."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from allspark.config.fields import Section
from allspark.config.files import apply_overrides, differences, load_config, load_recipe, read_text
from allspark.config.methods import METHOD_CONFIGS
from allspark.config.plugins import load_entry_points
from allspark.config.presets import DATA_SETS as WITH_PRESETS
from allspark.config.presets import as_overrides, read_preset, without_network
from allspark.config.resolve import network_config
from allspark.config.schema import Config
from allspark.config.yaml import flow, parse
from allspark.data.sets import DATA_SETS
from allspark.data.sets.lists import configured_lists
from allspark.errors import ConfigError, DataError
from allspark.recipes import RECIPES
from allspark.study.stages import AFTER, Stage, list_of, stages


def _nothing(value: Any) -> Any:
    """A name with nothing behind it changes nothing."""
    return {} if value is None else value


Changes = Annotated[dict[str, Any], BeforeValidator(_nothing)]
"""Dotted fields of the configuration and their values; ``{seed}`` in a text stands for the run's seed, and ``{after}``
for the folder of the run that it begins after."""

NOT_WHAT_BUT_HOW = frozenset(
    {
        *("data.workers", "data.max_pixels", "eval.batch", "eval.compare", "train.device"),
        *("train.log_every", "train.checkpoint_every", "train.keep_every"),
    }
)
"""Fields that say how a run is done, not what it is: its result is the same with any."""
_METHOD = ("method.", "model.", "data.pseudo")
_METHOD_MAY_CHANGE = (*_METHOD, "optim.", "views.", "train.", "data.batch_unlabeled")
_PRESETS_MAY_CHANGE = ("data.crop", "data.batch_labeled")  # as they do themselves
_PARTITION_MAY_CHANGE = ("data.split", "data.labeled", "data.unlabeled", "data.val", "train.begin_with")
_NOT_FOR_ALL = ("seed", "method.name")


class Published(Section):
    """What a method's own authors report on the lists of a study."""

    source: str = Field(min_length=1, description="where it is said, and of which network")
    miou: dict[str, float] = Field(min_length=1, description="partition -> mIoU [percent]")


class Study(Section):
    """A study file."""

    base: str = Field(description="a recipe, or a configuration file beside this one")
    set: Changes = Field(default_factory=dict, description="changes for every run")
    methods: Annotated[dict[str, Changes], Field(min_length=1)] = Field(
        description="name -> changes of method.*, model.*, and where it needs them optim.*, views.*, train.* and "
        "data.batch_unlabeled, and after and label of a stage; nothing behind a method's name stands for itself"
    )
    partitions: Annotated[dict[str, Changes], Field(min_length=1)] = Field(
        {"all": {}}, description="name -> lists: data.split, or data.labeled and the like"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [0], description="one run for each seed"
    )
    presets: bool = Field(
        False, description="give each method its published settings for the base's data set, where there are some"
    )
    paper: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="published mIoU [percent], method -> partition -> score, to stand beside"
    )
    published: dict[str, Published] = Field(
        default_factory=dict,
        description="that of methods' own authors: method -> source, miou",
    )


@dataclass(frozen=True)
class Planned:
    """One run of a study.

    Attributes:
        method: name of its row.
        partition: name of its lists.
        seed: of the run.
        out: its folder.
        config: what it is trained with.
        apart: fields of its own that are not the method, with what all other rows have instead.
        after: the run that has to be finished before; None: it begins by itself.
        stage: the same as the study file says it, and how that run labels.
    """

    method: str
    partition: str
    seed: int
    out: Path
    config: Config
    apart: Mapping[str, str] = field(default_factory=dict)
    after: Planned | None = None
    stage: Stage | None = None

    def __str__(self) -> str:
        return f"{self.method}, {self.partition}, seed {self.seed}"


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: the file is missing or wrong; one line that names it and the field.
    """
    tree = parse(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `base:`, `methods:` and so on, one a line")
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in item["loc"])
        known = ", ".join(Study.model_fields)
        words = f"unknown, known are {known}" if item["type"] == "extra_forbidden" else item["msg"].lower()
        raise ConfigError(f"{path}: {where}: {words}") from error


def plan(study: Study, file: Path, out: Path, extra: Sequence[str] = ()) -> list[Planned]:
    """All runs of a study: for each seed and partition every method, so that comparisons are complete early.

    The comparison is fair by construction. All runs of one seed see the same lists, and networks of one kind begin with
    the same weights. A row that changes more than ``method.*`` and ``model.*``, such as the number of updates, says so:
    its runs are ``apart``.

    Args:
        study: an open study file.
        file: where it was read from.
        out: folder of the study.
        extra: ``key=value`` for all runs, beside and above ``set``.

    Raises:
        ConfigError: a change is not allowed there, or not valid.
    """
    base = _base(study.base, file)
    if study.presets and study.base not in WITH_PRESETS:
        raise ConfigError(f"{file}: presets are for the bases {', '.join(WITH_PRESETS)}, not for {study.base}")
    for name in (*study.set, *(item.partition("=")[0].strip() for item in extra)):
        if name in _NOT_FOR_ALL:
            raise ConfigError(f"{file}: {name} differs from run to run; name it under methods or seeds")
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"{file}: seeds: each seed once, got {study.seeds}")
    stage_of = stages(study.methods, file)
    planned: dict[tuple[str, str, int], Planned] = {}

    def run_of(method: str, partition: str, seed: int) -> Planned:
        which = (method, partition, seed)
        if which not in planned:
            stage = stage_of.get(method)
            after = None if stage is None else run_of(stage.after, partition, seed)
            folder = out / _slug(partition) / _slug(method) / f"seed{seed}"
            changes = _changes(study.methods[method], folder, after, stage)
            config, apart = _config(base, study, which, changes, file, extra)
            planned[which] = Planned(*which, folder, config, apart, after, stage)
        return planned[which]

    runs = [
        run_of(method, partition, seed)
        for seed in study.seeds
        for partition in study.partitions
        for method in study.methods
    ]
    places: dict[Path, Planned] = {}
    for run in runs:
        other = places.setdefault(run.out, run)
        if other is not run:
            raise ConfigError(f"{file}: {run} and {other} would share the folder {run.out}; give them other names")
    return runs


def require_lists(runs: Sequence[Planned]) -> None:
    """Look for the data and the lists of all runs before the first one begins.

    Raises:
        DataError: the first one that is not there, and how many runs would have failed.
    """
    failed: dict[str, list[Planned]] = {}
    for run in runs:
        data = run.config.data
        if data.root is None or (data.source in DATA_SETS and DATA_SETS[data.source].generated):
            continue
        try:
            if not data.root.is_dir():
                raise DataError(f"{data.root}: no such folder (data.root, --data)")
            configured_lists(data, data.root)
        except DataError as error:
            failed.setdefault(str(error), []).append(run)
    for message, some in failed.items():
        count = sum(map(len, failed.values()))
        raise DataError(f"{some[0]}: {message}" + f" ({count} of {len(runs)} runs could not begin)" * (count > 1))


def _changes(row: Mapping[str, Any], out: Path, after: Planned | None, stage: Stage | None) -> dict[str, Any]:
    """What a row changes of the configuration of a run, with the place of the run that it begins after."""
    changes = {name: value for name, value in row.items() if name not in {"after", "label"}}
    if stage is not None and stage.label is not None:
        changes.setdefault("data.pseudo", str(list_of(out).absolute()))
    if after is not None:
        place = str(after.out.absolute())
        changes = {k: v.replace(AFTER, place) if isinstance(v, str) else v for k, v in changes.items()}
    return changes


def _config(
    base: Config,
    study: Study,
    which: tuple[str, str, int],
    changes: dict[str, Any],
    file: Path,
    extra: Sequence[str],
) -> tuple[Config, dict[str, str]]:
    """What a run is trained with, and in what of it that is not the method it differs from the other rows."""
    method, partition, seed = which
    load_entry_points()
    if method in METHOD_CONFIGS:
        changes = {"method.name": method, **changes}
    if "method.name" not in changes:
        raise ConfigError(f"{file}: methods.{method}: say which it is, method.name: {' or '.join(METHOD_CONFIGS)}")
    allowed = _METHOD_MAY_CHANGE + (_PRESETS_MAY_CHANGE if study.presets else ())
    _allow(changes, allowed, f"{file}: methods.{method}", "or the comparison would not be fair")
    _allow(study.partitions[partition], _PARTITION_MAY_CHANGE, f"{file}: partitions.{partition}", "its lists")
    lists = study.partitions[partition]
    try:
        for_all = [*_overrides(study.set, seed), *extra, *_overrides(lists, seed), f"seed={seed}"]
        preset = _preset(study, changes, extra)
        config = apply_overrides(base, [*as_overrides(preset), *for_all, *_overrides(changes, seed)])
        own, of_method = (
            {name: value for name, value in some.items() if name.startswith(_METHOD)} for some in (preset, changes)
        )
        common = apply_overrides(base, [*as_overrides(own), *for_all, *_overrides(of_method, seed)])
        network_config(config)  # now rather than after the first runs
        return config, _apart(common, config, changes)
    except ConfigError as error:
        reason = str(error).removeprefix("--set ").removeprefix(": ")
        raise ConfigError(f"{file}: {method}, {partition}: {reason}") from error


def _preset(study: Study, changes: Mapping[str, Any], extra: Sequence[str]) -> dict[str, Any]:
    """The published settings of a row's method, below all that the study says."""
    found = read_preset(changes["method.name"], study.base) if study.presets else None
    asked = (*study.set, *changes, *(item.partition("=")[0].strip() for item in extra))
    return {} if found is None else without_network(found, asked)


def _apart(common: Config, own: Config, changes: Mapping[str, Any]) -> dict[str, str]:
    """Field -> what it is in this row and what it is in the others, as the study file writes it."""
    return {
        name: f"{_shown(changes.get(name, new))} instead of {_shown(old)}"
        for name, old, new in differences(common, own)
        if not name.startswith(_METHOD) and name not in NOT_WHAT_BUT_HOW
    }


def _shown(value: Any) -> str:
    return flow(value).removesuffix(".0")  # 24 epochs, whether written as 24 or as 24.0


def _allow(changes: Mapping[str, Any], allowed: tuple[str, ...], where: str, why: str) -> None:
    for name in changes:
        if not name.startswith(allowed):
            raise ConfigError(f"{where}: {name} cannot be changed here ({why}); put it under set, for all runs")


def _overrides(changes: Mapping[str, Any], seed: int) -> Iterator[str]:
    for name, value in changes.items():
        if isinstance(value, str):
            yield f"{name}={value.replace('{seed}', str(seed))}"
        else:
            yield f"{name}={flow(value)}"


def _base(name: str, file: Path) -> Config:
    if name in RECIPES:
        return load_recipe(name)
    path = file.parent / name
    if not path.is_file():
        raise ConfigError(f"{file}: base: neither a recipe ({', '.join(RECIPES)}) nor a file {path}")
    return load_config(path)


def _slug(name: str) -> str:
    """A name as a folder's name."""
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "_")).strip("._") or "_"
