"""Whether a network can train at all, found out before it is built."""

from __future__ import annotations

import math

import torch

from allspark.config.schema import Config, TrainConfig
from allspark.errors import ConfigError
from allspark.methods.base import Method
from allspark.models.allspark import AllSparkBottleneck
from allspark.models.encoder import Encoder
from allspark.models.encoders import build_encoder
from allspark.models.segmenter import build_bottleneck
from allspark.runtime.host_memory import host_memory
from allspark.runtime.modes import evaluating

_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
_GB = 1e9


def require_fit(config: Config, num_classes: int, device: torch.device) -> None:
    """Refuse a network whose encoder does not run, or whose bottleneck does not fit encoder, crop or memory.

    Args:
        config: resolved.
        num_classes: k.
        device: where to train.

    Raises:
        ConfigError: what does not fit, and what to change.
    """
    encoder = build_encoder(config.model, load_weights=False)
    try:
        with torch.no_grad(), evaluating(encoder):
            encoder(torch.zeros(1, 3, 64, 64))
    except RuntimeError as error:
        raise ConfigError(
            f"model.encoder_config: an encoder {config.model.encoder} can be built with it, but computes nothing "
            f"({' '.join(str(error).split())[:100]}); its heads must divide its channels"
        ) from error
    if config.model.bottleneck == "allspark":
        _require_bottleneck_fits(encoder, config, num_classes, device)


def _require_bottleneck_fits(encoder: Encoder, config: Config, num_classes: int, device: torch.device) -> None:
    crop, model = config.data.crop, config.model
    grid = encoder.grid(crop)
    if math.prod(grid) == 1:
        raise ConfigError(
            f"model.bottleneck: a crop of {crop[0]} x {crop[1]} pixels is one position on the last feature map of "
            f"{model.encoder}, and channels are compared by their positions: set data.crop above "
            f"{encoder.strides[-1]}, or model.bottleneck=none"
        )
    available = host_memory() if device.type == "cpu" else torch.cuda.get_device_properties(device).total_memory
    with torch.device("meta"):
        needed = least_bytes(build_bottleneck(model, encoder, num_classes, crop), math.prod(grid), config)
    if available is None or needed <= available:
        return
    fixes = ["a smaller data.crop"]
    fixes += ["model.output_stride=16"] if model.output_stride == 8 else []
    fixes += ["model.bottleneck_heads=1"] if model.bottleneck_heads > 1 else []
    fixes += ["model.bottleneck_memory=false"] if model.bottleneck_memory else []
    raise ConfigError(
        f"model.bottleneck: {encoder.channels[-1]} channels on a grid of {grid[0]} x {grid[1]}, with {num_classes} "
        f"classes, need {needed / _GB:.1f} GB at least, and {device} has {available / _GB:.1f}: set "
        f"{', '.join(fixes)}, an encoder with fewer channels, or model.bottleneck=none"
    )


def require_room(method: Method, how: TrainConfig, device: torch.device) -> None:
    """Refuse a method whose networks and state alone are more than a GPU holds, unless processes divide them.

    Args:
        method: on the CPU.
        how: whether they are divided.
        device: where to train.

    Raises:
        ConfigError: how much they need.
    """
    if device.type != "cuda" or how.shard:
        return
    needed = sum(x.nbytes for x in method.state_dict().values())
    available = torch.cuda.get_device_properties(device).total_memory
    if needed > available:
        name = method.settings.model_fields["name"].default
        raise ConfigError(
            f"method.name: the networks and the state of {name} need {needed / _GB:.1f} GB, and "
            f"{device} has {available / _GB:.1f}: set a smaller model.encoder, or settings of the method"
        )


def least_bytes(bottleneck: AllSparkBottleneck, tokens: int, config: Config) -> int:
    """What a training step holds of a bottleneck at one time, at least [bytes].

    Its weights with gradients and the optimiser's state, where they are not divided among processes; its memory; keys
    and values of the labelled path, which are its largest activations, with their gradients. Everything else of a step
    comes on top.

    Args:
        bottleneck: on any device.
        tokens: n, positions of the last feature map of a crop.
        config: of the run.
    """
    copies = 2 + (2 if config.optim.name == "adamw" else config.optim.momentum > 0)
    weights = 0 if config.train.shard else copies * sum(x.nbytes for x in bottleneck.parameters())
    sources = config.data.batch_unlabeled if bottleneck.memory is None else len(bottleneck.memory.channels)
    width = bottleneck.labeled.key.out_features
    keys_and_values = 2 * sources * width * tokens * _BYTES[config.train.precision]
    return weights + sum(x.nbytes for x in bottleneck.buffers()) + 2 * keys_and_values
