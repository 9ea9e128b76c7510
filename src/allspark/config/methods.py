"""The settings of each method, told apart by ``name``. Torch-free: the methods themselves are in allspark.methods.

A configuration holds the settings of one method, and no other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import ClassVar, Literal

from pydantic import Field

from allspark.config.fields import Count, Dropout, Probability, Section, Shares
from allspark.config.plugins import load_entry_points
from allspark.errors import ConfigError


class MethodConfig(Section):
    """What all methods have in common. A method's own settings are a subclass, whose ``name`` is a ``Literal``.

    Attributes:
        joint: its training pass holds labelled and unlabelled images, labelled ones first, with a guide: it can use
            ``model.bottleneck=allspark``.
        bottleneck: ``model.bottleneck`` where that is null.
    """

    joint: ClassVar[bool] = False
    bottleneck: ClassVar[str] = "none"

    name: str = Field(description="the training method")
    labeled_loss: Literal["cross-entropy", "ohem"] = Field(
        "cross-entropy", description="loss of labelled images: cross-entropy, or ohem (hard pixels only)"
    )
    ohem_threshold: Probability = Field(0.7, description="ohem: a pixel is hard up to this probability of its class")
    ohem_min_kept: Count = Field(
        200_000, description="ohem: at least so many pixels of a micro-batch, of all processes, count [pixels]"
    )


class Supervised(MethodConfig):
    """Labelled images alone."""

    name: Literal["supervised"] = Field("supervised", description="the training method")
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="a moving average of the weights is evaluated and kept, which follows so slowly; null: the weights "
        "as they are",
    )


class PseudoLabel(MethodConfig):
    """The network's own hard predictions are the labels of the unlabelled images."""

    joint: ClassVar[bool] = True

    name: Literal["pseudo-label"] = Field("pseudo-label", description="the training method")


class AllSpark(MethodConfig):
    """Pseudo-labels, and the bottleneck that rebuilds labelled features from unlabelled ones (model.bottleneck_*)."""

    joint: ClassVar[bool] = True
    bottleneck: ClassVar[str] = "allspark"

    name: Literal["allspark"] = Field("allspark", description="the training method")


class Consistency(MethodConfig):
    """What methods have in common that label unlabelled images in training, and have other views agree."""

    labeled_views: Literal["weak", "strong"] = Field(
        "weak", description="labelled crops: their colours as they are (weak, as published), or changed (strong)"
    )
    labeled_weight: float = Field(0.5, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(0.5, ge=0, description="weight of the losses of unlabelled images, together")
    supervised_epochs: float = Field(
        0.0, ge=0, description="supervised warm-up: so long labelled images train alone [epochs]"
    )
    ramp_epochs: float = Field(
        0.0, ge=0, description="after that their weight rises from low to full over so long [epochs]"
    )
    ramp: Literal["sigmoid", "linear", "cosine"] = Field(
        "sigmoid",
        description="how it rises: sigmoid, exp(-5 (1 - t)^2) as published for mean teachers, linear, or cosine",
    )
    colours: Literal["jitter", "random-list"] = Field(
        "jitter",
        description="colours of strong views: jitter, greyscale and blur (views.*), or one to three changes out of a "
        "list of eleven, as strong as chance says (random-list)",
    )
    filter: Literal["threshold", "percentile", "class-wise"] = Field(
        "threshold",
        description="which pseudo-labels count: those of a probability of confidence at least (threshold), all but a "
        "share of the pixels, the most uncertain ones (percentile), or as threshold, less for classes that the network "
        "is less sure of (class-wise)",
    )
    confidence: Probability = Field(0.95, description="threshold, class-wise: lowest probability that counts")
    drop_share: tuple[Probability, Probability] = Field(
        (0.2, 0.0),
        description="percentile: share of the pixels, those of the highest entropy, that does not count, at the start "
        "and at the end of training",
    )


class MeanTeacher(Consistency):
    """What methods have in common whose labels a teacher gives, a moving average of the network."""

    ema_decay: float = Field(0.996, ge=0, lt=1, description="how slowly the teacher follows")


class JointTeacher(MeanTeacher):
    """What methods with a teacher have in common whose labelled images and strong views can pass together."""

    joint: ClassVar[bool] = True

    strong_pass: Literal["joint", "apart"] = Field(
        "joint",
        description="strong views pass the network with the labelled images (joint), or after them (apart): then each "
        "kind has batch statistics of its own, and the running ones, which inference uses, follow the labelled images "
        "alone; the same for networks without batch norm",
    )


class FixMatch(JointTeacher):
    """A teacher's confident labels of weak views supervise a strong view with CutMix."""

    name: Literal["fixmatch"] = Field("fixmatch", description="the training method")
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted")


class UniMatch(Consistency):
    """FixMatch without a teacher, with two strong views and a stream of dropped features."""

    joint: ClassVar[bool] = True

    name: Literal["unimatch"] = Field("unimatch", description="the training method")
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted, for each view")
    partner: Literal["draw", "reversed"] = Field(
        "draw", description="the other image: a second draw from all, or the batch in reverse order"
    )
    feature_dropout: Dropout = Field(0.5, description="share of the channels that the feature stream drops")


class UniMatchV2(JointTeacher):
    """A teacher's confident labels supervise two strong views, whose features lose complementary channels."""

    name: Literal["unimatch-v2"] = Field("unimatch-v2", description="the training method")
    cutmix: Probability = Field(0.5, description="probability that a box of another image is pasted, for each view")
    feature_dropout: bool = Field(
        True, description="drop each channel of half of the images in one strong view or in the other"
    )


class CPS(MethodConfig):
    """Two networks, each trained on the other's hard predictions."""

    name: Literal["cps"] = Field("cps", description="the training method")
    cutmix: bool = Field(True, description="learn from mixes of two unlabelled images; false: from all as they are")
    cross_weight: float = Field(
        1.0, ge=0, description="weight of the cross loss; published: VOC 1 (without CutMix 1.5), Cityscapes 5 (6)"
    )


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


class STPlusPlus(MethodConfig):
    """Labelled images, and others with pseudo masks that `allspark label` made (data.pseudo)."""

    name: Literal["st++"] = Field("st++", description="the training method")
    cutout: Probability = Field(
        0.5, description="probability that a box of a pseudo-labelled crop is filled with noise and ignored"
    )


METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "supervised": Supervised,
    "pseudo-label": PseudoLabel,
    "allspark": AllSpark,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "unimatch-v2": UniMatchV2,
    "cps": CPS,
    "cutmix-seg": CutMixSeg,
    "augseg": AugSeg,
    "st++": STPlusPlus,
}
"""Settings by the name of their method."""


def method_config(name: str) -> type[MethodConfig]:
    """The settings of a method, built in, of a plug-in that was loaded, or of an installed one.

    Raises:
        ConfigError: there is no such method; the nearest one is named.
    """
    if name not in METHOD_CONFIGS:
        load_entry_points()
    if name not in METHOD_CONFIGS:
        near = get_close_matches(name.lower(), METHOD_CONFIGS, 1, 0.5)
        raise ConfigError(
            f"method.name: no method {name!r}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are {', '.join(METHOD_CONFIGS)}; one of your own comes with --plugin FILE"
        )
    return METHOD_CONFIGS[name]


def joint_methods() -> Iterator[str]:
    """Names of the methods that can use ``model.bottleneck=allspark``."""
    return (name for name, settings in METHOD_CONFIGS.items() if settings.joint)
