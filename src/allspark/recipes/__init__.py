"""One file a data set or a network, which names what differs from the defaults; no recipe inherits from another."""

from pathlib import Path

_HERE = Path(__file__).parent

RECIPES: dict[str, Path] = {
    "folder": _HERE / "folder.yaml",
    "dinov2-small": _HERE / "dinov2-small.yaml",
    "dinov2-base": _HERE / "dinov2-base.yaml",
    "voc": _HERE / "voc.yaml",
    "cityscapes": _HERE / "cityscapes.yaml",
    "coco": _HERE / "coco.yaml",
    "loveda": _HERE / "loveda.yaml",
    "potsdam": _HERE / "potsdam.yaml",
    "synthetic": _HERE / "synthetic.yaml",
}
"""The recipes by name."""

PRESETS = _HERE / "presets"
"""Folder of the published settings of methods, METHOD.yaml each: see :mod:`allspark.config.presets`."""
