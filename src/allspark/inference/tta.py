"""Test-time augmentation: the mean of predictions at several sizes, each also in a mirror."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)
"""Of ST++ (Yang et al., CVPR 2022), which labels images so."""


def augmented(probabilities: Callable[[Tensor], Tensor], image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k H W"]:
    """The mean of the class probabilities of enlarged, reduced and mirrored images, at the images' own size.

    Args:
        probabilities: of images of any size, (b, 3, h, w) -> (b, k, h, w).
        image: normalised.
    """
    size = (image.shape[2], image.shape[3])
    total: Tensor | None = None
    for scale in SCALES:
        scaled = image if scale == 1 else _resized(image, tuple(max(1, int(side * scale)) for side in size))
        for found in (probabilities(scaled), probabilities(scaled.flip(3)).flip(3)):
            found = found if scale == 1 else _resized(found, size)
            total = found if total is None else total + found
    assert total is not None
    return total / (2 * len(SCALES))


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=True)
