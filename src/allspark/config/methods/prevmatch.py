"""Settings of `prevmatch`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Count, Positive, Probability
from allspark.config.methods.unimatch import WeakToStrong


class PrevMatch(WeakToStrong):
    """UniMatch, with more labels: those of earlier students, a random few of them together."""

    name: Literal["prevmatch"] = Field("prevmatch", description="the training method")
    history: Positive = Field(
        8, description="earlier students that are kept, each a copy of the network; the oldest goes [networks]"
    )
    history_after: Count = Field(0, description="the first is kept after so many epochs at the earliest [epochs]")
    ensemble: Positive = Field(3, description="a step asks 1 to so many of them, drawn anew [networks]")
    old_confidence: Probability = Field(0.9, description="lowest probability that counts in their labels")
    old_trust: Literal["pixel", "share", "confidence"] = Field(
        "pixel",
        description="how their labels count: those of at least old_confidence (pixel), or all of an image, by the "
        "share of such pixels (share) or by its mean confidence (confidence, published for Cityscapes)",
    )
    old_trust_sums: Literal["paper", "code"] = Field(
        "paper",
        description="share, confidence: each image by its own mean, without padding (paper), or with padding, and "
        "confidence the whole micro-batch by the sum of the means, which grows with the batch (code)",
    )
