"""Weights, gradients and momentum divided among processes (fully sharded data parallelism), if an encoder does not fit.

Every block of the encoder is put together when it is needed and taken apart again. What is written to checkpoints is
whole, so that a run may go on with or without sharding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from allspark.models.segmenter import Segmenter
from allspark.runtime.collectives import world_size


def shard(segmenter: Segmenter, device: torch.device) -> None:
    """Divide a network's weights among all processes, in place; block by block in the encoder, the rest as one."""
    mesh = init_device_mesh(device.type, (world_size(),))
    lists = [module for module in segmenter.encoder.modules() if isinstance(module, nn.ModuleList)]
    for blocks in lists:
        for block in blocks:
            if not any(isinstance(part, nn.ModuleList) for part in block.modules()):
                fully_shard(block, mesh=mesh)
    fully_shard(segmenter, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, a divided one on the CPU; every process has to ask for it at the same time."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, divided as a parameter is."""
    tensor = tensor.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


@contextmanager
def put_together(segmenter: nn.Module) -> Iterator[None]:
    """Hold all weights in every process for a while: then each may predict as many images as it has."""
    parts = [module for module in segmenter.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not segmenter, recurse=False)
            part.reshard()
