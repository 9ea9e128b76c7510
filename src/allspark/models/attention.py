"""Channel attention as an exact kernel: softmax(InstanceNorm(qᵀ k)) vᵀ without ever holding the score map.

Two identities make it cheap. The softmax over keys does not see a constant shift, so instance norm followed by
softmax is softmax(s / sigma), with sigma² = var(s) + eps over the whole map. And var(s) needs no map: with the
means q̄, k̄ of the channels and their n x n covariances C_q, C_k over channels,

    var(s) = q̄ᵀ C_k q̄ + k̄ᵀ C_q k̄ + <C_q, C_k>,

a sum of three terms that are never negative, so nothing cancels. What is left is plain dot-product attention of
q / sigma with scale 1, over channels instead of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5  # of the published instance norm
_BLOCK = 128  # query channels whose scores are held at a time on the CPU; measured in benchmarks/


def channel_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Attend from query channels to key channels; the scores are dot products over tokens.

    Args:
        query: (g, n, r), r query channels of g groups (an image, or a head of an image).
        key: (g, n, s), or (1, n, s) where all groups share their keys.
        value: like ``key``.
        dropout: probability of dropping an attention weight (0 in inference).

    Returns:
        (g, n, r): softmax(InstanceNorm(queryᵀ key)) valueᵀ, the norm over the r x s map of each group.
    """
    groups, _, channels = query.shape
    if groups == 0:
        return query
    sigma = _score_std(query, key)  # (g, 1, 1)
    rows = (query / sigma.to(query.dtype)).transpose(1, 2)  # (g, r, n)
    if key.shape[0] == 1:  # shared keys: the images stand side by side on the query axis
        rows = rows.reshape(1, groups * channels, -1)
    attend: Callable[..., Tensor] = _fused if query.is_cuda else _Blockwise.apply
    out = attend(rows, key, value, dropout)
    return out.reshape(groups, channels, -1).transpose(1, 2)


def _score_std(query: Tensor, key: Tensor) -> Tensor:
    """Standard deviation of each group's score map, (g, 1, 1), in float32 or better."""
    with torch.autocast(query.device.type, enabled=False):
        query = query if query.dtype == torch.float64 else query.float()
        key = key.to(query.dtype)
        q_mean, q_cov = _moments(query)
        k_mean, k_cov = _moments(key)
        variance = (
            (q_mean.mT @ k_cov @ q_mean) + (k_mean.mT @ q_cov @ k_mean) + (q_cov * k_cov).sum((1, 2), keepdim=True)
        )
        return (variance + _EPS).sqrt()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (g, n, 1) and covariance (g, n, n) over the channels of (g, n, c)."""
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    return mean, centred @ centred.mT / x.shape[2]


def _fused(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Torch's memory-efficient kernels; zero padding of the token axis to a multiple of 8 is exact."""
    tokens = query.shape[-1]
    pad = -tokens % 8
    q, k, v = (F.pad(x, (0, pad)).unsqueeze(1) for x in (query, key.mT, value.mT))
    out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), dropout_p=dropout, scale=1.0)
    return out.squeeze(1)[..., :tokens]


class _Blockwise(torch.autograd.Function):
    """Exact attention in blocks of query rows; backward computes each block's map again from its log-sum-exp.

    query (g, r, n), key and value (g, n, s) -> (g, r, n).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        key, value = key.to(query.dtype), value.to(query.dtype)
        out = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:2])
        # One draw from the global stream: the masks of forward and backward are equal, and a resumed run repeats them.
        seed = int(torch.randint(2**62, (), dtype=torch.int64)) if dropout else 0
        for group, start, stop in _blocks(query):
            scores = query[group, start:stop] @ key[group]
            log_sum[group, start:stop] = scores.logsumexp(1)
            scores.sub_(log_sum[group, start:stop, None]).exp_()
            if dropout:
                scores.mul_(_keep(scores, dropout, seed, group, start))
            torch.mm(scores, value[group].mT, out=out[group, start:stop])
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, log_sum = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        delta = (grad_out * out).sum(2, keepdim=True)  # (g, r, 1): the softmax's own correction
        for group, start, stop in _blocks(query):
            rows, grad_rows = query[group, start:stop], grad_out[group, start:stop].contiguous()
            weights = (rows @ key[group]).sub_(log_sum[group, start:stop, None]).exp_()
            grad_weights = grad_rows @ value[group]
            if ctx.dropout:
                keep = _keep(weights, ctx.dropout, ctx.seed, group, start)
                grad_value[group].addmm_(grad_rows.mT, weights * keep)
                grad_weights.mul_(keep)
            else:
                grad_value[group].addmm_(grad_rows.mT, weights)
            grad_scores = grad_weights.sub_(delta[group, start:stop]).mul_(weights)
            torch.mm(grad_scores, key[group].mT, out=grad_query[group, start:stop])
            grad_key[group].addmm_(rows.mT, grad_scores)
        return grad_query, grad_key, grad_value, None


def _blocks(query: Tensor) -> list[tuple[int, int, int]]:
    groups, rows, _ = query.shape
    return [(g, start, min(start + _BLOCK, rows)) for g in range(groups) for start in range(0, rows, _BLOCK)]


def _keep(like: Tensor, dropout: float, seed: int, group: int, start: int) -> Tensor:
    """Dropout mask of one block, scaled: a function of the seed and the block alone."""
    generator = torch.Generator(like.device).manual_seed(seed + group * 1_000_003 + start)
    return torch.empty_like(like).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
