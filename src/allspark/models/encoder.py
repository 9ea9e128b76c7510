"""What an encoder is: feature maps of an image, with their channels and strides. Which there are: encoders.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.batch import IMAGENET, Normalisation
from allspark.kernels.matmul import use_faster_products
from allspark.models import efficientnet_lite
from allspark.models.encoder_config import STAGES
from allspark.runtime.modes import evaluating

Change = Callable[[int, Tensor], Tensor]
"""Number of a feature map, from 0, and the map -> what takes its place."""


class Encoder(nn.Module):
    """Feature maps of an image, finest first.

    Attributes:
        channels: of each feature map.
        strides: pixels of the image for one step on each feature map.
        normalisation: how RGB becomes what it takes.
        frozen: it does not learn (``model.freeze_encoder``).
    """

    normalisation: Normalisation = IMAGENET
    frozen = False

    def __init__(self, body: nn.Module, channels: tuple[int, ...], strides: tuple[int, ...], multiple: int) -> None:
        super().__init__()
        use_faster_products(body)
        self.body = body
        self.channels = channels
        self.strides = strides
        # Images are padded to multiples of this (1: any size) and to at least the last stride.
        self._multiple = multiple

    def forward(self, image: Float[Tensor, "b 3 H W"], change: Change | None = None) -> list[Float[Tensor, "b _ _ _"]]:
        """(b, 3, H, W) -> feature maps (b, c_i, ~H / stride_i, ~W / stride_i).

        Args:
            image: normalised.
            change: what becomes of each map before the next stage reads it; the encoder must run stage by stage.
        """
        height, width = (self._padded(size) for size in image.shape[2:])
        image = F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))
        if change is None:
            return self._maps(image)
        maps: list[Tensor] = []
        for number, stage in enumerate(self.stages()):
            x = maps[-1] if maps else image
            for module in stage:
                x = module(x)
            maps.append(change(number, x))
        return maps

    def stages(self) -> list[Sequence[nn.Module]]:
        """What computes each map from the one before, the first from the image; none: it runs as a whole alone."""
        return []

    def freeze(self) -> None:
        """Keep the weights and statistics as they are: no gradient, and eval mode whatever ``train`` is told."""
        self.requires_grad_(False)
        self.frozen = True
        self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """Train or evaluate; what is frozen stays in eval mode."""
        return super().train(mode and not self.frozen)

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of this size is computed at [pixels]."""
        return self._padded(size[0]), self._padded(size[1])

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the last feature map for an image of this size [tokens]."""
        height, width = self.padded_size(size)
        stride = self.strides[-1]
        return -(-height // stride), -(-width // stride)

    def _padded(self, size: int) -> int:
        return -(-max(size, self.strides[-1]) // self._multiple) * self._multiple

    def _maps(self, image: Tensor) -> list[Tensor]:
        return list(self.body(image).feature_maps)


class EfficientNetLiteEncoder(Encoder):
    """Of :mod:`allspark.models.efficientnet_lite`."""

    normalisation = efficientnet_lite.NORMALISATION

    def _maps(self, image: Tensor) -> list[Tensor]:
        # the order in memory in which CPUs convolve faster: 1.3 to 2 times here
        maps: list[Tensor] = self.body(image.contiguous(memory_format=torch.channels_last))
        return maps

    def stages(self) -> list[Sequence[nn.Module]]:
        """As of all encoders."""
        body: Any = self.body
        parts: list[Sequence[nn.Module]] = body.parts()
        return parts


class ResNetEncoder(Encoder):
    """transformers' ResNet, which also runs stage by stage."""

    def stages(self) -> list[Sequence[nn.Module]]:
        """As of all encoders."""
        body: Any = self.body
        stages = list(body.encoder.stages)
        first = len(stages) - len(self.channels) + 1
        return [[body.embedder, *stages[:first]], *([stage] for stage in stages[first:])]


class MixTransformerEncoder(Encoder):
    """SegFormer's encoder: takes any size, and gives its maps as hidden states."""

    def _maps(self, image: Tensor) -> list[Tensor]:
        return list(self.body(image, output_hidden_states=True).hidden_states)[-STAGES:]

    def stages(self) -> list[Sequence[nn.Module]]:
        """As of all encoders."""
        body: Any = self.body
        return [[stage] for stage in body.stages]


def freeze_unused(encoder: Encoder) -> None:
    """Tell data parallelism not to wait for gradients that never come.

    Some of transformers' backbones have parameters that no feature map depends on (a last norm, a mask token). They get
    no gradient in any case; here they are found and marked.
    """
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    if not parameters:
        return  # frozen altogether
    image = torch.zeros(1, 3, 64, 64, dtype=parameters[0].dtype, device=parameters[0].device)
    with evaluating(encoder):
        total = torch.stack([feature.sum() for feature in encoder(image)]).sum()
    for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)
