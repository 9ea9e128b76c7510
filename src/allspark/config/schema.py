"""The configuration: every field typed, with its meaning and unit. One file says all; nothing is inherited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as False."""
    return "off" if value is False else value


def _pair(value: Any) -> Any:
    """A single number stands for a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError("expected [height, width], or one number for a square")
    return value


Positive = Annotated[int, Field(ge=1, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Size = Annotated[tuple[Positive, Positive], BeforeValidator(_pair)]


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    """A range is written from low to high."""
    if not 0 < value[0] <= value[1]:
        raise ValueError("expected [lowest, highest], both above 0")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
Strength = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the images are and how they are read."""

    source: Literal["folder", "voc", "cityscapes", "coco", "loveda", "potsdam", "synthetic"] = Field(
        "folder",
        description="layout of the data set: folder (images/ + masks/ + classes.txt), voc, cityscapes, coco, loveda, "
        "potsdam or synthetic",
    )
    root: Path | None = Field(None, description="folder of the data set; --data sets it")
    split: str | None = Field(
        None, description="name of a partition under ROOT/splits, as `allspark split` writes it; null: the whole set"
    )
    labeled: Path | None = Field(
        None, description="list of the labelled images, one a line (`ID` or `IMAGE MASK`); overrides split"
    )
    unlabeled: Path | None = Field(
        None,
        description="list of the unlabelled images, or tar files of them: one, a folder of them, or a pattern "
        "(pool/*.tar); null: all training images that are not labelled",
    )
    unlabeled_order: Literal["random", "sharded"] = Field(
        "random",
        description="order of images in tar files: random, or sharded (one shuffled tar after the other, mixed within "
        "shuffle_buffer images), which disks and networks read faster",
    )
    shuffle_buffer: Positive = Field(4096, description="sharded order: images that are mixed [images]")
    val: Path | None = Field(None, description="list of the validation images; null: the data set's own")
    crop: Size = Field((513, 513), description="training crop, height and width [pixels]; one number for a square")
    batch_labeled: Positive = Field(2, description="labelled crops a step [images]")
    batch_unlabeled: Positive = Field(2, description="unlabelled crops a step [images]")
    workers: Count = Field(2, description="processes that read images; 0 reads in the main process")
    keep_decoded: Count = Field(
        128, description="labelled images that are kept decoded, as they come again and again [MB a worker]"
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="what an unreadable image does in training: stop names it and ends, skip takes the next"
    )
    max_pixels: Positive = Field(
        178_956_970, description="largest image that is decoded [pixels]; larger ones are refused"
    )


class ViewConfig(Section):
    """Random crops of training images. Geometry is joint for image and mask."""

    scale: Range = Field((0.5, 2.0), description="random resize, factor of the longer side [lowest, highest]")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.5, 0.5, 0.5, 0.25), description="labelled images: brightness, contrast, saturation, hue strength"
    )
    jitter_p: Probability = Field(0.8, description="labelled images: probability of colour jitter")
    grey_p: Probability = Field(0.2, description="labelled images: probability of greyscale")
    blur_sigma: Range = Field(
        (0.1, 2.0), description="labelled images: Gaussian blur [lowest, highest sigma in pixels]"
    )
    blur_p: Probability = Field(0.5, description="labelled images: probability of blur")
    supervise_padding: bool = Field(
        False, description="train unlabelled crops on their padding too, as the published code does"
    )


class ModelConfig(Section):
    """The network."""

    encoder: str = Field(
        "mit-b5",
        description="mit-b0 .. mit-b5, resnet-50, resnet-101, a transformers hub name or local folder, or a model type "
        "(swin, ...)",
    )
    encoder_config: dict[str, Any] = Field(
        default_factory=dict, description="fields of the encoder's transformers configuration to change"
    )
    pretrained: str = Field(
        "hub", description="encoder weights: hub, none, a transformers folder, or an NVlabs .pth file"
    )
    output_stride: Literal[8, 16] | None = Field(
        None,
        description="ResNet encoders: pixels for one step on the last feature map, by dilation; null: as built (32)",
    )
    drop_path: Probability = Field(0.1, description="stochastic depth of the encoder (only SegFormer and Swin know it)")
    activation_checkpointing: bool = Field(
        False,
        description="compute the encoder's blocks again in backward instead of keeping what is in them: the same, much "
        "less memory, slower",
    )
    decoder: Literal["segformer", "deeplabv3plus"] = Field(
        "segformer", description="from feature maps to logits: SegFormer's all-MLP head, or DeepLabV3+"
    )
    decoder_channels: Positive | None = Field(
        None,
        description="width of the decoder [channels]; null: 256 for deeplabv3plus and for encoders up to mit-b1's "
        "size, else 768",
    )
    decoder_dropout: Probability = Field(0.1, description="channel dropout before the classifier")
    bottleneck_heads: Positive = Field(2, description="heads of the channel attention (method allspark)")
    bottleneck_dropout: Probability = Field(0.1, description="dropout of attention and projections (method allspark)")


class MethodConfig(Section):
    """How labelled and unlabelled images are learned from."""

    name: Literal["supervised", "pseudo-label", "allspark"] = Field("allspark", description="the training method")
    memory: bool = Field(
        True, description="allspark: attend to the semantic memory; off: to the unlabelled images of the batch only"
    )
    grouping: Annotated[Literal["class-scores", "paper", "off"], BeforeValidator(_off)] = Field(
        "class-scores",
        description="allspark: how channels find their class: class-scores (as published code), paper, or off",
    )
    warmup_epochs: float = Field(5, ge=0, description="allspark: epochs before the memory is read [epochs]")
    labeled_loss: Literal["cross-entropy", "ohem"] = Field(
        "cross-entropy", description="loss of labelled images: cross-entropy, or ohem (hard pixels only)"
    )
    ohem_threshold: Probability = Field(0.7, description="ohem: a pixel is hard up to this probability of its class")
    ohem_min_kept: Count = Field(200_000, description="ohem: at least so many pixels of a batch count [pixels]")


class OptimConfig(Section):
    """SGD with the poly schedule lr (1 - step / steps)^power."""

    lr: float = Field(0.001, gt=0, description="initial learning rate of the encoder")
    head_multiplier: float = Field(10, gt=0, description="learning rate of all other layers, as a multiple of lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty")
    power: float = Field(0.9, ge=0, description="exponent of the poly schedule")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; null: no clipping")
    accumulate: Positive = Field(1, description="micro-batches added up for one weight update")
    lr_batch: Positive | None = Field(
        None,
        description="images an update, of all processes, that lr is meant for; with others lr grows or shrinks in "
        "proportion; null: lr is taken as it is",
    )


class TrainConfig(Section):
    """Length, precision and record of a run."""

    epochs: float = Field(80, gt=0, le=1e6, description="length of training [passes over the unlabelled images]")
    steps_per_epoch: Positive | None = Field(
        None, description="weight updates an epoch; null: one pass over the unlabelled (else the labelled) images"
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="arithmetic of the network: fp32, mixed bf16 or fp16, or fp64 (exactness tests)"
    )
    shard: bool = Field(
        False,
        description="several processes: divide weights, gradients and momentum among them (FSDP), for encoders that do "
        "not fit; slower",
    )
    compile: bool = Field(
        False,
        description="compile encoder and decoder by torch.compile: minutes at the start, no gain on a CPU, not "
        "measured on GPUs; needs a C++ compiler",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto: a GPU if there is one")
    log_every: Positive = Field(10, description="steps between two rows of the log [steps]")
    eval_every: Positive = Field(1, description="epochs between two validations [epochs]")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints, beside each epoch's end [steps]")
    keep_every: Positive | None = Field(
        None, description="steps between checkpoints that stay, beside last and best [steps]; null: none stays"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="what a loss that is not finite does: stop names the images and ends, skip goes on without the "
        "update (and keeps a copy of memory and statistics for it)",
    )
    begin_with: Path | None = Field(
        None, description="a run (its last checkpoint) or a checkpoint whose weights training begins with"
    )
    health_images: Count = Field(
        16,
        description="images of each kind that each validation watches the pseudo-labels on; 0: none",
    )


class EvalConfig(Section):
    """How whole images are predicted: in validation, `eval` and `predict`."""

    mode: Literal["whole", "window"] = Field("whole", description="whole image at once, or sliding window")
    window: Size = Field((801, 801), description="sliding window, height and width [pixels]")
    stride: Annotated[float, Field(gt=0, le=1)] = Field(
        2 / 3, description="distance of two windows, as a fraction of the window"
    )
    batch: Positive = Field(4, description="windows (or images of equal size) computed at once")
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field("fp32", description="arithmetic of the network")


class Config(Section):
    """The complete configuration of a run."""

    seed: int = Field(0, ge=0, strict=True, le=2**63 - 1, description="seed of weights, sampling, views and dropout")
    data: DataConfig = DataConfig()
    views: ViewConfig = ViewConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
