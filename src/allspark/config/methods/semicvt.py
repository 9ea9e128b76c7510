"""Settings of `semicvt`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Dropout, Probability
from allspark.config.methods.base import MeanTeacher


class SemiCVT(MeanTeacher):
    """Two branches, an encoder and a thin transformer, that exchange and learn from the mean of their teachers."""

    name: Literal["semicvt"] = Field("semicvt", description="the training method")
    labeled_weight: float = Field(1.0, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the losses of unlabelled images, together")
    unlabeled_views: Literal["weak", "strong"] = Field(
        "weak", description="images that are mixed: as the teacher labels them (weak), or with their colours changed"
    )
    cutmix: Probability = Field(0.5, description="how often a view has a box of half of its pixels")
    filter: Literal["threshold", "percentile", "class-wise"] = Field(
        "percentile",
        description="which pseudo-labels count for a branch, by what its own teacher says of the mixed image: those of "
        "a probability of confidence at least (threshold), all but a share of the pixels, the most uncertain ones "
        "(percentile), or as threshold, less for classes that it is less sure of (class-wise)",
    )
    graph_weight: float = Field(0.1, ge=0, description="weight of the distance of class graphs, within that")
    branch_channels: int = Field(256, ge=32, multiple_of=32, description="channels of the transformer branch")
    drop_path: Dropout = Field(0.25, description="how often an exchange leaves out what is new, image by image")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="how slowly the teacher follows")
