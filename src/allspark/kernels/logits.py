"""Logits of every pixel, without holding more than a part of them.

The decoder's logits have a quarter of the image's height and width, and what they are enlarged to is the largest tensor
of a network with many classes: 3 GB for eight crops of 801 pixels and 150 classes, of which a loss needs several. Here
labels, losses and probabilities are computed in bands of rows that fit into the cache. Bilinear interpolation is linear
in each axis, so a band is rows @ coarse @ columns with two sparse matrices, and its gradient the same with both
transposed. The second product, a quarter of the full logits of one image or of a few small ones, is held meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from allspark.batch import IGNORE
from allspark.kernels.matmul import linear

Size = tuple[int, int]

_BAND = {"cpu": 2**20, "cuda": 2**28}  # bytes of one band: the cache of a CPU's core, few calls on a GPU

_TINY = 1e-10  # keeps the logarithm of nothing finite; so small as in the published codes (U2PL, AugSeg)


@dataclass(frozen=True)
class Auxiliary:
    """What an auxiliary head has to say of the same images, once it is asked.

    Attributes:
        feature: (b, c, h, w), what the head reads.
        head: makes logits (b, k, h, w) of it.
        weight: of the head's loss, relative to that of the logits beside it.
    """

    feature: Float[Tensor, "b c h w"]
    head: Callable[[Tensor], Tensor]
    weight: float

    def split(self, images: Sequence[int]) -> list[Auxiliary]:
        """As :meth:`Logits.split`."""
        return [replace(self, feature=part) for part in self.feature.split(list(images))]


@dataclass(frozen=True)
class Logits:
    """A decoder's logits and the image size that they are meant for.

    Attributes:
        coarse: (b, k, h, w), as the decoder gives them.
        padded: (H', W'), what they are enlarged to, bilinear; the encoder may have padded the image.
        size: (H, W) of the image, the upper left part of that.
        aligned: enlarged so that the middles of corner cells fall on those of corner pixels (``align_corners``).
        auxiliary: in training, for the loss of labelled images; None: there is no such head.
    """

    coarse: Float[Tensor, "b k h w"]
    padded: Size
    size: Size
    aligned: bool = False
    auxiliary: Auxiliary | None = None

    def split(self, images: Sequence[int]) -> list[Logits]:
        """Those of the first ``images[0]`` images, of the next ``images[1]``, and so on."""
        beside = [None] * len(images) if self.auxiliary is None else self.auxiliary.split(images)
        parts = zip(self.coarse.split(list(images)), beside, strict=True)
        return [replace(self, coarse=part, auxiliary=other) for part, other in parts]

    def of_auxiliary(self) -> Logits:
        """The logits of the auxiliary head, which there must be."""
        assert self.auxiliary is not None
        coarse = self.auxiliary.head(self.auxiliary.feature)
        return Logits(coarse, self.padded, self.size)

    def full(self) -> Float[Tensor, "b k H W"]:
        """The logits of every pixel."""
        enlarged = F.interpolate(self.coarse, self.padded, mode="bilinear", align_corners=self.aligned)
        return enlarged[:, :, : self.size[0], : self.size[1]]

    def at(self, grid: Size) -> Float[Tensor, "b k _ _"]:
        """What ``full()`` would be, resampled to a grid, bilinear."""
        rows, columns = (_resampled(self._axis(i), grid[i]) for i in (0, 1))
        with _exactly(self.coarse):
            return rows @ self.coarse.to(rows.dtype) @ columns.mT

    @torch.no_grad()
    def labels(self) -> Int[Tensor, "b H W"]:
        """The best class of every pixel."""
        out = self.coarse.new_empty(len(self.coarse), *self.size, dtype=torch.int64)
        for images, rows, band in self.bands():
            out[images, rows] = band.max(1).indices  # three times as fast as argmax on a CPU
        return out

    @torch.no_grad()
    def best(self) -> tuple[Float[Tensor, "b H W"], Int[Tensor, "b H W"]]:
        """Probability and id of the best class of every pixel."""
        labels = self.coarse.new_empty(len(self.coarse), *self.size, dtype=torch.int64)
        probability = torch.empty_like(labels, dtype=_wide(self.coarse))
        for images, rows, band in self.bands():
            top, labels[images, rows] = band.max(1)
            probability[images, rows] = (top - band.logsumexp(1)).exp_()
        return probability, labels

    @torch.no_grad()
    def probabilities(self) -> Float[Tensor, "b k H W"]:
        """Class probabilities of every pixel."""
        out = self.coarse.new_empty(*self.coarse.shape[:2], *self.size, dtype=_wide(self.coarse))
        for images, rows, band in self.bands():
            out[images, :, rows] = band.softmax(1)
        return out

    @torch.no_grad()
    def entropy(self) -> Float[Tensor, "b H W"]:
        """Entropy of every pixel's class probabilities [nats], in float32 or better."""
        out = self.coarse.new_empty(len(self.coarse), *self.size, dtype=_wide(self.coarse))
        for images, rows, band in self.bands():
            probability = band.softmax(1)
            out[images, rows] = -(probability * (probability + _TINY).log()).sum(1)
        return out

    def losses(self, target: Int[Tensor, "b H W"]) -> Float[Tensor, "b H W"]:
        """Cross-entropy of every pixel, in float32 or better; 0 where the target is IGNORE."""
        out: Tensor = _PixelLosses.apply(self.coarse, target, self._axis(0), self._axis(1), self._ratio)
        return out

    def bands(self) -> Iterator[tuple[slice, slice, Float[Tensor, "_ k _ W"]]]:
        """All logits, a few rows at a time: which images, which rows, and the logits there, in float32 or better."""
        for images, rows, _, band in _bands(self.coarse, self._axis(0), self._axis(1), self._ratio):
            yield images, rows, band

    def _axis(self, axis: int) -> Tensor:
        """(H, h) or (W, w), the weights of each coarse row or column in those of the image."""
        eye = torch.eye(self.coarse.shape[2 + axis], dtype=_wide(self.coarse), device=self.coarse.device)
        return _resampled(eye, self.padded[axis], self.aligned)[: self.size[axis]]

    @property
    def _ratio(self) -> float:
        height, padded = self.coarse.shape[2], self.padded[0]
        return (height - 1) / max(1, padded - 1) if self.aligned else height / padded


class _PixelLosses(torch.autograd.Function):
    """Coarse logits (b, k, h, w), target (b, H, W), (H, h), (W, w) -> losses (b, H, W); keeps two numbers a pixel."""

    @staticmethod
    def forward(ctx: Any, coarse: Tensor, target: Tensor, rows: Tensor, columns: Tensor, ratio: float) -> Tensor:
        log_sum = rows.new_empty(target.shape)
        losses = torch.empty_like(log_sum)
        for images, part, _, band in _bands(coarse, rows, columns, ratio):
            wanted = target[images, part]
            ignored = wanted == IGNORE
            own = band.gather(1, wanted.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
            log_sum[images, part] = band.logsumexp(1)
            losses[images, part] = (log_sum[images, part] - own).masked_fill_(ignored, 0)
        ctx.save_for_backward(coarse, target, rows, columns, log_sum)
        ctx.ratio = ratio
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, None, None, None, None]:
        coarse, target, rows, columns, log_sum = ctx.saved_tensors
        grad_coarse = torch.zeros_like(coarse, dtype=rows.dtype)
        for images, part, used, band in _bands(coarse, rows, columns, ctx.ratio):
            wanted = target[images, part].unsqueeze(1)
            ignored = wanted == IGNORE
            weight = grad_losses[images, part].unsqueeze(1).masked_fill(ignored, 0)
            grad = band.sub_(log_sum[images, part].unsqueeze(1)).exp_().mul_(weight)
            grad.scatter_add_(1, wanted.masked_fill(ignored, 0), -weight)
            with _exactly(coarse):
                grad_coarse[images, :, used] += rows[part, used].mT @ linear(grad, columns.mT)
        return grad_coarse.to(coarse.dtype), None, None, None, None


def _bands(coarse: Tensor, rows: Tensor, columns: Tensor, ratio: float) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Go through all pixels: images, their rows, the coarse rows that count there, and the logits (b', k, R, W)."""
    height, width = len(rows), len(columns)
    line = coarse.shape[1] * width * rows.element_size()
    budget = _BAND.get(coarse.device.type, _BAND["cuda"])
    at_once = max(1, budget // (line * height))
    step = max(1, budget // (line * at_once))
    for first in range(0, len(coarse), at_once):
        images = slice(first, min(first + at_once, len(coarse)))
        with _exactly(coarse):
            wide = linear(coarse[images].to(columns.dtype), columns)  # (b', k, h, W)
        for top in range(0, height, step):
            part = slice(top, min(top + step, height))
            # One coarse row around each, and one for rounding.
            used = slice(max(0, int(top * ratio) - 2), min(coarse.shape[2], int(part.stop * ratio) + 3))
            with _exactly(coarse):
                band = rows[part, used] @ wide[:, :, used]
            yield images, part, used, band


def _resampled(weights: Tensor, length: int, aligned: bool = False) -> Tensor:
    """Resample the first axis, (n, m) -> (length, m), linear."""
    return F.interpolate(weights.mT[None], length, mode="linear", align_corners=aligned)[0].mT


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _exactly(tensor: Tensor) -> torch.autocast:
    """Products in the type of their factors, whatever the precision of the run."""
    return torch.autocast(tensor.device.type, enabled=False)
