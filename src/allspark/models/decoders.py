"""From the encoder's feature maps to logits at the resolution of the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from allspark.models.published import HEAD_NAMES, from_published

_ATEN = torch.ops.aten


class SegformerHead(nn.Module):
    """SegFormer's all-MLP head (Xie et al., NeurIPS 2021), folded.

    The published head projects every stage to ``width`` channels, upsamples all of them, concatenates and fuses
    them with a 1x1 convolution F. A 1x1 convolution commutes with bilinear upsampling, so

        F concat(up(L_i x_i)) = sum_i up((F_i L_i) x_i),

    and each stage is projected at its own resolution by the product of two small matrices. Equal in value and
    gradient, several times cheaper in time and memory.

    Args:
        channels: of the feature maps, first to last stage.
        width: of the head.
        num_classes: k.
        dropout: whole channels dropped before the classifier.
    """

    corners_aligned = False
    predictor = ("classifier",)  # parts that make labels of features, where methods tell the two apart

    def __init__(self, channels: Sequence[int], width: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(c, width) for c in channels)
        self.fuse = nn.Conv2d(width * len(channels), width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = dropout
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k h w"]:
        """Return logits (b, k, h1, w1) of features (b, c_i, h_i, w_i)."""
        normed = self._fused(features)
        keep = None
        if self.training and self.dropout:
            keep = normed.new_empty(normed.shape[0], normed.shape[1], 1, 1).bernoulli_(1 - self.dropout)
            keep /= 1 - self.dropout
        logits: Tensor = _Classify.apply(normed, keep, self.classifier.weight, self.classifier.bias)
        return logits

    def hidden(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """What the classifier reads, before its dropout: (b, width, h1, w1)."""
        return F.relu(self._fused(features))

    def classify(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of what :meth:`hidden` gave; both together are the forward pass, with more memory."""
        logits: Tensor = self.classifier(F.dropout2d(hidden, self.dropout, self.training))
        return logits

    def _fused(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        fuse = self.fuse.weight.flatten(1).chunk(len(self.stages), 1)[::-1]  # published order: last stage first
        fused: Tensor | None = None
        for stage, matrix, feature in zip(self.stages, fuse, features, strict=True):
            weight, bias = matrix @ cast(Tensor, stage.weight), matrix @ cast(Tensor, stage.bias)
            projected = F.conv2d(feature, weight[:, :, None, None], bias)
            if fused is None:
                fused = projected
                continue
            if projected.shape[2:] != fused.shape[2:]:
                projected = F.interpolate(projected, fused.shape[2:], mode="bilinear", align_corners=False)
            fused += projected
            del projected  # as large as the sum
        assert fused is not None
        normed: Tensor = self.norm(fused)
        return normed

    @classmethod
    def from_reference(cls, state: Mapping[str, Tensor], dropout: float = 0.1) -> SegformerHead:
        """Build the head from tensors in the published layout (``linear_c1.proj.weight`` ...), sizes inferred.

        Raises:
            CheckpointError: a tensor is missing.
        """
        renamed = from_published(state, HEAD_NAMES, "SegFormer head")
        channels = [renamed[f"stages.{i}.weight"].shape[1] for i in range(4)]
        num_classes, width = renamed["classifier.weight"].shape[:2]
        head = cls(channels, width, num_classes, dropout).to(renamed["classifier.weight"].dtype)
        head.load_state_dict(renamed)
        return head


class _Classify(torch.autograd.Function):
    """classifier(relu(x) * keep); its backward holds one of the network's widest maps where three stood side by side.

    x (b, c, h, w), keep None or (b, c, 1, 1), weight (k, c, 1, 1), bias (k) -> (b, k, h, w).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        hidden = F.relu(x)
        if keep is not None:
            hidden.mul_(keep)
        ctx.save_for_backward(hidden, keep, weight, bias)
        return F.conv2d(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        hidden, keep, weight, bias = ctx.saved_tensors
        dtype = grad_out.dtype  # mixed precision: forward ran in this one
        grad, grad_weight, grad_bias = _ATEN.convolution_backward(
            grad_out, hidden.to(dtype), weight.to(dtype), [len(bias)],
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3,
        )  # fmt: skip
        grad = grad.to(hidden.dtype)
        _ATEN.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad)
        if keep is not None:
            grad.mul_(keep)
        return grad, None, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al., ECCV 2018): dilated convolutions at several rates, then a finer map for the borders.

    Args:
        low_channels: of the first feature map.
        high_channels: of the last one.
        width: channels of the decoder.
        num_classes: k.
        rates: dilations of the three 3x3 convolutions: (6, 12, 18) at stride 16, twice that at stride 8.
        dropout: whole channels dropped before the classifier.
        low_width: channels that the first feature map is reduced to; few, so that the last one prevails (section 4.1
            there).
    """

    corners_aligned = False
    predictor = ("fuse", "classifier")

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        width: int,
        num_classes: int,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
        *,
        low_width: int = 48,
    ) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(
            [_block(high_channels, width, 1), *(_block(high_channels, width, 3, rate) for rate in rates)]
        )
        self.pooled = _block(high_channels, width, 1)
        self.project = _block((2 + len(rates)) * width, width, 1)
        self.low = _block(low_channels, low_width, 1)
        self.fuse = nn.Sequential(_block(width + low_width, width, 3), _block(width, width, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k h w"]:
        """Return logits (b, k, h1, w1) of features (b, c_i, h_i, w_i); the first and the last are used."""
        logits: Tensor = self.classifier(self.dropout(self._fused(features)))
        return logits

    def hidden(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """What the classifier reads, before its dropout: (b, width, h1, w1)."""
        return self._fused(features)

    def classify(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of what :meth:`hidden` gave."""
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits

    def _fused(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> Tensor:
        low, high = features[0], features[-1]
        pooled = self.pooled(high.mean((2, 3), keepdim=True)).expand(-1, -1, *high.shape[2:])
        context = self.project(torch.cat([*(branch(high) for branch in self.pyramid), pooled], 1))
        context = F.interpolate(context, low.shape[2:], mode="bilinear", align_corners=False)
        fused: Tensor = self.fuse(torch.cat([context, self.low(low)], 1))
        return fused


class AuxiliaryHead(nn.Module):
    """A small fully convolutional head on an earlier feature map, whose loss trains the encoder (PSPNet, CVPR 2017).

    Args:
        channels: of that map.
        width: of the head.
        num_classes: k.
        dropout: whole channels dropped before the classifier.
        weight: of its loss, relative to that of the labelled images.
    """

    def __init__(self, channels: int, width: int, num_classes: int, dropout: float, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.fuse = _block(channels, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, feature: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits (b, k, h, w) of that map."""
        logits: Tensor = self.classifier(self.dropout(self.fuse(feature)))
        return logits


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a batch has one value a channel: one image, pooled."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _block(inputs: int, outputs: int, kernel: int, rate: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 * rate, dilation=rate, bias=False)
    return nn.Sequential(convolution, _BatchNorm(outputs), nn.ReLU(inplace=True))
