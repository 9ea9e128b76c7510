"""Settings of `unimatch-v2`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.base import JointTeacher


class UniMatchV2(JointTeacher):
    """A teacher's confident labels supervise two strong views, whose features lose complementary channels."""

    name: Literal["unimatch-v2"] = Field("unimatch-v2", description="the training method")
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted, for each view")
    feature_dropout: bool = Field(
        True, description="drop each channel of half of the images in one strong view or in the other"
    )
