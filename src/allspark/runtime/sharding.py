"""Weights, gradients and momentum divided among processes (fully sharded data parallelism), if an encoder does not fit.

Every block of the encoder is put together when it is needed and taken apart again. What is written to checkpoints is
whole, so that a run may go on with or without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from allspark.runtime.collectives import world_size


def shard(modules: Iterable[nn.Module], device: torch.device, by_block: type[nn.Module]) -> None:
    """Divide the weights of modules among all processes, in place.

    Args:
        modules: none is part of another. Only what goes through a module's ``forward``, or one of a decoder's two
            parts, finds its weights whole.
        device: where they are.
        by_block: modules of this class are divided block by block, as their lists of modules hold them; others as one.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for module in modules:
        lists = module.modules() if isinstance(module, by_block) else ()
        for blocks in [part for part in lists if isinstance(part, nn.ModuleList)]:
            for block in blocks:
                if not any(isinstance(part, nn.ModuleList) for part in block.modules()):
                    fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        for part in ("hidden", "classify"):
            if hasattr(module, part):
                register_fsdp_forward_method(module, part)


def reshard(module: nn.Module) -> None:
    """Divide again what passes without gradient have put together, so that all parts of a module are as one another."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor, a divided one on the CPU; every process has to ask for it at the same time."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, divided as a parameter is."""
    tensor = tensor.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


@contextmanager
def unsharded(network: nn.Module) -> Iterator[None]:
    """Hold all weights in every process for a while: then each may predict as many images as it has."""
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    inner = {id(below) for part in parts for below in part.modules() if below is not part}
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(id(part) in inner, recurse=False)
            part.reshard()
