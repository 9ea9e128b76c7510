"""Perturbations of features, at the seam between encoder and decoder."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allspark.models.segmenter import Features


def complementary_masks(kept: Bool[Tensor, "u c"], whole: Bool[Tensor, " u"]) -> Float[Tensor, "_ c"]:
    """Factors 0, 1 or 2 of the channels of two views of u images (UniMatch V2, Yang et al., section 3.4).

    What one view loses the other has twice, so the two masks of an image add up to 2.

    Args:
        kept: (u, c), channels that the first view keeps; the second keeps the others.
        whole: (u,), images that lose nothing, in neither view.

    Returns:
        (2u, c) in the default floating-point type, those of all first views, then those of all second ones.
    """
    masks = 2 * torch.stack([kept, ~kept]).to(torch.get_default_dtype())  # (2, u, c)
    return masks.where(~whole[:, None], 1).flatten(0, 1)


def complementary_dropout(features: Features, num_clean: int = 0) -> Features:
    """Drop each channel of two views of u images in the one or in the other; half of the images (rounded down) in none.

    Maps of one width, as those of a plain transformer are, share one draw; each other width has its own, as the authors
    do it (issue 27 and 7 of their repository). Which images lose nothing is drawn once for all maps.

    Args:
        features: of ``num_clean`` images, then of all first views, then of all second ones.
        num_clean: so many images at the front stay as they are.
    """
    first = features.maps[0]
    u = (len(features) - num_clean) // 2
    whole = torch.rand(u, device=first.device).argsort() < u // 2
    drawn: dict[int, Tensor] = {}

    def drop(x: Tensor) -> Tensor:
        channels = x.shape[1]
        if channels not in drawn:
            kept = torch.rand(u, channels, device=x.device) < 0.5
            masks = complementary_masks(kept, whole)
            drawn[channels] = torch.cat([masks.new_ones(num_clean, channels), masks])[:, :, None, None]
        return x * drawn[channels].to(x.dtype)

    return features.map(drop)
