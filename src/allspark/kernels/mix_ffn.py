"""A leaner feed-forward block for SegFormer's encoder: the same values, one hidden map of three kept for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import SegformerConfig

from allspark.kernels.matmul import linear, weight_gradient

_ATEN = torch.ops.aten


class _MixFFN(torch.autograd.Function):
    """gelu(depthwise(x)) Wᵀ + b, keeping x alone; backward computes the convolution and GELU again.

    x (n, h w, c), the tokens of a map of h x w; kernel (c, 1, 3, 3) -> (n, h w, c_out).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, kernel, shift, weight)
        ctx.grid = grid
        return linear(F.gelu(_depthwise(x, kernel, shift, grid)), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        # in mixed precision forward ran in the type of its result
        x, kernel, shift, weight = (tensor.to(grad_out.dtype) for tensor in saved)
        rows = grad_out.flatten(0, -2)
        convolved = _depthwise(x, kernel, shift, ctx.grid)
        grad_weight = weight_gradient(rows, F.gelu(convolved).flatten(0, -2))
        grad = linear(grad_out, weight.mT)
        grad = _ATEN.gelu_backward.grad_input(grad, convolved, grad_input=grad)
        del convolved
        channels = len(kernel)
        grad_map, grad_kernel, grad_shift = _ATEN.convolution_backward(
            _map(grad, ctx.grid), _map(x, ctx.grid), kernel, [channels],
            [1, 1], [1, 1], [1, 1], False, [0, 0], channels, [True] * 3,
        )  # fmt: skip
        grads = (_tokens(grad_map), grad_kernel, grad_shift, grad_weight)
        return *(g.to(t.dtype) for g, t in zip(grads, saved, strict=True)), rows.sum(0).to(weight.dtype), None


class MixFFN(nn.Module):
    """transformers' SegFormer block of the same parts: fc1, depthwise convolution, GELU, fc2.

    The last two layers are used by their weights alone: what is hooked to them is not called.
    """

    fc1: nn.Linear
    fc2: nn.Linear
    dwconv: nn.Module

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(n, height * width, c) -> the same shape."""
        depthwise, last = self.dwconv.dwconv, self.fc2
        assert isinstance(depthwise, nn.Conv2d)
        assert depthwise.bias is not None
        if torch.compiler.is_compiling():  # decides by itself what to keep
            hidden = _depthwise(self.fc1(tokens), depthwise.weight, depthwise.bias, (height, width))
            narrow: Tensor = last(F.gelu(hidden))
            return narrow
        out: Tensor = _MixFFN.apply(
            self.fc1(tokens), depthwise.weight, depthwise.bias, last.weight, last.bias, (height, width)
        )
        return out


def save_memory(body: nn.Module, config: SegformerConfig) -> None:
    """Let every Mix-FFN of transformers' SegFormer encoder keep less; names in checkpoints stay the same.

    At crop 513 its hidden maps are most of what the encoder keeps. Nothing is changed where another activation or
    dropout lies between.
    """
    if config.hidden_act != "gelu" or config.hidden_dropout_prob:
        return
    for block in body.modules():
        if all(hasattr(block, part) for part in ("fc1", "dwconv", "fc2")):
            block.__class__ = MixFFN


def _depthwise(tokens: Tensor, kernel: Tensor, shift: Tensor, grid: tuple[int, int]) -> Tensor:
    return _tokens(F.conv2d(_map(tokens, grid), kernel, shift, padding=1, groups=len(kernel)))


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, h w, c) -> (n, c, h, w), a view whose memory is channels-last."""
    return tokens.view(len(tokens), *grid, -1).permute(0, 3, 1, 2)


def _tokens(maps: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h w, c)."""
    return maps.flatten(2).mT
