"""Settings of `ael`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Count, Positive, Probability
from allspark.config.methods.base import MeanTeacher


class Equalization(MeanTeacher):
    """What AEL and what builds on it have in common: a running confidence of each class steers pasting and weights."""

    labeled_weight: float = Field(1.0, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(
        1.0, ge=0, description="weight of the teacher's labels, on labelled images and on mixes of unlabelled ones"
    )
    unlabeled_views: Literal["weak", "strong"] = Field(
        "weak", description="images that are mixed: as the teacher sees them (weak), or with their colours changed"
    )
    confidence: Probability = Field(
        0.7, description="threshold, class-wise: lowest probability that counts; published: Cityscapes 0"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="how slowly the teacher follows")
    class_memory: Probability = Field(
        0.999, description="share that a class's running confidence keeps in each micro-batch"
    )
    paste: Probability = Field(
        0.5, description="probability that a labelled image gets the pixels of some classes of another one"
    )
    paste_draws: Positive = Field(
        1, description="classes that are drawn for that, some maybe twice; published: Cityscapes 3"
    )
    paste_never: tuple[Count, ...] = Field(
        (0,), description="ids of classes that are never pasted so; published: 0, 1, 2, 8, 10 (frequent in Cityscapes)"
    )
    adaptive_boxes: bool = Field(
        True,
        description="paste the surroundings of a region whose class is drawn, weak classes first; false: always a box "
        "of half the crop",
    )
    class_area: Probability = Field(
        0.03, description="lowest area of a class in an image that gives it [share of the crop]; Cityscapes: 0.01"
    )
    region_area: Probability = Field(
        0.03, description="lowest area of a region that is pasted [share of the crop]; Cityscapes: 0.005"
    )
    sampling: bool = Field(
        True, description="the surer the network is of a class, the fewer of the pixels that it takes for it count"
    )


class AEL(Equalization):
    """Labels of a teacher, weighted by its confidence; classes that the network is unsure of are seen more often."""

    name: Literal["ael"] = Field("ael", description="the training method")
