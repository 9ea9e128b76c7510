"""The layouts of others: NVlabs' MiT files and the published AllSpark checkpoints, read without executing anything."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from allspark.errors import CheckpointError

# What torch's unpickler raises on bytes that are no checkpoint.
_DAMAGE = (
    *(RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError, struct.error),
    *(AssertionError, OverflowError, MemoryError),
)
_RENAMES = [
    (r"^patch_embed(\d)\.proj\.", r"encoder.patch_embeddings.{0}.proj."),
    (r"^patch_embed(\d)\.norm\.", r"encoder.patch_embeddings.{0}.layer_norm."),
    (r"^norm(\d)\.", r"encoder.layer_norm.{0}."),
    (r"^block(\d)\.(\d+)\.norm1\.", r"encoder.block.{0}.{1}.layer_norm_1."),
    (r"^block(\d)\.(\d+)\.norm2\.", r"encoder.block.{0}.{1}.layer_norm_2."),
    (r"^block(\d)\.(\d+)\.attn\.q\.", r"encoder.block.{0}.{1}.attention.self.query."),
    (r"^block(\d)\.(\d+)\.attn\.proj\.", r"encoder.block.{0}.{1}.attention.output.dense."),
    (r"^block(\d)\.(\d+)\.attn\.sr\.", r"encoder.block.{0}.{1}.attention.self.sr."),
    (r"^block(\d)\.(\d+)\.attn\.norm\.", r"encoder.block.{0}.{1}.attention.self.layer_norm."),
    (r"^block(\d)\.(\d+)\.mlp\.fc1\.", r"encoder.block.{0}.{1}.mlp.dense1."),
    (r"^block(\d)\.(\d+)\.mlp\.fc2\.", r"encoder.block.{0}.{1}.mlp.dense2."),
    (r"^block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", r"encoder.block.{0}.{1}.mlp.dwconv.dwconv."),
]
_KEY_VALUE = re.compile(r"^block(\d)\.(\d+)\.attn\.kv\.(weight|bias)$")


BOTTLENECK_NAMES = {
    "project_in.weight": "map_in.0.weight",
    "project_in.bias": "map_in.0.bias",
    "norm_in.weight": "attn_norm.weight",
    "norm_in.bias": "attn_norm.bias",
    "labeled.query.weight": "attn.q_l2u.weight",
    "labeled.key.weight": "attn.k_l2u.weight",
    "labeled.value.weight": "attn.v_l2u.weight",
    "labeled.out.weight": "attn.out_l2u.weight",
    "unlabeled.query.weight": "attn.q_u.weight",
    "unlabeled.key.weight": "attn.k_u.weight",
    "unlabeled.value.weight": "attn.v_u.weight",
    "unlabeled.out.weight": "attn.out_u.weight",
    "memory.channels": "attn.kv_queue",
    "memory.written": "attn.queue_ptr",
    "norm_out.weight": "encoder_norm.weight",
    "norm_out.bias": "encoder_norm.bias",
    "project_out.weight": "map_out.0.weight",
    "project_out.bias": "map_out.0.bias",
}
"""Tensors of :class:`allspark.models.allspark.AllSparkBottleneck`: our name -> the published one."""

HEAD_NAMES = {
    **{f"stages.{i}.{part}": f"linear_c{i + 1}.proj.{part}" for i in range(4) for part in ("weight", "bias")},
    "fuse.weight": "linear_fuse.conv.weight",
    **{
        f"norm.{part}": f"linear_fuse.bn.{part}"
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
    "classifier.weight": "linear_pred.weight",
    "classifier.bias": "linear_pred.bias",
}
"""Tensors of :class:`allspark.models.decoders.SegformerHead`: our name -> the published one."""


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Read a .pth file's tensors, and nothing but tensors (``weights_only``).

    Wrappers that published files use (``{"model": ...}``, ``{"state_dict": ...}``, names that begin with
    ``module.``) are taken off.

    Raises:
        CheckpointError: no such file, or it holds anything that would have to be executed, or no tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on pickle protocols; what matters is raised
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors or is no torch checkpoint") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: a folder; give the .pth file") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged, or not a torch checkpoint ({type(error).__name__})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name).removeprefix("module."): x for name, x in content.items() if isinstance(x, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return tensors


def from_published(state: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """Tensors under our names.

    Args:
        state: tensors under their published names.
        names: ours -> theirs.
        what: what they are, for the message.

    Raises:
        CheckpointError: a tensor is missing.
    """
    try:
        return {ours: state[theirs] for ours, theirs in names.items()}
    except KeyError as error:
        raise CheckpointError(f"not a published {what}: tensor {error} is missing") from error


def nvlabs_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename MiT weights from NVlabs' layout to that of transformers' files; ``head.*`` is left out."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _KEY_VALUE.match(name):
            stage, block, part = int(match[1]) - 1, match[2], match[3]
            for role, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                renamed[f"encoder.block.{stage}.{block}.attention.self.{role}.{part}"] = half.contiguous()
            continue
        for pattern, target in _RENAMES:
            if match := re.match(pattern, name):
                numbers = match.groups()
                renamed[target.format(int(numbers[0]) - 1, *numbers[1:]) + name[match.end() :]] = tensor
                break
    if not renamed:
        raise CheckpointError("not an NVlabs MiT layout: no tensor is named patch_embed1.*, block1.* or norm1.*")
    return renamed


def mit_sizes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Fields of a SegformerConfig, read off the shapes of NVlabs' layout (heads are always 1, 2, 5, 8)."""
    try:
        widths = [state[f"patch_embed{i}.proj.weight"].shape[0] for i in range(1, 5)]
        ratios = [state[f"block{i}.0.mlp.fc1.weight"].shape[0] // widths[i - 1] for i in range(1, 5)]
    except KeyError as error:
        raise CheckpointError(f"not an NVlabs MiT layout: tensor {error} is missing") from error
    depths, reductions = [], []
    for i in range(1, 5):
        depths.append(1 + max(int(m[1]) for name in state if (m := re.match(rf"block{i}\.(\d+)\.", name))))
        kernel = state.get(f"block{i}.0.attn.sr.weight")
        reductions.append(1 if kernel is None else kernel.shape[-1])
    return {
        "hidden_sizes": widths,
        "depths": depths,
        "sr_ratios": reductions,
        "mlp_ratios": ratios,
        "num_attention_heads": [1, 2, 5, 8],
    }
