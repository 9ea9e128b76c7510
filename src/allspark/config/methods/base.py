"""What the settings of several methods have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from allspark.config.fields import Count, Positive, Probability, Section


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


class ContrastTeacher(MeanTeacher):
    """What methods have in common that contrast projections of pixels, beside a teacher with statistics of its own."""

    labeled_weight: float = Field(1.0, ge=0, description="weight of the loss of labelled images")
    unlabeled_weight: float = Field(1.0, ge=0, description="weight of the loss of unlabelled images")
    supervised_epochs: float = Field(
        1.0, ge=0, description="supervised warm-up: so long labelled images train alone [epochs]"
    )
    filter: Literal["threshold", "percentile", "class-wise"] = Field(
        "percentile",
        description="which pseudo-labels count: all but a share of the pixels, the most uncertain ones (percentile), "
        "those of a probability of confidence at least (threshold), or as threshold, less for classes that the network "
        "is less sure of (class-wise)",
    )
    contrast_weight: float = Field(1.0, ge=0, description="weight of the contrast")
    temperature: float = Field(0.5, gt=0, description="that similarities are divided by")
    projection_channels: Positive = Field(256, description="channels of the projection")
