"""Settings of `semivl`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.unimatch import WeakToStrong


class SemiVL(WeakToStrong):
    """UniMatch, with more labels: those that a vision-language model reads off the names of the classes."""

    name: Literal["semivl"] = Field("semivl", description="the training method")
    clip: str = Field(
        "none",
        description="a CLIP model, as a folder or a hub name that is in the local cache (published: "
        "openai/clip-vit-base-patch16); none: no guidance",
    )
    concepts: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="classes that CLIP knows better by other words, with these; of several the likeliest counts",
    )
    clip_confidence: Probability = Field(0.9, description="lowest probability that counts in CLIP's labels")
    clip_weight: tuple[float, float] = Field(
        (0.1, 0.0),
        description="weight of the losses of CLIP's labels, all of them, at the start and at the end of training",
    )
    clip_mean: Literal["labels", "valid", "all"] = Field(
        "all", description="these losses are means over the labels that count, over all that is no padding, or over all"
    )
    trust: Literal["pixel", "share", "confidence"] = Field(
        "pixel",
        description="how the network's own labels count: those of at least confidence (pixel), or all of an image, by "
        "the share of such pixels (share) or by its mean confidence (confidence, published for Cityscapes)",
    )
    trust_sums: Literal["paper", "code"] = Field(
        "paper",
        description="share, confidence: each image by its own mean, without padding (paper), or with padding, and "
        "confidence the whole micro-batch by the sum of the means, which grows with the batch (code)",
    )
