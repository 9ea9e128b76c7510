"""Settings of `u2pl`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from allspark.config.fields import Count, Dropout, Positive, Probability
from allspark.config.methods.base import ContrastTeacher


def _ranks(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] >= value[1]:
        raise ValueError("expected [first, end], the first below the end")
    return value


class U2PL(ContrastTeacher):
    """Sure pixels have hard labels; unsure ones are negatives of the classes that they probably are not."""

    name: Literal["u2pl"] = Field("u2pl", description="the training method")
    cutmix: Probability = Field(0.5, description="how often an image has a box of the next one, half of the crop large")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="how slowly the teacher follows")
    contrast_weight: float = Field(
        0.1, ge=0, description="weight of the contrast, as in the paper; the code has 1, by the number of processes"
    )
    contrast_share: tuple[Probability, Probability] = Field(
        (0.2, 0.0),
        description="share of the unlabelled pixels, those of the lowest entropy, that are anchors and positives, and, "
        "those of the highest, negatives, at the start and at the end of training",
    )
    projection_dropout: Dropout = Field(0.1, description="share of the channels that the projection loses in training")
    anchors: Positive = Field(256, description="pixels of each class that are compared [a step]")
    anchor_confidence: Probability = Field(
        0.3, description="the teacher's probability of its class above which a pixel is an anchor"
    )
    negatives: Positive = Field(50, description="rows of its class's bank that each anchor is compared with")
    ranks: Annotated[tuple[Count, Count], AfterValidator(_ranks)] = Field(
        (3, 20),
        description="an unsure pixel is a negative of the classes of these ranks in the teacher's probabilities, first "
        "and end, from 0; a labelled one of other classes than its own of ranks below the first",
    )
    bank_sizes: tuple[Positive, Positive] = Field(
        (50_000, 30_000), description="rows of the bank of class 0, and of each other class"
    )
    contrast_rule: Literal["paper", "code"] = Field(
        "paper",
        description="what is contrasted: as the paper says, or as the published code does it, whose labels are in the "
        "wrong images, whose negatives are labelled as of their class, and whose classes meet the banks of others",
    )
