"""Any transformers backbone, seen as feature maps with their channels and strides."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch.nn.functional as F
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, PretrainedConfig, SegformerConfig, SegformerModel
from transformers.utils import logging as transformers_logging

from allspark.config import ModelConfig
from allspark.errors import CheckpointError, ConfigError
from allspark.models.mix_ffn import save_gelu_memory
from allspark.models.weights import mit_sizes, nvlabs_to_transformers, read_foreign

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

_STAGES = 4
_OTHER_SIZE = "{source}: does not fit the encoder: its tensors have other sizes; is model.encoder the right one?"
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Encoder(nn.Module):
    """Feature maps of an image, finest first.

    Attributes:
        channels: of each feature map.
        strides: pixels of the image for one step on each feature map.
    """

    def __init__(self, body: nn.Module, channels: tuple[int, ...], strides: tuple[int, ...], multiple: int) -> None:
        super().__init__()
        self.body = body
        self.channels = channels
        self.strides = strides
        # Images are padded to multiples of this (1: any size) and to at least the last stride.
        self._multiple = multiple

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """(b, 3, H, W) -> feature maps (b, c_i, ~H / stride_i, ~W / stride_i)."""
        height, width = (self._padded(size) for size in image.shape[2:])
        image = F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))
        return self._maps(image)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of this size is computed at [pixels]."""
        return self._padded(size[0]), self._padded(size[1])

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the last feature map for an image of this size [tokens]."""
        height, width = self.padded_size(size)
        stride = self.strides[-1]
        return -(-height // stride), -(-width // stride)

    def _padded(self, size: int) -> int:
        return -(-max(size, self.strides[-1]) // self._multiple) * self._multiple

    def _maps(self, image: Tensor) -> list[Tensor]:
        return list(self.body(image).feature_maps)


class _MixTransformer(Encoder):
    """SegFormer's encoder: takes any size, and gives its maps as hidden states."""

    def _maps(self, image: Tensor) -> list[Tensor]:
        return list(self.body(image, output_hidden_states=True).hidden_states)[-_STAGES:]


def build_encoder(config: ModelConfig, load_weights: bool = True) -> Encoder:
    """Build the encoder that a configuration names.

    Args:
        config: ``encoder``, ``encoder_config``, ``pretrained`` and ``drop_path`` are read.
        load_weights: False builds the architecture alone, for a checkpoint that follows.

    Raises:
        ConfigError: no such encoder, or its configuration does not fit.
        CheckpointError: the weights cannot be had; the message lists the choices.
    """
    body_config = _body_config(config)
    source = config.pretrained if load_weights else "none"
    if source == "hub":
        if config.encoder not in MIT_PRESETS and "/" not in config.encoder and not Path(config.encoder).is_dir():
            raise ConfigError(
                f"model.pretrained: hub has no weights for the bare model type {config.encoder!r}; "
                "use none, a hub name, a local folder or an NVlabs .pth file"
            )
        source = f"nvidia/{config.encoder}" if config.encoder in MIT_PRESETS else config.encoder
    if isinstance(body_config, SegformerConfig):
        return _mix_transformer(body_config, _load(SegformerModel, body_config, source))
    body = _load(MODEL_FOR_BACKBONE_MAPPING[type(body_config)], body_config, source)
    reductions = _reductions(body_config, len(body.channels))
    # DINOv2's patches must divide the image; the others pad by themselves, each in its own way.
    return Encoder(body, tuple(body.channels), reductions, multiple=reductions[-1])


def published_encoder(state: Mapping[str, Tensor], drop_path: float = 0.1) -> Encoder:
    """Build a MiT from tensors in NVlabs' layout; its sizes are inferred.

    Raises:
        CheckpointError: the layout is another one.
    """
    config = SegformerConfig(**mit_sizes(state), drop_path_rate=drop_path, **_NO_DROPOUT)
    return _mix_transformer(config, _from_state(config, nvlabs_to_transformers(state), "published checkpoint"))


def _mix_transformer(config: SegformerConfig, body: SegformerModel) -> Encoder:
    """Wrap transformers' SegFormer encoder, with the published layer-norm eps."""
    for name, module in body.named_modules():
        # Published: 1e-6 in blocks and at stage ends, torch's default in patch embeddings and key reduction.
        if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and ".attention." not in name:
            module.eps = 1e-6
    save_gelu_memory(body, config)
    strides = tuple(_products(config.strides))
    return _MixTransformer(body, tuple(config.hidden_sizes), strides, multiple=1)


def resolve_encoder(config: ModelConfig) -> ModelConfig:
    """Write the encoder out, so that a saved run opens without network or the original folder.

    A hub name or a folder becomes the model type with all fields that differ from its defaults.
    """
    if config.encoder in MIT_PRESETS or ("/" not in config.encoder and not Path(config.encoder).is_dir()):
        return config
    body_config = _body_config(config)
    fields = {key: value for key, value in body_config.to_diff_dict().items() if key not in _BOOKKEEPING}
    return config.model_copy(
        update={
            "encoder": body_config.model_type,
            "encoder_config": fields,
            "pretrained": config.encoder if config.pretrained == "hub" else config.pretrained,
        }
    )


_BOOKKEEPING = {
    "architectures",
    "transformers_version",
    "_name_or_path",
    "model_type",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
}


def _body_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers configuration of the encoder, asking for its last four stages."""
    fields = dict(config.encoder_config)
    name = config.encoder
    try:
        if name in MIT_PRESETS:
            body = SegformerConfig(**{**MIT_PRESETS[name], **_NO_DROPOUT, **fields})
        elif "/" in name or Path(name).is_dir():
            body = _cached_or_hub(AutoConfig.from_pretrained, name, **fields)
        else:
            body = AutoConfig.for_model(name, **fields)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"model.encoder: cannot build {name!r} ({reason}); use {', '.join(MIT_PRESETS)}, a transformers hub name, "
            "a local folder, or a model type such as swin, convnext, dinov2"
        ) from error
    if hasattr(body, "drop_path_rate"):
        body.drop_path_rate = config.drop_path
    if not isinstance(body, SegformerConfig):
        if type(body) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ConfigError(f"model.encoder: {name!r} ({body.model_type}) yields no feature maps in transformers")
        body.out_indices = list(range(len(body.stage_names)))[-_STAGES:]
    return body


def _load(model: Any, config: PretrainedConfig, source: str) -> Any:
    """Random weights for ``none``, else weights of an NVlabs file, a folder or the hub."""
    if source == "none":
        try:
            return model(config)
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"model.encoder_config: no network can be built from it ({reason})") from error
    path = Path(source)
    if path.suffix in {".pth", ".pt", ".bin"}:
        if model is not SegformerModel:
            raise ConfigError(f"model.pretrained: {source} is an NVlabs file and needs an encoder mit-b0 .. mit-b5")
        return _from_state(config, nvlabs_to_transformers(read_foreign(path)), source)
    try:
        body, report = _cached_or_hub(model.from_pretrained, source, config=config, output_loading_info=True)
    except RuntimeError as error:
        raise CheckpointError(_OTHER_SIZE.format(source=source)) from error
    missing = sorted(report["missing_keys"])
    # Backbones may add norms of their own to a classifier's weights; SegFormer's encoder adds nothing.
    if len(missing) > (0 if model is SegformerModel else len(body.state_dict()) // 2):
        raise CheckpointError(
            f"{source}: does not fit the encoder, {missing[0]} is missing (and {len(missing) - 1} more); "
            "is model.encoder the right one?"
        )
    return body


def _cached_or_hub(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Load from a folder or the hub's local cache without network; only then ask the hub."""
    try:
        with _quiet():
            return load(name, local_files_only=True, **kwargs)
    except OSError as error:
        if not _hub_answers():
            raise CheckpointError(_no_weights(name)) from error
    try:
        with _quiet():
            return load(name, **kwargs)
    except OSError as error:
        raise CheckpointError(_no_weights(name)) from error


def _hub_answers() -> bool:
    """One quick try, because the hub's client goes on trying for a minute and a half."""
    if getproxies():
        return True  # a proxy decides
    address = urlsplit(ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _from_state(config: SegformerConfig, state: dict[str, Tensor], source: str) -> SegformerModel:
    try:
        with _quiet():
            body, report = SegformerModel.from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
    except RuntimeError as error:
        raise CheckpointError(_OTHER_SIZE.format(source=source)) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{source}: does not fit the encoder, {missing[0]} is missing (and {len(missing) - 1} more)"
        )
    return body


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and load report off the terminal; what matters is raised."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _no_weights(name: str) -> str:
    return (
        f"no weights for {name}: not a local folder, and the hub cannot be reached or does not have it; set "
        "model.pretrained to a transformers folder, an NVlabs .pth file, a hub name (with network), or none"
    )


def _reductions(config: PretrainedConfig, count: int) -> tuple[int, ...]:
    """Strides of a backbone's last ``count`` feature maps."""
    patch = int(config.patch_size)
    hierarchical = hasattr(config, "depths")
    return tuple(patch * 2**i if hierarchical else patch for i in range(count))


def _products(strides: Any) -> list[int]:
    result = [1]
    for stride in strides:
        result.append(result[-1] * stride)
    return result[1:]
