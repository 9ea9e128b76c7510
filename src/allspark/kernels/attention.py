"""Channel attention as an exact kernel: softmax(InstanceNorm(q kᵀ)) v without ever holding the score map.

Two identities make it cheap. The softmax over keys does not see a constant shift, so instance norm followed by
softmax is softmax(s / sigma), with sigma² = var(s) + eps over the whole map. And var(s) needs no map: with the means
q̄, k̄ over channels and the n x n covariances C_q, C_k over channels,

    var(s) = q̄ C_k q̄ᵀ + k̄ C_q k̄ᵀ + <C_q, C_k>.

What is left is plain dot-product attention of q / sigma with scale 1, over channels instead of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from allspark.kernels.matmul import add_product, product

_EPS = 1e-5  # of the published instance norm
_ROWS, _COLUMNS = 1024, 512  # scores that are held at a time on the CPU: they stay in its cache (see benchmarks/)


def channel_attention(
    query: Float[Tensor, "g r n"], key: Float[Tensor, "#g s n"], value: Float[Tensor, "#g s n"], dropout: float = 0.0
) -> Float[Tensor, "g r n"]:
    """Attend from query channels to key channels; the scores are dot products over tokens.

    Args:
        query: (g, r, n), r query channels of g groups (an image, or a head of an image).
        key: (g, s, n), or (1, s, n) where all groups share their keys.
        value: like ``key``.
        dropout: probability of dropping an attention weight (0 in inference).

    Returns:
        (g, r, n): softmax(InstanceNorm(query keyᵀ)) value, the norm over the r x s map of each group.
    """
    if query.shape[0] == 0:
        return query
    rows = query / _score_std(query, key).to(query.dtype)
    if key.shape[0] == 1:  # shared keys: the images stand side by side on the query axis
        rows = rows.reshape(1, -1, query.shape[2])
    attend: Callable[..., Tensor] = _fused if query.is_cuda else _tiled
    return attend(rows, key, value, dropout).reshape(query.shape)


def _score_std(query: Tensor, key: Tensor) -> Tensor:
    """Standard deviation of each group's score map, (g, 1, 1), in float32 or better."""
    with torch.autocast(query.device.type, enabled=False):
        query = query if query.dtype == torch.float64 else query.float()
        q_mean, q_cov = _moments(query)
        k_mean, k_cov = _moments(key.to(query.dtype))
        variance = (
            (q_mean @ k_cov @ q_mean.mT) + (k_mean @ q_cov @ k_mean.mT) + (q_cov * k_cov).sum((1, 2), keepdim=True)
        )
        return (variance.clamp(min=0) + _EPS).sqrt()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (g, 1, n) and covariance (g, n, n) over the channels of (g, c, n)."""
    mean = x.mean(1, keepdim=True)
    return mean, x.mT @ x / x.shape[1] - mean.mT @ mean


def _fused(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Torch's GPU kernels; zero padding of the token axis to a multiple of 8 is exact."""
    tokens = query.shape[-1]
    q, k, v = (F.pad(x.to(query.dtype), (0, -tokens % 8)).unsqueeze(1) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=1.0)
    return out.squeeze(1)[..., :tokens]


def _tiled(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The CPU's kernel, in float32 or better."""
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Tiled.apply(query.to(wide), key.to(wide), value.to(wide), dropout)
    return out.to(query.dtype)


class _Tiled(torch.autograd.Function):
    """Exact attention in tiles of scores, with an online softmax; backward computes every tile again.

    query (g, r, n), key and value (g, s, n) -> (g, r, n).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        out = torch.zeros_like(query)
        log_sum = query.new_empty(*query.shape[:2], 1)
        # One draw from torch's stream: forward and backward drop the same, and a resumed run drops it again.
        keep = _KeepMask(dropout, int(torch.randint(2**62, ())) if dropout else 0)
        scores_buffer, mask_buffer = (query.new_empty(_ROWS * _COLUMNS) for _ in range(2))
        for g, rows in _row_blocks(query):
            q, o = query[g, rows], out[g, rows]
            top = q.new_full((len(q), 1), -torch.inf)
            total = q.new_zeros(len(q), 1)
            for columns in _slices(key.shape[1], _COLUMNS):
                k = key[g, columns]
                scores, mask = (x[: len(q) * len(k)].view(len(q), len(k)) for x in (scores_buffer, mask_buffer))
                scores = product(q, k, scores)
                new_top = torch.maximum(top, scores.amax(1, keepdim=True))
                weights = scores.sub_(new_top).exp_()
                shrink = (top - new_top).exp_()
                top = new_top
                total.mul_(shrink).add_(weights.sum(1, keepdim=True))
                if dropout:
                    weights.mul_(keep.draw(mask))
                add_product(o.mul_(shrink), weights, value[g, columns].mT)
            log_sum[g, rows] = top + total.log()
            o.div_(total * keep.share)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.dropout, ctx.seed = dropout, keep.seed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, log_sum = ctx.saved_tensors
        keep = _KeepMask(ctx.dropout, ctx.seed)
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        delta = (grad_out * out).sum(2, keepdim=True)  # (g, r, 1), the softmax's own correction
        grad_out = grad_out / keep.share
        buffers = [query.new_empty(_ROWS * _COLUMNS) for _ in range(3)]
        for g, rows in _row_blocks(query):
            q, grad_o = query[g, rows], grad_out[g, rows]
            for columns in _slices(key.shape[1], _COLUMNS):
                k, v = key[g, columns], value[g, columns]
                weights, grad, mask = (x[: len(q) * len(k)].view(len(q), len(k)) for x in buffers)
                weights = product(q, k, weights)
                weights.sub_(log_sum[g, rows]).exp_()
                grad = product(grad_o, v, grad)
                if ctx.dropout:
                    grad.mul_(keep.draw(mask))
                grad.sub_(delta[g, rows]).mul_(weights)  # of the scores
                if ctx.dropout:
                    weights.mul_(mask)
                add_product(grad_value[g, columns], weights.mT, grad_o.mT)
                add_product(grad_query[g, rows], grad, k.mT)
                add_product(grad_key[g, columns], grad.mT, q.mT)
        return grad_query, grad_key, grad_value, None


class _KeepMask:
    """Dropout masks of one pass, 0 or 1, from a stream of its own.

    Sixteen bits decide one weight: nine times faster than torch's generator on a CPU, and the probability is exact to
    2^-17.
    """

    def __init__(self, dropout: float, seed: int) -> None:
        self.seed = seed
        self._dropped = round(dropout * 65536)
        self._bits = np.random.SFC64(seed)
        self.share = 1 - self._dropped / 65536

    def draw(self, out: Tensor) -> Tensor:
        """Fill a contiguous tensor with the next mask."""
        raw = self._bits.random_raw(-(-out.numel() // 4)).view(np.int16)
        return out.view(-1).copy_(torch.from_numpy(raw)[: out.numel()]).ge_(self._dropped - 32768).view_as(out)


def _row_blocks(query: Tensor) -> Iterator[tuple[int, slice]]:
    for group in range(query.shape[0]):
        for rows in _slices(query.shape[1], _ROWS):
            yield group, rows


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
