"""Losses as pure functions. Each returns a :class:`allspark.batch.Term`: numerator and denominator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from allspark.batch import IGNORE, Term
from allspark.config.methods import MethodConfig
from allspark.kernels.logits import Logits
from allspark.runtime.collectives import all_gather, all_reduce, world_size

Loss = Callable[[Logits, Tensor], Term]
"""Logits and target (b, H, W), class ids or IGNORE -> a term."""


def labeled_loss(settings: MethodConfig) -> Loss:
    """The loss of labelled images that a method's settings name, with that of the auxiliary head where there is one."""
    loss: Loss = cross_entropy
    if settings.labeled_loss == "ohem":
        loss = partial(ohem_cross_entropy, threshold=settings.ohem_threshold, min_kept=settings.ohem_min_kept)
    return partial(_with_auxiliary, loss)


def _with_auxiliary(loss: Loss, logits: Logits, target: Int[Tensor, "b H W"]) -> Term:
    """One term for both heads: the mean of the first, and ``weight`` times that of the second.

    Hard pixels are others for each head, and so many others; over all processes each is a mean over its own.
    """
    term = loss(logits, target)
    if logits.auxiliary is None:
        return term
    other = loss(logits.of_auxiliary(), target)
    own, beside = all_reduce(torch.stack([term.count, other.count]).double())
    share = (own / beside.clamp(min=1)).to(other.total.dtype)
    return replace(term, total=term.total + logits.auxiliary.weight * share * other.total)


def cross_entropy(logits: Logits, target: Int[Tensor, "b H W"]) -> Term:
    """Cross-entropy, a mean over the pixels that are not ignored.

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.
    """
    return Term(logits.losses(target).sum(), (target != IGNORE).sum())


def masked_cross_entropy(
    logits: Logits, target: Int[Tensor, "b H W"], keep: Bool[Tensor, "b H W"], over: Bool[Tensor, "b H W"] | None
) -> Term:
    """Cross-entropy of the pixels that are kept, as a mean over more than those.

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.
        keep: (b, H, W), pixels whose loss counts.
        over: (b, H, W), pixels that it is divided by; those outside do not count either. None: all of them.
    """
    if over is not None:
        keep = keep & over
    total = logits.losses(target).where(keep, 0).sum()
    return Term(total, keep.new_tensor(keep.numel(), dtype=torch.int64) if over is None else over.sum())


def weighted_cross_entropy(
    logits: Logits,
    target: Int[Tensor, "b H W"],
    confidence: Float[Tensor, "b H W"],
    keep: Bool[Tensor, "b H W"],
    over: Bool[Tensor, "b H W"],
) -> Term:
    """Cross-entropy of the pixels that are kept, weighted by 1 + confidence; the others have weight 1 in the mean.

    Args:
        logits: of b images.
        target: class ids and IGNORE, which costs nothing.
        confidence: of the target.
        keep: pixels whose loss counts.
        over: pixels that it is divided by; those outside do not count either.
    """
    total = ((1 + confidence) * logits.losses(target)).where(keep & over, 0).sum()
    return Term(total, (1 + confidence.where(keep, 0)).where(over, 0).sum())


Trust = Literal["pixel", "share", "confidence"]


def trusted_cross_entropy(
    logits: Logits,
    target: Int[Tensor, "b H W"],
    trust: Shaped[Tensor, "b H W"],
    valid: Bool[Tensor, "b H W"],
    by: Trust,
    as_code: bool = False,
) -> Term:
    """Cross-entropy as far as labels are trusted, a mean over all but padding (SemiVL, Hoyer et al., ECCV 2024).

    Args:
        logits: of b images.
        target: (b, H, W), class ids.
        trust: (b, H, W), which labels count (pixel, share), or the probability of each (confidence).
        valid: False where a crop was padded; these pixels do not count.
        by: ``pixel``, the labels that count; ``share`` and ``confidence``, all labels of an image, by the mean of its
            trust.
        as_code: published weights of images count padding in the total, and ``confidence`` is the sum over the images,
            of the loss of all of them: it grows with the batch, and does not add up over micro-batches.
    """
    if by == "pixel":
        return masked_cross_entropy(logits, target, trust, valid)
    losses = logits.losses(target)
    mean = (trust * valid).sum((1, 2), dtype=losses.dtype) / valid.sum((1, 2)).clamp(min=1)  # (b,)
    each = (losses if as_code else losses.where(valid, 0)).sum((1, 2))
    total = each.sum() * mean.sum() if as_code and by == "confidence" else (each * mean).sum()
    return Term(total, valid.sum())


def reliable_cross_entropy(
    logits: Logits, target: Int[Tensor, "b H W"], keep: Bool[Tensor, "b H W"], over: Bool[Tensor, "b H W"]
) -> Term:
    """Cross-entropy, a mean over the pixels that are kept, times all pixels by those (U2PL, Wang et al., CVPR 2022).

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.
        keep: pixels that count, of those of ``over`` that have a class.
        over: pixels that are all.
    """
    keep = keep & over & (target != IGNORE)
    everything = over.sum()
    counts = all_reduce(torch.stack([everything, keep.sum()]).double())
    factor = (counts[0] / counts[1].clamp(min=1)).square()
    total = logits.losses(target).where(keep, 0).sum()
    return Term(total * factor.to(total.dtype), everything)


Distance = Literal["squared", "logits", "kl", "cross-entropy"]

_TINY = 1e-6  # keeps binary cross-entropies finite, as published


def distance(logits: Logits, target: Float[Tensor, "b k H W"], kind: Distance) -> Float[Tensor, "b H W"]:
    """How far class probabilities are from soft labels, in every pixel (French et al., BMVC 2020).

    Args:
        logits: of b images, with gradient.
        target: logits of the soft labels, without.
        kind: ``squared``, the squared distance of the probabilities; ``logits``, that of the logits by sqrt(k); ``kl``,
            the Kullback-Leibler divergence from the labels; ``cross-entropy``, the binary ones of all classes, added.
    """
    own = logits.full().to(target.dtype)
    if kind == "logits":
        return (own - target).square().sum(1) / math.sqrt(target.shape[1])
    if kind == "kl":
        log_own, log_target = own.log_softmax(1), target.log_softmax(1)
        return (log_target.exp() * (log_target - log_own)).sum(1)
    own, target = own.softmax(1), target.softmax(1)
    if kind == "squared":
        return (own - target).square().sum(1)
    return -(target * (own + _TINY).log() + (1 - target) * (1 - own + _TINY).log()).sum(1)


def ohem_cross_entropy(logits: Logits, target: Int[Tensor, "b H W"], *, threshold: float, min_kept: int) -> Term:
    """Cross-entropy over the hard pixels (online hard example mining, Shrivastava et al., CVPR 2016).

    Hard are pixels whose own class has a probability of at most ``threshold``. At least the ``min_kept`` hardest pixels
    of the micro-batch, of all processes together, count (more where some are equally hard; all where there are fewer).

    Args:
        logits: of b images.
        target: (b, H, W), class ids or IGNORE.
        threshold: probability up to which a pixel is hard, 0 to 1.
        min_kept: pixels that count at least.

    Returns:
        A mean over the pixels that count.
    """
    losses = logits.losses(target)  # (b, H, W), -log probability
    valid = target != IGNORE
    with torch.no_grad():
        probability = torch.exp(-losses.detach()).masked_fill(~valid, 1).flatten()
        hardest = _smallest(probability, min_kept) if min_kept else probability.new_zeros(())
        kept = valid & (probability.view_as(valid) <= hardest.clamp(min=threshold))
    return Term(losses.where(kept, 0).sum(), kept.sum())


def _smallest(values: Float[Tensor, " n"], place: int) -> Float[Tensor, ""]:
    """The ``place``-th smallest value of all processes, the largest where there are no more.

    The published code sorts all values; only one place of that order is needed, and nothing is read back. The place-th
    smallest of all is among the ``place`` smallest of each process; all processes have equally many values.
    """
    if world_size() > 1:
        own = values.topk(min(place, len(values)), largest=False, sorted=False).values
        values = all_gather(own)
    return values.kthvalue(min(place, len(values))).values
