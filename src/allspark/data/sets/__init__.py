"""All data sets by name, in their own layouts; more can be added."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from allspark.config.plugins import load_entry_points
from allspark.config.schema import DataConfig
from allspark.data.sets.base import DataSet
from allspark.data.sets.cityscapes import CITYSCAPES
from allspark.data.sets.coco import COCO
from allspark.data.sets.folder import FOLDER
from allspark.data.sets.loveda import LOVEDA
from allspark.data.sets.potsdam import POTSDAM
from allspark.data.sets.synthetic import SYNTHETIC
from allspark.data.sets.voc import VOC
from allspark.data.source import Source
from allspark.errors import ConfigError, DataError

DATA_SETS: dict[str, DataSet] = {
    "folder": FOLDER,
    "voc": VOC,
    "cityscapes": CITYSCAPES,
    "coco": COCO,
    "loveda": LOVEDA,
    "potsdam": POTSDAM,
    "synthetic": SYNTHETIC,
}
"""``data.source`` names one of them. A folder is taken for the first one that has a mark in it."""


def add_data_set(name: str, data_set: DataSet) -> None:
    """Make a data set of your own known under a name, for ``data.source`` and ``--source`` (docs/add-a-data-set.md).

    Raises:
        ConfigError: the name is taken.
    """
    if name in DATA_SETS:
        raise ConfigError(f"the name {name} is taken by another data set: give yours a new one ({_known()})")
    DATA_SETS[name] = data_set


def open_source(config: DataConfig, *, require_labels: bool = True, tolerate: bool = False) -> Source:
    """Open the data set that a configuration names; nothing is decoded yet.

    Args:
        config: source, root and lists.
        require_labels: False accepts a set in which nothing is labelled.
        tolerate: True leaves it to the caller to read ``Source.faults``.

    Raises:
        ConfigError: there is no data set of that name; the nearest ones are named.
        DataError: the folder or a part of it is missing.
    """
    data_set = _data_set(config.source)
    if config.root is None and data_set.generated:
        raise DataError("data.root is not set: name a new folder with --data DIR, the images are drawn into it")
    if config.root is None:
        raise DataError("data.root is not set: say where the images are with --data DIR")
    if config.root.is_file():
        raise DataError(f"{config.root}: a file; unpack it and name the folder of the images (data.root, --data)")
    if not data_set.generated and not config.root.is_dir():
        raise DataError(f"{config.root}: no such folder (data.root, --data)")
    source = replace(data_set.open(config, require_labels=require_labels), white=config.white)
    if source.faults and not tolerate:
        more = f" ({len(source.faults) - 1} more: `allspark check {config.root}` lists them)"
        raise DataError(source.faults[0] + more * (len(source.faults) > 1))
    return source


def layout_of(root: Path) -> str:
    """Name the data set whose layout a folder has, by its marks; ``folder`` if it has none."""
    load_entry_points()
    found = (name for name, data_set in DATA_SETS.items() if any((root / mark).exists() for mark in data_set.marks))
    return next(found, "folder")


def _data_set(name: str) -> DataSet:
    if name not in DATA_SETS:
        load_entry_points()
    if name in DATA_SETS:
        return DATA_SETS[name]
    near = difflib.get_close_matches(name, DATA_SETS, 2)
    hint = f": did you mean {' or '.join(near)}?" if near else ", and none has a name like it"
    raise ConfigError(f"data.source: no data set {name}{hint} ({_known()})")


def _known() -> str:
    return f"known: {', '.join(DATA_SETS)}"
