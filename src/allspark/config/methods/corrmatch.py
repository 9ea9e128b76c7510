"""Settings of `corrmatch`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Dropout, Positive, Probability
from allspark.config.methods.unimatch import WeakToStrong


class CorrMatch(WeakToStrong):
    """UniMatch with one strong view, whose labels spread over what looks alike in the network's features."""

    name: Literal["corrmatch"] = Field("corrmatch", description="the training method")
    filter: Literal["threshold"] = Field(
        "threshold", description="which pseudo-labels count: those of a probability of one threshold, which adapts"
    )
    confidence: Probability = Field(0.85, description="the threshold in the beginning")
    threshold_memory: Dropout = Field(
        0.999,
        description="share that the threshold keeps of itself in an update; the rest is the mean of what the "
        "classes that are seen have for highest confidence",
    )
    regions: Positive = Field(128, description="positions of an image whose likeness to all others makes a region")
    correlation_width: Positive = Field(256, description="channels that features are projected to for the correlation")
    correlation_dropout: Dropout = Field(0.1, description="share of these channels that is dropped")
    soft_target: Literal["mixed", "code"] = Field(
        "mixed",
        description="what the strong view's probabilities should be: those of the weak views, mixed as the images are "
        "(mixed), or of the image alone, also where another one is pasted (code, as in the published runs)",
    )
