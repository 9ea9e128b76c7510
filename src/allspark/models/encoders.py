"""Which encoders there are: EfficientNet-Lite0, any of transformers' backbones, and those of plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SegformerConfig,
    SegformerModel,
)

from allspark.batch import Normalisation
from allspark.config.plugins import load_entry_points
from allspark.config.schema import ModelConfig
from allspark.errors import ConfigError
from allspark.kernels.mix_ffn import save_memory
from allspark.models import efficientnet_lite
from allspark.models.dilation import deepen_stem, dilate
from allspark.models.encoder import EfficientNetLiteEncoder, Encoder, MixTransformerEncoder, ResNetEncoder
from allspark.models.encoder_config import (
    BOOKKEEPING,
    HUB,
    NO_DROPOUT,
    body_config,
    field_names,
    is_plain,
    weights_normalisation,
    write_taps,
)
from allspark.models.pretrained import body_from_state, load_body
from allspark.models.published import mit_sizes, nvlabs_to_transformers, read_foreign
from allspark.runtime.modes import evaluating

_OF_RESNETS = {"output_stride": "be dilated", "multi_grid": "be dilated", "deep_stem": "have a deep stem"}
"""What else no encoder has, field by field of the configuration."""


def _efficientnet_lite0(config: ModelConfig, load_weights: bool) -> Encoder:
    """ImageNet weights out of an installed package (``hub``), random ones (``none``), or a file in its layout."""
    if config.encoder_config:
        raise ConfigError(
            f"model.encoder_config: {config.encoder} has no fields, got {', '.join(config.encoder_config)}"
        )
    for field in (*_OF_RESNETS, "activation_checkpointing"):
        if getattr(config, field):
            raise ConfigError(f"model.{field}: {config.encoder} does not have it; leave it at its default")
    body = efficientnet_lite.EfficientNetLite0()
    if load_weights and config.pretrained != "none":
        hub = config.pretrained == "hub"
        state = efficientnet_lite.packaged_weights() if hub else read_foreign(Path(config.pretrained))
        body.load_state_dict(efficientnet_lite.from_published(state))
    return EfficientNetLiteEncoder(body, efficientnet_lite.CHANNELS, efficientnet_lite.STRIDES, multiple=1)


Builder = Callable[[ModelConfig, bool], Encoder]
"""The network section of a configuration, and whether to load pretrained weights -> an encoder."""

ENCODERS: dict[str, Builder] = {efficientnet_lite.NAME: _efficientnet_lite0}
"""Encoders that are not transformers', by the name that ``model.encoder`` gives them."""


def add_encoder(name: str, build: Builder) -> None:
    """Make an encoder of your own known as ``model.encoder=NAME``.

    Args:
        name: a new name.
        build: returns an :class:`Encoder`, whose ``body(image).feature_maps`` are its maps, finest first; or a
            subclass with a ``_maps`` of its own. Its ``normalisation`` says what it takes.

    Raises:
        ConfigError: the name is taken.
    """
    if name in ENCODERS or name in HUB:
        raise ConfigError(f"there is an encoder {name!r} already; give yours another name")
    ENCODERS[name] = build


def build_encoder(config: ModelConfig, load_weights: bool = True) -> Encoder:
    """Build the encoder that a configuration names, with the normalisation that it names or that its weights want.

    Args:
        config: ``encoder``, ``encoder_config``, ``pretrained`` and ``drop_path`` are read.
        load_weights: False builds the architecture alone, for a checkpoint that follows.

    Raises:
        ConfigError: no such encoder, or its configuration does not fit.
        CheckpointError: the weights cannot be had; the message lists the choices.
    """
    own = _not_transformers(config.encoder)
    if own is None:
        encoder = _of_transformers(config, load_weights)
        encoder.normalisation = weights_normalisation(config)
    else:
        encoder = own(config, load_weights)
    wanted = encoder.normalisation
    encoder.normalisation = Normalisation(config.mean or wanted.mean, config.std or wanted.std)
    if config.freeze_encoder:
        encoder.freeze()
    return encoder


def _of_transformers(config: ModelConfig, load_weights: bool) -> Encoder:
    architecture = body_config(config)
    source = config.pretrained if load_weights else "none"
    if source == "hub":
        if config.encoder not in HUB and "/" not in config.encoder and not Path(config.encoder).is_dir():
            raise ConfigError(
                f"model.pretrained: hub has no weights for the bare model type {config.encoder!r}; "
                "use none, a hub name, a local folder or an NVlabs .pth file"
            )
        source = HUB.get(config.encoder, config.encoder)
    for field, what in _OF_RESNETS.items():
        if getattr(config, field) and not isinstance(architecture, ResNetConfig):
            raise ConfigError(
                f"model.{field}: only ResNet encoders can {what}, not {config.encoder!r}; leave it at its default"
            )
    if config.multi_grid and config.output_stride is None:
        raise ConfigError(
            "model.multi_grid: it multiplies a dilation; set model.output_stride to 8 or 16, or it to false"
        )
    if isinstance(architecture, SegformerConfig):
        body = load_body(SegformerModel, architecture, source)
        _checkpoint_activations(body, config)
        return _mix_transformer(architecture, body)
    body = load_body(MODEL_FOR_BACKBONE_MAPPING[type(architecture)], architecture, source)
    _checkpoint_activations(body, config)
    if config.output_stride is not None:
        dilate(body, config.output_stride, multi_grid=config.multi_grid)
    if config.deep_stem:
        deepen_stem(body)
    if not hasattr(architecture, "patch_size"):
        kind = ResNetEncoder if isinstance(architecture, ResNetConfig) else Encoder
        return kind(body, tuple(body.channels), *_measured(body, config.encoder))
    reductions = _reductions(architecture, len(body.channels))
    # DINOv2's patches must divide the image; the others pad by themselves, each in its own way.
    return Encoder(body, tuple(body.channels), reductions, multiple=reductions[-1])


def _not_transformers(name: str) -> Builder | None:
    """What builds the encoder of this name, if transformers does not."""
    by_transformers = name in HUB or "/" in name or Path(name).is_dir() or name in CONFIG_MAPPING
    if name not in ENCODERS and not by_transformers:
        load_entry_points()
    return ENCODERS.get(name)


def published_encoder(state: Mapping[str, Tensor], drop_path: float = 0.1) -> Encoder:
    """Build a MiT from tensors in NVlabs' layout; its sizes are inferred.

    Raises:
        CheckpointError: the layout is another one.
    """
    config = SegformerConfig(**mit_sizes(state), drop_path_rate=drop_path, **NO_DROPOUT)
    return _mix_transformer(config, body_from_state(config, nvlabs_to_transformers(state), "published checkpoint"))


def _mix_transformer(config: SegformerConfig, body: SegformerModel) -> Encoder:
    """Wrap transformers' SegFormer encoder, with the published layer-norm eps."""
    for name, module in body.named_modules():
        # Published: 1e-6 in blocks and at stage ends, torch's default in patch embeddings and key reduction.
        if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and ".attention." not in name:
            module.eps = 1e-6
    save_memory(body, config)
    strides = tuple(_products(config.strides))
    return MixTransformerEncoder(body, tuple(config.hidden_sizes), strides, multiple=1)


def _checkpoint_activations(body: PreTrainedModel, config: ModelConfig) -> None:
    """Let transformers compute each block again in backward, where that is wanted."""
    if not config.activation_checkpointing:
        return
    enable = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"model.activation_checkpointing: {config.encoder!r} cannot do it in transformers; set it to false"
        ) from error


def resolve_encoder(config: ModelConfig) -> ModelConfig:
    """Write the encoder out, so that a saved run opens without network or the original folder.

    A hub name or a folder becomes the model type with all fields that differ from its defaults; the normalisation is
    written out for all, and for plain transformers which layers the feature maps are.
    """
    own = _not_transformers(config.encoder)
    how = weights_normalisation(config) if own is None else own(config, False).normalisation
    config = config.model_copy(update={"mean": config.mean or how.mean, "std": config.std or how.std})
    if config.encoder in HUB or own is not None:
        return config
    if "/" not in config.encoder and not Path(config.encoder).is_dir():
        return write_taps(config)
    architecture = body_config(config)
    names = field_names(architecture) - BOOKKEEPING
    fields = {key: value for key, value in architecture.to_diff_dict().items() if key in names}
    return config.model_copy(
        update={
            "encoder": architecture.model_type,
            "encoder_config": fields,
            "pretrained": config.encoder if config.pretrained == "hub" else config.pretrained,
        }
    )


def _reductions(config: PretrainedConfig, count: int) -> tuple[int, ...]:
    """Strides of a backbone's last ``count`` feature maps."""
    patch = int(config.patch_size)
    return tuple(patch if is_plain(config) else patch * 2**i for i in range(count))


@torch.no_grad()
def _measured(body: nn.Module, name: str) -> tuple[tuple[int, ...], int]:
    """Strides of a backbone's feature maps, and the multiple that images must be padded to."""
    even, odd = 256, 257
    sides = {}
    with evaluating(body):
        for side in (even, odd):
            image = torch.zeros(1, 3, side, side, device=next(body.parameters()).device)
            sides[side] = [x.shape[2] for x in body(image).feature_maps]
    strides = tuple(even // side for side in sides[even])
    if any(stride * side != even for stride, side in zip(strides, sides[even], strict=True)):
        raise ConfigError(f"model.encoder: the feature maps of {name!r} have no whole strides: {sides[even]} of {even}")
    rounds_up = all(-(-odd // stride) == side for stride, side in zip(strides, sides[odd], strict=True))
    return strides, 1 if rounds_up else strides[-1]


def _products(strides: Any) -> list[int]:
    result = [1]
    for stride in strides:
        result.append(result[-1] * stride)
    return result[1:]
