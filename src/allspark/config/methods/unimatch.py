"""Settings of `unimatch`, and what those have in common whose step is UniMatch's with more to it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from allspark.config.fields import Dropout, Probability
from allspark.config.methods.base import Consistency


class WeakToStrong(Consistency):
    """What methods have in common whose labels are the network's own, of weak views in training."""

    joint: ClassVar[bool] = True

    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted, for each view")
    partner: Literal["draw", "reversed"] = Field(
        "draw", description="the other image: a second draw from all, or the batch in reverse order"
    )
    feature_dropout: Dropout = Field(0.5, description="share of the channels that the feature stream drops")


class UniMatch(WeakToStrong):
    """FixMatch without a teacher, with two strong views and a stream of dropped features."""

    name: Literal["unimatch"] = Field("unimatch", description="the training method")
