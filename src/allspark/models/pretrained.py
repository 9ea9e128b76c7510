"""Encoders from transformers with weights: from a folder, the hub's cache, the hub, or a state."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub.constants import ENDPOINT
from torch import Tensor
from transformers import PretrainedConfig, SegformerConfig, SegformerModel
from transformers.utils import logging as transformers_logging

from allspark.errors import CheckpointError, ConfigError
from allspark.models.published import nvlabs_to_transformers, read_foreign

_OTHER_SIZE = "{source}: does not fit the encoder: its tensors have other sizes; is model.encoder the right one?"


WEIGHT_FILES = {".pth", ".pt", ".bin"}
"""Suffixes of files of tensors; other sources of weights are folders and names of the hub."""


def load_body(model: Any, config: PretrainedConfig, source: str) -> Any:
    """Random weights for ``none``, else weights of an NVlabs file, a folder or the hub."""
    if source == "none":
        try:
            return model(config)
        except (IndexError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"model.encoder_config: no network can be built from it ({reason})") from error
    path = Path(source)
    if path.suffix in WEIGHT_FILES:
        if model is not SegformerModel:
            raise ConfigError(f"model.pretrained: {source} is an NVlabs file and needs an encoder mit-b0 .. mit-b5")
        return body_from_state(config, nvlabs_to_transformers(read_foreign(path)), source)
    try:
        body, report = cached_or_hub(model.from_pretrained, source, config=config, output_loading_info=True)
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


def cached(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Load from a folder or the hub's local cache; OSError where it is in neither."""
    with _quiet():
        return load(name, local_files_only=True, **kwargs)


def cached_or_hub(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """Load from a folder or the hub's local cache without network; only then ask the hub."""
    try:
        return cached(load, name, **kwargs)
    except OSError as error:
        if not hub_answers():
            raise CheckpointError(_no_weights(name)) from error
    try:
        with _quiet():
            return load(name, **kwargs)
    except OSError as error:
        raise CheckpointError(_no_weights(name)) from error


def hub_answers() -> bool:
    """One quick try, because the hub's client goes on trying for a minute and a half."""
    if getproxies():
        return True  # a proxy decides
    address = urlsplit(ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def body_from_state(config: SegformerConfig, state: dict[str, Tensor], source: str) -> SegformerModel:
    """A SegFormer encoder with these weights, in transformers' names."""
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
