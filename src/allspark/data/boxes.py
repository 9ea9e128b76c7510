"""CutMix boxes as they are published: which part of a view is pasted from another image.

Each way draws (r, 4) boxes: top, left, bottom, right [pixels], the latter two exclusive. Where several boxes overlap,
a pixel is pasted if an odd number of them holds it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allspark.batch import Boxes
from allspark.errors import ConfigError

_EMPTY = np.zeros((1, 4), np.int64)


@dataclass(frozen=True)
class UniMatchBoxes:
    """One box with some probability (Yang et al., UniMatch, CVPR 2023).

    The area is uniform, and so is the ratio of height to width (not its logarithm: tall boxes prevail). Boxes that
    leave the crop are drawn anew.

    Attributes:
        probability: that there is a box at all.
        area: smallest and largest share of the crop.
        ratio: smallest and largest height / width.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        _require_shares(self.area)

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (1, 4), an empty box where there is none.

        Raises:
            ConfigError: no box fits into the crop.
        """
        height, width = crop
        self._require_fit(height, width)
        if rng.random() > self.probability:
            return _EMPTY
        while True:
            area = rng.uniform(*self.area) * height * width
            ratio = rng.uniform(*self.ratio)
            w, h = int(math.sqrt(area / ratio)), int(math.sqrt(area * ratio))
            top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
            if top + h <= height and left + w <= width:
                return np.array([[top, left, top + h, left + w]], np.int64)

    def _require_fit(self, height: int, width: int) -> None:
        """The smallest box of the crop's own proportions, or of those nearest to them, is the last to fit."""
        ratio = min(max(height / width, self.ratio[0]), self.ratio[1])
        area = self.area[0] * height * width
        if math.sqrt(area * ratio) >= height + 1 or math.sqrt(area / ratio) >= width + 1:
            raise ConfigError(
                f"data.crop: no CutMix box fits into {height} x {width} pixels, whose area is {self.area[0]:g} of them "
                f"or more, and whose height is {self.ratio[0]:g} to {self.ratio[1]:g} times its width"
            )


@dataclass(frozen=True)
class SquareBoxes:
    """One square whose middle is anywhere in the crop, cut off at its borders (DeVries and Taylor, Cutout, 2017).

    Attributes:
        side: of the square, an even number [pixels]; 0: there is none.
    """

    side: int = 100

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (1, 4)."""
        middle, half = rng.integers(0, crop), self.side // 2
        ends = (np.maximum(middle - half, 0), np.minimum(middle + half, crop))
        return np.concatenate(ends).astype(np.int64)[None]


@dataclass(frozen=True)
class FrenchBoxes:
    """Boxes of a given area and log-uniform proportions (French et al., BMVC 2020); three of them in CPS.

    Attributes:
        count: boxes a view; both sides of each are smaller by the square root of it.
        area: smallest and largest share of the crop, before that.
    """

    count: int = 1
    area: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        _require_shares(self.area)

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (count, 4)."""
        boxes: NDArray[np.int64] = french_boxes(1, self.count, self.area, crop, rng)[0]
        return boxes


@dataclass(frozen=True)
class HalfBoxes:
    """One box of half of the crop's area with some probability (Wang et al., U2PL, CVPR 2022; its descendants too).

    The width is a uniform whole number above half of the crop's, the height follows from the area. Published is one
    draw of the probability for a batch, here each view has its own.

    Attributes:
        probability: that there is a box at all.
    """

    probability: float = 0.5

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (1, 4), an empty box where there is none."""
        height, width = crop
        if rng.random() >= self.probability:
            return _EMPTY
        wide = int(rng.integers(min(width // 2 + 1, width), max(width, width // 2 + 2)))
        tall = min(round(height * width / 2 / wide), height)
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        return np.array([[top, left, top + tall, left + wide]], np.int64)


@dataclass(frozen=True)
class BetaBoxes:
    """Boxes of the crop's proportions whose size follows a Beta distribution (AugSeg, Zhao et al., CVPR 2023).

    With lambda drawn, each side is sqrt(1 - lambda) of the crop's. The centre is nowhere in the first eighth of an
    axis, and what leaves the crop is cut off, so the area is 1 - lambda or less. Here each view has a lambda of its
    own, published is one for a batch.

    Attributes:
        betas: both parameters of each box's distribution.
    """

    betas: tuple[tuple[float, float], ...] = ((4.0, 4.0),)

    def draw(self, crop: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return (len(betas), 4)."""
        size = np.array(crop)
        boxes = []
        for one, other in self.betas:
            half = (size * math.sqrt(1 - rng.beta(one, other))).astype(np.int64) // 2
            centre = rng.integers(size // 8, size)
            boxes.append(np.concatenate([np.maximum(centre - half, 0), np.minimum(centre + half, size)]))
        return np.stack(boxes)


def french_boxes(
    views: int, count: int, area: tuple[float, float], crop: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw (views, count, 4) boxes, see :class:`FrenchBoxes`; in the order of the published code."""
    shape = (views, count)
    share = rng.uniform(*area, size=shape)
    tall = np.exp(rng.uniform(0, 1, size=shape) * np.log(share))
    sides = np.round(np.stack([tall, share / tall], 2) * math.sqrt(1 / count) * np.array(crop))
    corner = np.round((np.array(crop) - sides) * rng.uniform(0, 1, size=sides.shape))
    boxes: NDArray[np.int64] = np.concatenate([corner, corner + sides], 2).astype(np.int64)
    return boxes


def require_boxes(boxes: Boxes, crop: tuple[int, int]) -> None:
    """Draw once, before training does: boxes of whatever kind have to lie in the crop.

    Raises:
        ConfigError: they do not, or none can be drawn.
    """
    drawn = boxes.draw(crop, np.random.default_rng(0))
    corners = drawn.reshape(-1, 2, 2) if drawn.ndim == 2 and drawn.shape[1] == 4 else np.full((1, 2, 2), -1)
    if (corners < 0).any() or (corners > np.array(crop)).any() or (corners[:, 0] > corners[:, 1]).any():
        raise ConfigError(
            f"{type(boxes).__name__}: CutMix boxes are rows of top, left, bottom and right within the crop of "
            f"{crop[0]} x {crop[1]} pixels, got {drawn.tolist()}"
        )


def _require_shares(area: tuple[float, float]) -> None:
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"CutMix boxes are no larger than the crop: expected 0 < lowest <= highest <= 1, got {area}")
