"""Settings of `fpl` and `fpl-ael`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allspark.config.fields import Probability
from allspark.config.methods.ael import Equalization
from allspark.config.methods.base import MethodConfig
from allspark.config.methods.cps import CrossSupervision


class FuzzyPositives(MethodConfig):
    """What fuzzy positives are, and how much they weigh."""

    positive_mass: Probability = Field(
        0.9,
        description="one to three classes are positive in a pixel: so many that one more would reach this probability",
    )
    fuzziness: Literal["concave", "linear", "convex", "none"] = Field(
        "concave",
        description="how the weight of a pixel grows with the distance of its positive classes to the next one; none: "
        "all weigh the same, as in the published command for cps",
    )
    convex_slope: float = Field(1.0, gt=0, description="convex: how fast the weight falls; published: with ael 4")


class FPL(CrossSupervision, FuzzyPositives):
    """CPS whose labels are up to three positive classes."""

    name: Literal["fpl"] = Field("fpl", description="the training method")
    cross_weight: float = Field(1.0, ge=0, description="weight of the cross loss; published: VOC 1, Cityscapes 5")


class FPLOnAEL(Equalization, FuzzyPositives):
    """AEL whose labels are up to three positive classes."""

    name: Literal["fpl-ael"] = Field("fpl-ael", description="the training method")
    confidence: Probability = Field(0.0, description="threshold, class-wise: lowest probability that counts")
    convex_slope: float = Field(4.0, gt=0, description="convex: how fast the weight falls; published: with cps 1")
