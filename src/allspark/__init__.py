"""AllSpark: semi-supervised semantic segmentation.

The public API. Everything is imported when it is first used, so that ``import allspark`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allspark.batch import Guide
    from allspark.config.files import apply_overrides, describe, load_config, load_recipe, save_config
    from allspark.config.schema import Config, DataConfig
    from allspark.data.sets import DATA_SETS, add_data_set, open_source
    from allspark.data.sets.base import DataSet, Partition
    from allspark.data.sets.lists import Layout, divide_images, find_files
    from allspark.data.source import Sample, Source, default_palette
    from allspark.engine.checkpoint import Run, open_run
    from allspark.engine.train import train
    from allspark.errors import CheckpointError, ConfigError, DataError, UserError
    from allspark.inference.evaluate import evaluate
    from allspark.inference.metrics import ConfusionMatrix
    from allspark.inference.predictor import Prediction, Predictor
    from allspark.methods import METHODS, build_method
    from allspark.methods.base import Method
    from allspark.models.allspark import AllSparkBottleneck
    from allspark.models.segmenter import Segmenter, build_segmenter
    from allspark.recipes import RECIPES

__version__ = "0.1.0"

__all__ = [
    "DATA_SETS",
    "METHODS",
    "RECIPES",
    "AllSparkBottleneck",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ConfusionMatrix",
    "DataConfig",
    "DataError",
    "DataSet",
    "Guide",
    "Layout",
    "Method",
    "Partition",
    "Prediction",
    "Predictor",
    "Run",
    "Sample",
    "Segmenter",
    "Source",
    "UserError",
    "add_data_set",
    "apply_overrides",
    "build_method",
    "build_segmenter",
    "default_palette",
    "describe",
    "divide_images",
    "evaluate",
    "find_files",
    "load_config",
    "load_recipe",
    "open_run",
    "open_source",
    "save_config",
    "train",
]

_HOME = {
    "config.schema": ("Config", "DataConfig"),
    "data.sets": ("DATA_SETS", "add_data_set", "open_source"),
    "data.sets.base": ("DataSet", "Partition"),
    "data.sets.lists": ("Layout", "divide_images", "find_files"),
    "data.source": ("Sample", "Source", "default_palette"),
    "engine.checkpoint": ("Run", "open_run"),
    "inference.evaluate": ("evaluate",),
    "engine.train": ("train",),
    "errors": ("CheckpointError", "ConfigError", "DataError", "UserError"),
    "inference.predictor": ("Prediction", "Predictor"),
    "methods": ("METHODS", "build_method"),
    "methods.base": ("Method",),
    "inference.metrics": ("ConfusionMatrix",),
    "models.allspark": ("AllSparkBottleneck",),
    "models.segmenter": ("Segmenter", "build_segmenter"),
    "recipes": ("RECIPES",),
    "config.files": ("apply_overrides", "describe", "load_config", "load_recipe", "save_config"),
    "batch": ("Guide",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"allspark.{module}"), name)
    raise AttributeError(f"module 'allspark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
