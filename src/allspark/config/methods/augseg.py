"""Settings of `augseg`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.methods.base import JointTeacher


class AugSeg(JointTeacher):
    """A teacher's labels supervise views out of a random list of colours, with labelled content where it is unsure."""

    name: Literal["augseg"] = Field("augseg", description="the training method")
    labeled_weight: float = Field(1.0, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the loss of unlabelled images")
    colours: Literal["jitter", "random-list"] = Field(
        "random-list",
        description="colours of strong views: one to three changes out of a list of eleven, as strong as chance says "
        "(random-list), or jitter, greyscale and blur (views.*)",
    )
    inject: bool = Field(
        True, description="paste labelled content into strong views, the likelier, the less sure the teacher is of them"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="how slowly the teacher follows")
