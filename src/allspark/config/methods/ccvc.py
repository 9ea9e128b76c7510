"""Settings of `ccvc`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.base import MethodConfig


class CCVC(MethodConfig):
    """Two networks whose features are pushed apart, each trained on the other's labels."""

    name: Literal["ccvc"] = Field("ccvc", description="the training method")
    labeled_weight: float = Field(
        5.0, ge=0, description="weight of the loss of labelled images, mean of both networks; published: Cityscapes 1"
    )
    cross_weight: float = Field(
        2.0, ge=0, description="weight of the loss on the other's labels, mean of four; published: Cityscapes 1"
    )
    discrepancy_weight: float = Field(1.0, ge=0, description="weight of the likeness of the networks' features")
    conflict_weight: float = Field(
        1.5, ge=0, description="weight of pixels where the other is sure of another class; published: Cityscapes 2"
    )
    confidence: Probability = Field(
        0.9, description="probability from which on a network is sure where they disagree; published: Cityscapes 0"
    )
    conflict: Literal["paper", "code"] = Field(
        "paper",
        description="where the networks conflict: by their probabilities, mixed as the images are (paper), or as the "
        "published code does it: by the highest logit in place of its probability, and not mixed (code)",
    )
    cutmix: Probability = Field(1.0, description="probability that a box of another image is pasted")
    mapping_dropout: Probability = Field(
        0.5, description="share of the channels that the second network's mapped features lose in training"
    )
