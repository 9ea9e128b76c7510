"""ResNets as DeepLab has them: finer last feature maps (Chen et al., 2017), and a deeper stem."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import nn

from allspark.errors import ConfigError

_BUILT = 32  # stride of a ResNet's last feature map


def dilate(body: Any, output_stride: int, *, multi_grid: bool = False) -> None:
    """Change transformers' ResNet in place so that its last feature map has this stride [pixels]; weights stay.

    From the end, stages lose their stride, and their 3x3 convolutions look as far apart as they did: the one that had
    the stride as in the stage before, the later ones twice that.

    Args:
        body: the network.
        output_stride: 8 or 16.
        multi_grid: the blocks of the last stage look 1, 2, 4 times as far as that (Chen et al., DeepLabV3, 2017): 2, 4
            and 8 at stride 16.

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
    if multi_grid:
        for number, block in enumerate(stages[-1].layers):
            for module in block.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                    module.dilation = module.padding = (rate * 2**number,) * 2


def _strides(stages: list[nn.Module]) -> list[int]:
    return [max(m.stride[0] for m in stage.modules() if isinstance(m, nn.Conv2d)) for stage in stages]


def deepen_stem(body: Any) -> None:
    """Give transformers' ResNet three 3x3 convolutions, with weights of their own, in place of its 7x7 one.

    The first two have half of the channels that the third gives, ``embedding_size``: 32, 32, 64 as built (He et al.,
    *Bag of Tricks*, CVPR 2019, ResNet-C); 64, 64, 128 with ``model.encoder_config.embedding_size=128``, as the codes of
    CPS, U2PL and PS-MT have them. As with the one convolution, the first has stride 2.
    """
    plain = body.embedder.embedder
    outputs = plain.convolution.out_channels
    widths = (plain.convolution.in_channels, max(1, outputs // 2), max(1, outputs // 2), outputs)
    layers: list[nn.Module] = []
    for number, (inputs, width) in enumerate(pairwise(widths)):
        convolution = nn.Conv2d(inputs, width, 3, stride=1 if number else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    body.embedder.embedder = nn.Sequential(*layers)
