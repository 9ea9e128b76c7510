"""Data sets on disk, and how training sees them."""

from collections.abc import Callable

from allspark.config.schema import DataConfig
from allspark.data.sets.cityscapes import open_cityscapes
from allspark.data.sets.coco import open_coco
from allspark.data.sets.folder import open_folder
from allspark.data.sets.loveda import open_loveda
from allspark.data.sets.potsdam import open_potsdam
from allspark.data.sets.synthetic import open_synthetic
from allspark.data.sets.voc import open_voc
from allspark.data.source import Source
from allspark.errors import DataError

SOURCES: dict[str, Callable[..., Source]] = {
    "folder": open_folder,
    "voc": open_voc,
    "cityscapes": open_cityscapes,
    "coco": open_coco,
    "loveda": open_loveda,
    "potsdam": open_potsdam,
    "synthetic": open_synthetic,
}


def open_source(config: DataConfig, *, require_labels: bool = True, tolerate: bool = False) -> Source:
    """Open the data set that a configuration names; nothing is decoded yet.

    Args:
        config: source, root and lists.
        require_labels: False accepts a set in which nothing is labelled.
        tolerate: True leaves it to the caller to read ``Source.faults``.

    Raises:
        DataError: the folder or a part of it is missing.
    """
    if config.root is None and config.source == "synthetic":
        raise DataError("data.root is not set: name a new folder with --data DIR, the scenes are drawn into it")
    if config.root is None:
        raise DataError("data.root is not set: say where the images are with --data DIR")
    if config.source != "synthetic" and not config.root.is_dir():
        raise DataError(f"{config.root}: no such folder (data.root, --data)")
    source = SOURCES[config.source](config, require_labels=require_labels)
    if source.faults and not tolerate:
        raise DataError(source.faults[0])
    return source
