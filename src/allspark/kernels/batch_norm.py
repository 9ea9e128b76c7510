"""Batch norm over the images of all processes, and passes that its running statistics do not follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.runtime.collectives import all_reduce, world_size


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, on any device (torch's own needs a GPU).

    Takes the place of a ``BatchNorm2d``, whose tensors it keeps under the same names.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise with the statistics of all processes in training, with the running ones otherwise."""
        count = x.numel() // x.shape[1] * world_size()  # all processes have batches of one size
        if not self.training or count == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        wide = x if x.dtype == torch.float64 else x.float()  # sums of bfloat16 would lose most of their digits
        mean = all_reduce(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Let the batch norms of a network see the images of all processes."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.__class__ = SyncedBatchNorm
    return module


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Passes in training mode that normalise by their own batch, but leave no trace in the running statistics."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum
