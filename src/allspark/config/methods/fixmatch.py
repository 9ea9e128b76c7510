"""Settings of `fixmatch`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.base import JointTeacher


class FixMatch(JointTeacher):
    """A teacher's confident labels of weak views supervise a strong view with CutMix."""

    name: Literal["fixmatch"] = Field("fixmatch", description="the training method")
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted")
