"""Settings of `cutmix-seg`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability, Shares
from allspark.config.methods.base import MeanTeacher


class CutMixSeg(MeanTeacher):
    """Soft labels of a teacher for mixes of two unlabelled images, by a distance of probabilities."""

    name: Literal["cutmix-seg"] = Field("cutmix-seg", description="the training method")
    labeled_weight: float = Field(1.0, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the loss of unlabelled images")
    unlabeled_views: Literal["weak", "strong"] = Field(
        "weak", description="images that are mixed: as the teacher sees them (weak), or with their colours changed"
    )
    confidence: Probability = Field(0.97, description="threshold, class-wise: lowest probability that counts")
    confidence_weight: Literal["batch", "pixel"] = Field(
        "batch",
        description="what the filter does: all pixels count by the share that it lets through (batch), or those alone "
        "(pixel)",
    )
    distance: Literal["squared", "logits", "kl", "cross-entropy"] = Field(
        "squared",
        description="of the network to its teacher: squared, of the probabilities or of the logits; Kullback-Leibler "
        "(kl); or the binary cross-entropies of all classes, added",
    )
    box_area: Shares = Field((0.5, 0.5), description="area of the box, share of the crop [lowest, highest]")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="how slowly the teacher follows")
