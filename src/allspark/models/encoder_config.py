"""Which transformers network an encoder's name stands for, and its configuration."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    AutoConfig,
    PretrainedConfig,
    ResNetConfig,
    SegformerConfig,
)

from allspark.batch import IMAGENET, Normalisation
from allspark.config.schema import ModelConfig
from allspark.errors import CheckpointError, ConfigError
from allspark.models import efficientnet_lite
from allspark.models.pretrained import WEIGHT_FILES, cached_or_hub

_WIDE = (64, 128, 320, 512)
MIT_PRESETS: dict[str, dict[str, Any]] = {
    "mit-b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
    "mit-b1": {"hidden_sizes": _WIDE, "depths": (2, 2, 2, 2)},
    "mit-b2": {"hidden_sizes": _WIDE, "depths": (3, 4, 6, 3)},
    "mit-b3": {"hidden_sizes": _WIDE, "depths": (3, 4, 18, 3)},
    "mit-b4": {"hidden_sizes": _WIDE, "depths": (3, 8, 27, 3)},
    "mit-b5": {"hidden_sizes": _WIDE, "depths": (3, 6, 40, 3)},
}
"""SegFormer's Mix Transformers (Xie et al. 2021, table 6); the other sizes are transformers' defaults."""

RESNET_PRESETS: dict[str, dict[str, Any]] = {
    "resnet-50": {"depths": (3, 4, 6, 3)},
    "resnet-101": {"depths": (3, 4, 23, 3)},
}
"""ResNets (He et al. 2016, table 1), the stride in the 3x3 convolutions; the other sizes are transformers' defaults."""

HUB = {
    **{name: f"nvidia/{name}" for name in MIT_PRESETS},
    **{name: f"microsoft/{name}" for name in RESNET_PRESETS},
}
"""Where the weights of a name lie on the hub."""
STAGES = 4
"""Feature maps of an encoder; of those with more, the last ones."""
_TAPS = {24: (5, 12, 18, 24)}
"""Layers of a plain transformer whose outputs are its feature maps, where they are not spread evenly: as UniMatch V2
(Yang et al., TPAMI 2025) has them for DINOv2-L."""
TAP_FIELDS = ("out_features", "out_indices")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_PREPROCESSOR = "preprocessor_config.json"
BOOKKEEPING = {
    "architectures",
    "transformers_version",
    "_name_or_path",
    "model_type",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
}
"""Fields that say nothing of the architecture."""


def body_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers configuration of the encoder, asking for four feature maps.

    Those of its last four stages; of a plain transformer, whose layers all have one resolution, four spread over its
    depth, or those that ``encoder_config`` names (``out_indices``, ``out_features``).

    Raises:
        ConfigError: no such encoder, or fields that it does not have.
        CheckpointError: the hub cannot be asked.
    """
    fields = dict(config.encoder_config)
    name = config.encoder
    try:
        if name in MIT_PRESETS:
            body = SegformerConfig(**{**MIT_PRESETS[name], **NO_DROPOUT, **fields})
        elif name in RESNET_PRESETS:
            body = ResNetConfig(**{**RESNET_PRESETS[name], **fields})
        elif "/" in name or Path(name).is_dir():
            body = cached_or_hub(AutoConfig.from_pretrained, name, **fields)
        else:
            body = AutoConfig.for_model(name, **fields)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"model.encoder: cannot build {name!r} ({reason}); use {', '.join(HUB)}, a transformers hub name, "
            "a local folder, or a model type such as swin, convnext, dinov2"
        ) from error
    known = field_names(body)
    for key in fields:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise ConfigError(
                f"model.encoder_config: {body.model_type} has no field {key!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    if getattr(body, "num_channels", 3) != 3:
        raise ConfigError(f"model.encoder_config: num_channels is {body.num_channels}, but images have 3 channels")
    if hasattr(body, "drop_path_rate"):
        body.drop_path_rate = config.drop_path
    if isinstance(body, SegformerConfig):
        return body  # gives its maps as hidden states
    if type(body) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ConfigError(f"model.encoder: {name!r} ({body.model_type}) yields no feature maps in transformers")
    _ask_for_maps(body, config)
    return body


def _ask_for_maps(body: PretrainedConfig, config: ModelConfig) -> None:
    if not is_plain(body):
        body.out_indices = _last_stages(body)
    elif not has_taps(config):
        body.out_indices = _taps(body)


def is_plain(body: PretrainedConfig) -> bool:
    """Whether it is a plain transformer: all layers have one resolution, and each is a stage."""
    return hasattr(body, "patch_size") and not hasattr(body, "depths")


def write_taps(config: ModelConfig, *, earlier: bool = False) -> ModelConfig:
    """Write out which layers the feature maps are, if the encoder is a bare plain transformer and they are open.

    Args:
        config: the network.
        earlier: of a run of before they could be chosen, when they were those of the last four layers.
    """
    if config.encoder not in CONFIG_MAPPING or has_taps(config):
        return config
    body = body_config(config)
    if not is_plain(body):
        return config
    taps = _last_stages(body) if earlier else list(body.out_indices)
    return config.model_copy(update={"encoder_config": config.encoder_config | {"out_indices": taps}})


def has_taps(config: ModelConfig) -> bool:
    """Whether a configuration names the layers whose outputs are the feature maps."""
    return any(field in config.encoder_config for field in TAP_FIELDS)


def _last_stages(body: PretrainedConfig) -> list[int]:
    """Numbers of the last four stages."""
    return list(range(len(body.stage_names)))[-STAGES:]


def _taps(body: PretrainedConfig) -> list[int]:
    """Four layers, counted from 1, at a quarter, half, three quarters and the end: 3, 6, 9 and 12 of 12."""
    depth = len(body.stage_names) - 1  # the first stage is the embedding
    if depth < STAGES:
        return _last_stages(body)
    return list(_TAPS.get(depth, [-(-depth * i // STAGES) for i in range(1, STAGES + 1)]))


def weights_normalisation(config: ModelConfig) -> Normalisation:
    """What a transformers encoder's weights were trained with: of ``preprocessor_config.json`` beside them, if any.

    Without one ImageNet's, which nearly all use.

    Raises:
        CheckpointError: the hub cannot be asked.
        ConfigError: it has no mean and std for three channels.
    """
    if config.mean is not None and config.std is not None:
        return Normalisation(config.mean, config.std)
    source = config.encoder if config.pretrained in {"hub", "none"} else config.pretrained
    if Path(source).suffix in WEIGHT_FILES or ("/" not in source and not Path(source).is_dir()):
        return IMAGENET
    try:
        path = Path(source) / _PREPROCESSOR
        if not Path(source).is_dir():
            path = cached_or_hub(hub_file, source, filename=_PREPROCESSOR)
    except CheckpointError as error:
        raise CheckpointError(
            f"the hub cannot be asked what {source} takes of an image ({_PREPROCESSOR}); set model.mean and model.std, "
            f"name a folder with a copy, or take model.encoder={efficientnet_lite.NAME}, whose weights are installed"
        ) from error
    if path is None or not path.is_file():
        return IMAGENET
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255.0
        if not fields.get("do_normalize", True):
            return Normalisation((0.0, 0.0, 0.0), (1 / scale,) * 3)
        (r, g, b), (sr, sg, sb) = fields.get("image_mean", IMAGENET.mean), fields.get("image_std", IMAGENET.std)
        return Normalisation((r / scale, g / scale, b / scale), (sr / scale, sg / scale, sb / scale))
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{path}: no mean and std of three channels in it ({error}); set model.mean and model.std"
        ) from error


def hub_file(name: str, filename: str, *, local_files_only: bool = False) -> Path | None:
    """A file of a model of the hub; None where the model has none."""
    try:
        return Path(hf_hub_download(name, filename, local_files_only=local_files_only))
    except LocalEntryNotFoundError:
        raise  # perhaps the hub has it
    except HFValidationError as error:
        raise OSError(f"{name} is no name of a model") from error
    except EntryNotFoundError:
        return None


def field_names(config: PretrainedConfig) -> set[str]:
    """Names of the fields that a model's configuration knows."""
    return {*type(config)().to_dict(), *config.attribute_map}
