"""Settings of `dgcl`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from allspark.config.fields import Positive, Probability
from allspark.config.methods.base import ContrastTeacher


class DGCL(ContrastTeacher):
    """Pixels in sparse regions of their class's features are pulled to its dense ones."""

    name: Literal["dgcl"] = Field("dgcl", description="the training method")
    unlabeled_weight: float = Field(0.5, ge=0, description="weight of the loss of unlabelled images")
    cutmix: Probability = Field(0.5, description="how often an image has a box of the next one, half of the crop large")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="how slowly the teacher follows")
    contrast_weight: float = Field(
        0.5, ge=0, description="weight of the contrast; the published code divides it by the number of its processes"
    )
    contrast_drop: tuple[Probability, Probability] = Field(
        (0.8, 0.1),
        description="share of the unlabelled pixels, those of the highest entropy, that is not contrasted: at the end "
        "of the warm-up, from where it falls in a line towards 0, and the least that it falls to",
    )
    contrast_first: bool = Field(
        False, description="class 0 is contrasted too; published is false, which on Cityscapes leaves out the road"
    )
    neighbours: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (8, 16, 32), description="rows of the bank whose similarity is a pixel's density; a mean over these"
    )
    sampled: Positive = Field(10_000, description="pixels of each class whose density is computed [a step]")
    anchors: Positive = Field(200, description="pixels of each class that are compared, the least dense [a step]")
    dense: Positive = Field(
        50, description="pixels of the batch, and rows of the bank, the densest of a class: their mean is its positive"
    )
    negatives: Positive = Field(512, description="pixels of other classes that they are compared with [a step]")
    bank_size: Positive = Field(10_000, description="rows of each class's bank; the contrast begins when all are full")
    bank_new: Positive = Field(1_000, description="pixels of each class that enter its bank at most [a step]")
