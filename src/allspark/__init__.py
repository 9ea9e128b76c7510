"""AllSpark: semi-supervised semantic segmentation.

The public API. Everything is imported when it is first used, so that ``import allspark`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from allspark.runtime.version import VERSION

if TYPE_CHECKING:
    from allspark.batch import IGNORE, LabeledBatch, Progress, StepOutput, Term, TrainBatch, UnlabeledBatch, Views
    from allspark.config.fields import Count, Positive, Probability
    from allspark.config.files import apply_overrides, describe, load_config, load_recipe, save_config
    from allspark.config.methods import MethodConfig
    from allspark.config.plugins import load_plugin
    from allspark.config.schema import Config, DataConfig, ModelConfig
    from allspark.data.boxes import BetaBoxes, FrenchBoxes, UniMatchBoxes
    from allspark.data.check import check
    from allspark.data.sets import DATA_SETS, add_data_set, open_source
    from allspark.data.sets.base import DataSet, Partition
    from allspark.data.sets.lists import Layout, divide_images, find_files
    from allspark.data.source import Sample, Source, default_palette
    from allspark.data.splits import make_split
    from allspark.engine.bar import Bar
    from allspark.engine.run import Run, open_run
    from allspark.engine.sinks import Sink, read_log
    from allspark.engine.train import train
    from allspark.errors import CheckpointError, ConfigError, DataError, UserError
    from allspark.inference.evaluate import evaluate
    from allspark.inference.metrics import ConfusionMatrix
    from allspark.inference.predictor import Prediction, Predictor
    from allspark.kernels.logits import Logits
    from allspark.methods import METHODS, add_method, build_method
    from allspark.methods.base import Method, class_pixels, eval_logits, hard_labels
    from allspark.methods.losses import cross_entropy, masked_cross_entropy, ohem_cross_entropy
    from allspark.methods.mixing import box_masks, mix, mix_logits, reversed_batch, valid_pixels
    from allspark.methods.teacher import Teacher
    from allspark.models.allspark import AllSparkBottleneck, Guide
    from allspark.models.encoder import Encoder
    from allspark.models.encoders import ENCODERS, add_encoder
    from allspark.models.ensemble import Ensemble
    from allspark.models.segmenter import Features, Segmenter, build_segmenter
    from allspark.recipes import RECIPES

__version__ = VERSION

__all__ = [
    "DATA_SETS",
    "ENCODERS",
    "IGNORE",
    "METHODS",
    "RECIPES",
    "AllSparkBottleneck",
    "Bar",
    "BetaBoxes",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ConfusionMatrix",
    "Count",
    "DataConfig",
    "DataError",
    "DataSet",
    "Encoder",
    "Ensemble",
    "Features",
    "FrenchBoxes",
    "Guide",
    "LabeledBatch",
    "Layout",
    "Logits",
    "Method",
    "MethodConfig",
    "ModelConfig",
    "Partition",
    "Positive",
    "Prediction",
    "Predictor",
    "Probability",
    "Progress",
    "Run",
    "Sample",
    "Segmenter",
    "Sink",
    "Source",
    "StepOutput",
    "Teacher",
    "Term",
    "TrainBatch",
    "UniMatchBoxes",
    "UnlabeledBatch",
    "UserError",
    "Views",
    "add_data_set",
    "add_encoder",
    "add_method",
    "apply_overrides",
    "box_masks",
    "build_method",
    "build_segmenter",
    "check",
    "class_pixels",
    "cross_entropy",
    "default_palette",
    "describe",
    "divide_images",
    "eval_logits",
    "evaluate",
    "find_files",
    "hard_labels",
    "load_config",
    "load_plugin",
    "load_recipe",
    "make_split",
    "masked_cross_entropy",
    "mix",
    "mix_logits",
    "ohem_cross_entropy",
    "open_run",
    "open_source",
    "read_log",
    "reversed_batch",
    "save_config",
    "train",
    "valid_pixels",
]

_HOME = {
    "batch": (
        "IGNORE",
        "LabeledBatch",
        "Progress",
        "StepOutput",
        "Term",
        "TrainBatch",
        "UnlabeledBatch",
        "Views",
    ),
    "config.fields": (
        "Count",
        "Positive",
        "Probability",
    ),
    "config.files": (
        "apply_overrides",
        "describe",
        "load_config",
        "load_recipe",
        "save_config",
    ),
    "config.methods": ("MethodConfig",),
    "config.plugins": ("load_plugin",),
    "config.schema": (
        "Config",
        "DataConfig",
        "ModelConfig",
    ),
    "data.boxes": (
        "BetaBoxes",
        "FrenchBoxes",
        "UniMatchBoxes",
    ),
    "data.check": ("check",),
    "data.sets": (
        "DATA_SETS",
        "add_data_set",
        "open_source",
    ),
    "data.sets.base": (
        "DataSet",
        "Partition",
    ),
    "data.sets.lists": (
        "Layout",
        "divide_images",
        "find_files",
    ),
    "data.source": (
        "Sample",
        "Source",
        "default_palette",
    ),
    "data.splits": ("make_split",),
    "engine.bar": ("Bar",),
    "engine.run": (
        "Run",
        "open_run",
    ),
    "engine.sinks": (
        "Sink",
        "read_log",
    ),
    "engine.train": ("train",),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "UserError",
    ),
    "inference.evaluate": ("evaluate",),
    "inference.metrics": ("ConfusionMatrix",),
    "inference.predictor": (
        "Prediction",
        "Predictor",
    ),
    "kernels.logits": ("Logits",),
    "methods": (
        "METHODS",
        "add_method",
        "build_method",
    ),
    "methods.base": (
        "Method",
        "class_pixels",
        "eval_logits",
        "hard_labels",
    ),
    "methods.losses": (
        "cross_entropy",
        "masked_cross_entropy",
        "ohem_cross_entropy",
    ),
    "methods.mixing": (
        "box_masks",
        "mix",
        "mix_logits",
        "reversed_batch",
        "valid_pixels",
    ),
    "methods.teacher": ("Teacher",),
    "models.allspark": (
        "AllSparkBottleneck",
        "Guide",
    ),
    "models.encoder": ("Encoder",),
    "models.encoders": (
        "ENCODERS",
        "add_encoder",
    ),
    "models.ensemble": ("Ensemble",),
    "models.segmenter": (
        "Features",
        "Segmenter",
        "build_segmenter",
    ),
    "recipes": ("RECIPES",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"allspark.{module}"), name)
    raise AttributeError(f"module 'allspark' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
