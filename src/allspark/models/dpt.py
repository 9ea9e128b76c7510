"""The DPT head, for encoders whose feature maps have one resolution (Ranftl et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_PUBLISHED = ((384, 64, (8, 4, 2, 1)), (768, 128, (8, 4, 2, 1)), (1024, 256, (4, 2, 1, 1)))
_LARGER = (384, (1, 1, 1, 1))
"""Of DINOv2-S, -B, -L and -G in UniMatch V2: encoder's width up to, head's width, what the projections divide it by."""


class DPTHead(nn.Module):
    """Four maps of one size become a pyramid, which is fused from its coarsest level to its finest.

    As UniMatch V2 (Yang et al., TPAMI 2025) has it for DINOv2: no batch norm, logits at eight times the maps'
    resolution, enlarged from there with the corners aligned.

    Args:
        channels: of the four feature maps.
        projected: channels of the pyramid's levels, finest first, at 4, 2, 1 and 1/2 times the maps' resolution.
        width: channels of the fusion.
        num_classes: k.
        dropout: whole channels dropped before the classifier; published: none.
    """

    corners_aligned = True
    predictor = ("classifier",)
    levels = 4

    def __init__(
        self, channels: Sequence[int], projected: Sequence[int], width: int, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        p = projected
        self.project = nn.ModuleList(nn.Conv2d(c, own, 1) for c, own in zip(channels, p, strict=True))
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(p[0], p[0], 4, stride=4),
                nn.ConvTranspose2d(p[1], p[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(p[3], p[3], 3, stride=2, padding=1),
            ]
        )
        self.level = nn.ModuleList(nn.Conv2d(own, width, 3, padding=1, bias=False) for own in p)
        self.fuse = nn.ModuleList(_Fusion(width, with_skip=place + 1 < self.levels) for place in range(self.levels))
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    @classmethod
    def for_encoder(
        cls, channels: Sequence[int], num_classes: int, width: int | None = None, dropout: float = 0.0
    ) -> DPTHead:
        """The head in the published size for an encoder's width.

        Args:
            channels: of its four feature maps.
            num_classes: k.
            width: channels of the fusion; None: as published.
            dropout: as above.
        """
        sizes = ((published, parts) for up_to, published, parts in _PUBLISHED if channels[-1] <= up_to)
        published, parts = next(sizes, _LARGER)
        projected = [max(1, c // part) for c, part in zip(channels, parts, strict=True)]
        return cls(channels, projected, width or published, num_classes, dropout)

    def forward(self, features: Sequence[Float[Tensor, "b _ h w"]]) -> Float[Tensor, "b k _ _"]:
        """Return logits (b, k, 8h, 8w) of four feature maps (b, c_i, h, w), shallowest layer first."""
        logits: Tensor = self.classifier(self.dropout(self._fused(features)))
        return logits

    def hidden(self, features: Sequence[Float[Tensor, "b _ h w"]]) -> Float[Tensor, "b c _ _"]:
        """What the classifier reads, before its dropout: (b, width, 8h, 8w)."""
        return self._fused(features)

    def classify(self, hidden: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of what :meth:`hidden` gave."""
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits

    def _fused(self, features: Sequence[Float[Tensor, "b _ h w"]]) -> Tensor:
        levels = [
            level(resize(project(feature)))
            for project, resize, level, feature in zip(self.project, self.resize, self.level, features, strict=True)
        ]
        fused: Tensor | None = None
        for place in reversed(range(self.levels)):
            height, width = levels[place].shape[2:]
            size = levels[place - 1].shape[2:] if place else (2 * height, 2 * width)
            fused = cast(_Fusion, self.fuse[place])(levels[place], fused, size)
        smooth: Tensor = self.smooth(fused)
        return smooth


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


class _Fusion(nn.Module):
    """One level joins what the coarser ones say (RefineNet, Lin et al., CVPR 2017).

    Args:
        width: channels.
        with_skip: the level passes a residual unit before it is added; not the coarsest one, which has nothing to join.
    """

    def __init__(self, width: int, *, with_skip: bool) -> None:
        super().__init__()
        self.skip = _Residual(width) if with_skip else None
        self.refine = _Residual(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        """Level (b, c, h, w) and coarser ones (b, c, h, w), if any -> (b, c, *size)."""
        x = level if coarser is None or self.skip is None else coarser + self.skip(level)
        # Published: enlarged, then projected. A 1x1 convolution and interpolation commute: the same for a quarter.
        return F.interpolate(self.out(self.refine(x)), tuple(size), mode="bilinear", align_corners=True)
