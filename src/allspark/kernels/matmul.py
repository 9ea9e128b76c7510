"""Matrix products at the full width of the CPU's vector units.

Torch multiplies float32 matrices with Intel's MKL, which on AMD processors runs its code for vectors of half their
width. oneDNN, which torch brings along for convolutions, asks the processor itself and is about twice as fast there.
The arithmetic is the same, float32 throughout; only the order of the sums differs.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL on this machine."""
    info = Path("/proc/cpuinfo")
    processor = info.read_text() if info.exists() else platform.processor()
    libraries = (torch.backends.mkl, torch.backends.mkldnn)
    return "AuthenticAMD" in processor and all(library.is_available() for library in libraries)


def product(a: Tensor, b: Tensor, buffer: Tensor | None = None) -> Tensor:
    """``a @ b.mT`` of (m, k) and (n, k) -> (m, n), without gradient. Either may be a transposed view.

    ``buffer`` (m, n) may or may not be what is filled and returned.
    """
    if not _suits(a, b):
        return torch.mm(a, b.mT, out=buffer)
    return _onednn(a, b, None)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")
    return out


def _dense(x: Tensor) -> Tensor:
    """Without gaps between its rows or columns, with which oneDNN can be a thousand times as slow."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


def add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add ``a @ b.mT`` to ``out`` in place; shapes as in :func:`product`."""
    return out.add_(product(a, b)) if _suits(a, b) else out.addmm_(a, b.mT)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.mT + bias`` of (..., c_in), (c_out, c_in) and (c_out,) -> (..., c_out), without gradient."""
    if not _suits(x, weight):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias)


def weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """``grad_out.mT @ x`` of (m, c_out) and (m, c_in) -> (c_out, c_in)."""
    if grad_out.shape[1] > x.shape[1]:  # a result of few long rows is faster
        return product(x.mT, grad_out.mT).mT
    return product(grad_out.mT, x.mT)


def mix_channels(weight: Tensor, x: Tensor) -> Tensor:
    """``weight @ x`` for every matrix of a batch: (c_out, c_in) and (b, c_in, n) -> (b, c_out, n), with gradient."""
    if x.device.type == "cpu" and x.dtype == torch.float32:  # oneDNN computes convolutions on every CPU
        return F.conv1d(x, weight[:, :, None])
    if torch.is_autocast_enabled(x.device.type):  # once, not for each of the b
        weight = weight.to(torch.get_autocast_dtype(x.device.type))
    # Not `weight @ x`, which would copy the weight b times.
    return torch.bmm(weight.expand(len(x), -1, -1), x)


class Linear(nn.Linear):
    """A linear layer by the faster of both libraries. Its parameters are those of the plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., c_in) -> (..., c_out)."""
        if not _suits(x, self.weight):
            return super().forward(x)
        out: Tensor = _Linear.apply(x, self.weight, self.bias)
        return out


def use_faster_products(module: nn.Module) -> None:
    """Let all plain linear layers below a module choose the faster library; names in checkpoints stay the same."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and not torch.compiler.is_compiling()  # its own products are not to be mixed with oneDNN's unpacked ones
        and onednn_is_faster()
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad_out.flatten(0, -2)
        grads: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = linear(grad_out, weight.mT)
        if ctx.needs_input_grad[1]:
            grads[1] = weight_gradient(rows, x.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            grads[2] = rows.sum(0)
        return grads[0], grads[1], grads[2]
