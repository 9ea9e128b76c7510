"""Dilation in place of strides: finer last feature maps of a ResNet (Chen et al., DeepLab, 2017)."""

from __future__ import annotations

from typing import Any

from torch import nn

from allspark.errors import ConfigError

_BUILT = 32  # stride of a ResNet's last feature map


def dilate(body: Any, output_stride: int) -> None:
    """Change transformers' ResNet in place so that its last feature map has this stride [pixels]; weights stay.

    From the end, stages lose their stride, and their 3x3 convolutions look as far apart as they did: the one that had
    the stride as in the stage before, the later ones twice that.

    Raises:
        ConfigError: the network has other strides than a ResNet's.
    """
    stages = list(body.encoder.stages)
    if _strides(stages) != [1, 2, 2, 2]:
        raise ConfigError(
            f"model.output_stride: strides of the encoder's stages are {_strides(stages)}, not 1, 2, 2, 2"
        )
    rate = 1
    for stage in stages[-((_BUILT // output_stride).bit_length() - 1) :]:
        for module in stage.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            strided = module.stride == (2, 2)
            if module.kernel_size == (3, 3):
                reach = rate if strided else 2 * rate
                module.dilation = module.padding = (reach, reach)
            if strided:
                module.stride = (1, 1)
        rate *= 2


def _strides(stages: list[nn.Module]) -> list[int]:
    return [max(m.stride[0] for m in stage.modules() if isinstance(m, nn.Conv2d)) for stage in stages]
