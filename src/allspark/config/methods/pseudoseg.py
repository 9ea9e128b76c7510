"""Settings of `pseudoseg`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from allspark.config.fields import Count, Positive, Probability
from allspark.config.methods.base import Consistency


class PseudoSeg(Consistency):
    """Soft labels of weak views, half the decoder's and half of what an image classifier looked at, sharpened."""

    name: Literal["pseudoseg"] = Field("pseudoseg", description="the training method")
    labeled_weight: float = Field(1.0, ge=0, description="weight of each loss of labelled images")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the loss of unlabelled images")
    confidence: Probability = Field(0.0, description="threshold, class-wise: lowest probability that counts")
    background: Count | None = Field(
        0, description="the class that images have everywhere but where they have another one; null: there is none"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.5, description="soft labels are raised to the power 1 / temperature: below 1 sharpens"
    )
    calibration: Literal["image", "batch"] = Field(
        "image",
        description="both kinds of scores are divided by their root mean square, of each image, or of the whole "
        "micro-batch of a process (batch, as in the published runs)",
    )
    attention_width: Positive = Field(128, description="channels of queries and keys of the attention")
    cutout: Count = Field(100, description="side of the square that strong views lose; 0: none [pixels]")
