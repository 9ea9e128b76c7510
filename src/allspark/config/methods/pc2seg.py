"""Settings of `pc2seg`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Positive
from allspark.config.methods.base import MethodConfig


class PC2Seg(MethodConfig):
    """Two views of an image have equal probabilities, and pixels that are like each other and unlike other images'."""

    name: Literal["pc2seg"] = Field("pc2seg", description="the training method (a reconstruction)")
    labeled_views: Literal["weak", "strong"] = Field(
        "weak", description="labelled crops: their colours as they are (weak), or changed (strong)"
    )
    consistency_weight: float = Field(1.0, ge=0, description="weight of the squared distance of both views")
    contrast_weight: float = Field(0.1, ge=0, description="weight of the contrast")
    temperature: float = Field(0.1, gt=0, description="that similarities are divided by")
    negatives: Positive = Field(128, description="pixels of other images that each pixel of an image is compared with")
    projection_channels: Positive = Field(64, description="channels of the projection")
