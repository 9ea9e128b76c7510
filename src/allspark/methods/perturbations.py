"""Perturbations of features, at the seam between encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from allspark.models.segmenter import Features, Segmenter
from allspark.runtime.modes import evaluating

_TINY = 1e-8  # keeps the norm of nothing from dividing, as published for PS-MT


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


def adversarial_noise(features: Features, networks: Sequence[Segmenter], size: float, probe: float) -> Features:
    """Noise for features that networks' decoders, whose logits are averaged, are most sensitive to; without gradient.

    One power iteration of virtual adversarial training (Miyato et al., TPAMI 2019), with decoders in eval mode: the
    gradient of the Kullback-Leibler divergence between what they say of the features, and of features with a little
    random noise.

    Args:
        features: of b images, as all these networks' encoders make them.
        networks: whose decoders judge.
        size: L2 norm of the noise of each image, over all its maps.
        probe: L2 norm of the random noise.
    """
    wide = torch.promote_types(features.maps[0].dtype, torch.float32)
    clean = features.map(lambda x: x.detach().to(wide))
    start = _scaled([torch.rand_like(x) - 0.5 for x in clean.maps], 1.0)
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(features.maps[0].device.type, enabled=False))  # the probe would be lost
        for network in networks:
            stack.enter_context(evaluating(network.decoder))
        with torch.no_grad():
            target = _mean_logits(clean, networks).softmax(1)
        with torch.enable_grad():
            noise = [x.requires_grad_() for x in start]
            maps = tuple(x + probe * d for x, d in zip(clean.maps, noise, strict=True))
            said = _mean_logits(replace(clean, maps=maps), networks).log_softmax(1)
            # maps that decoders do not read have no gradient
            found = torch.autograd.grad(F.kl_div(said, target, reduction="batchmean"), noise, allow_unused=True)
    gradients = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(start, found, strict=True)]
    return replace(clean, maps=tuple(_scaled(gradients, size)))


def _mean_logits(features: Features, networks: Sequence[Segmenter]) -> Float[Tensor, "b k h w"]:
    """On the decoders' grid."""
    return torch.stack([network.decode(features).coarse for network in networks]).mean(0)


def _scaled(maps: Sequence[Tensor], size: float) -> list[Tensor]:
    """Maps (b, ...) such that the L2 norm over all those of an image is ``size``, or 0 where there is nothing."""
    norms = torch.stack([x.flatten(1).norm(dim=1) for x in maps]).norm(dim=0)  # (b,)
    return [size * x / (norms + _TINY).view(-1, *[1] * (x.dim() - 1)) for x in maps]
