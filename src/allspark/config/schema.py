"""The configuration: every field typed, with its meaning and unit. A file names what differs from the defaults here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, field_validator

from allspark.config.fields import (
    Count,
    Dropout,
    OffAsText,
    Positive,
    Probability,
    Range,
    Section,
    Size,
    Strength,
    free,
)
from allspark.config.methods import AllSpark, MethodConfig, method_config


class DataConfig(Section):
    """Where the images are and how they are read."""

    source: str = free(
        "folder",
        description="layout of the data set: folder (images/ + masks/ + classes.txt), voc, cityscapes, coco, loveda, "
        "potsdam, synthetic, or one of a plug-in",
    )
    root: Path | None = free(None, description="folder of the data set; --data sets it")
    split: str | None = free(
        None, description="name of a partition under ROOT/splits, as `allspark split` writes it; null: the whole set"
    )
    labeled: Path | None = free(
        None, description="list of the labelled images, one a line (`ID` or `IMAGE MASK`); overrides split"
    )
    unlabeled: Path | None = free(
        None,
        description="list of the unlabelled images, or tar files of them: one, a folder of them, or a pattern "
        "(pool/*.tar); null: all training images that are not labelled",
    )
    pseudo: Path | None = free(
        None,
        description="list of images with pseudo masks (`IMAGE MASK` a line, as `allspark label` writes it), for the "
        "method that learns from them: st++",
    )
    unlabeled_order: Literal["random", "sharded"] = Field(
        "random",
        description="order of images in tar files: random, or sharded (one shuffled tar after the other, mixed within "
        "shuffle_buffer images), which disks and networks read faster",
    )
    shuffle_buffer: Positive = Field(4096, description="sharded order: images that are mixed [images]")
    val: Path | None = free(None, description="list of the validation images; null: the data set's own")
    crop: Size = Field((513, 513), description="training crop, height and width [pixels]; one number for a square")
    batch_labeled: Positive = Field(2, description="labelled crops a step [images]")
    batch_unlabeled: Positive = Field(2, description="unlabelled crops a step [images]")
    workers: Count = free(2, description="processes that read images; 0 reads in the main process")
    keep_decoded: Count = free(
        128, description="labelled images that are kept decoded, as they come again and again [MB a worker]"
    )
    on_bad_image: Literal["stop", "skip"] = free(
        "stop", description="what an unreadable image does in training: stop names it and ends, skip takes the next"
    )
    max_pixels: Positive = free(
        178_956_970, description="largest image that is decoded [pixels]; larger ones are refused"
    )
    white: float | None = Field(
        None,
        gt=0,
        description="value of images of more than 8 bits that is shown as white; null: as the values found say (255, "
        "1023, 4095, 16383 or 65535; floating point: 1), written into the run",
    )


class ViewConfig(Section):
    """Random crops of training images; strong views change their colours too (which is strong, the method says)."""

    scale: Range = Field((0.5, 2.0), description="random resize, factor of the longer side [lowest, highest]")
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.5, 0.5, 0.5, 0.25), description="strong views: brightness, contrast, saturation, hue strength"
    )
    jitter_p: Probability = Field(0.8, description="strong views: probability of colour jitter")
    grey_p: Probability = Field(0.2, description="strong views: probability of greyscale")
    blur_sigma: Range = Field((0.1, 2.0), description="strong views: Gaussian blur [lowest, highest sigma in pixels]")
    blur_p: Probability = Field(0.5, description="strong views: probability of blur")
    supervise_padding: bool = Field(
        False, description="train unlabelled crops on their padding too, as the published code does"
    )


Above0 = Annotated[float, Field(gt=0)]


class ModelConfig(Section):
    """The network."""

    encoder: str = Field(
        "mit-b5",
        description="efficientnet-lite0 (its weights are installed with AllSpark), mit-b0 .. mit-b5, resnet-50, "
        "resnet-101, a transformers hub name or local folder, or a model type (swin, ...)",
    )
    encoder_config: dict[str, Any] = Field(
        default_factory=dict, description="fields of the encoder's transformers configuration to change"
    )
    pretrained: str = free(
        "hub",
        description="encoder weights: hub (or the installed package), none, a transformers folder, or a .pth file of "
        "NVlabs or of EfficientNet-Lite0",
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="of red, green and blue, 0 to 1, taken off every image; null: as the encoder's weights want"
    )
    std: tuple[Above0, Above0, Above0] | None = Field(
        None, description="what it is divided by after that; null: as the encoder's weights want"
    )
    output_stride: Literal[8, 16] | None = Field(
        None,
        description="ResNet encoders: pixels for one step on the last feature map, by dilation; null: as built (32)",
    )
    multi_grid: bool = Field(
        False,
        description="with output_stride: the first block of the last stage is dilated by its rate, the second by twice "
        "and the third by four times that",
    )
    deep_stem: bool = Field(
        False, description="ResNet encoders: begin with three 3x3 convolutions in place of one of 7x7 (always new)"
    )
    freeze_encoder: bool = Field(
        False, description="leave the encoder as it is, weights and statistics; only what follows it learns"
    )
    drop_path: Probability = Field(0.1, description="stochastic depth of the encoder (only SegFormer and Swin know it)")
    activation_checkpointing: bool = free(
        False,
        description="compute the encoder's blocks again in backward instead of keeping what is in them: the result "
        "is the same, with much less memory and more time",
    )
    decoder: Literal["segformer", "deeplabv3plus", "dpt"] = Field(
        "segformer",
        description="from feature maps to logits: SegFormer's all-MLP head, DeepLabV3+, or DPT (for plain transformers "
        "such as DINOv2)",
    )
    decoder_channels: Positive | None = Field(
        None,
        description="width of the decoder [channels], of dpt that of its fusion; null: 256 for deeplabv3plus, 64 to "
        "384 for dpt as published for the encoder's width, 256 for segformer on encoders up to mit-b1's size, else 768",
    )
    decoder_dropout: Dropout = Field(0.1, description="channel dropout before the classifier")
    low_level_channels: Positive = Field(
        48, description="deeplabv3plus: what the finest feature map is reduced to [channels]; 256 in U2PL's family"
    )
    auxiliary_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the loss of a small head on the encoder's third feature map, added to the loss of "
        "labelled images; 0: no such head. Predictions never use it",
    )
    bottleneck: Literal["none", "allspark"] | None = Field(
        None,
        description="between encoder and decoder: none, or allspark (labelled features reborn from unlabelled ones), "
        "for methods with both in one pass; null: as the method has it",
    )
    bottleneck_heads: Positive = Field(2, description="heads of the channel attention")
    bottleneck_dropout: Dropout = Field(0.1, description="dropout of its attention and projections")
    bottleneck_memory: bool = Field(
        True, description="attend to the semantic memory; false: to the unlabelled images of the batch only"
    )
    bottleneck_grouping: Annotated[Literal["class-scores", "paper", "off"], OffAsText] = Field(
        "class-scores", description="how channels find their class: class-scores (as published code), paper, or off"
    )
    bottleneck_warmup_epochs: float = Field(5.0, ge=0, description="epochs before the memory is read [epochs]")
    bottleneck_gate: bool = Field(
        False,
        description="add what it makes to the feature map, times one learnt number a channel that begins at 0, so that "
        "a pretrained network is unchanged at first; false: replace the map, as published",
    )
    bottleneck_own: Probability = Field(
        0.0,
        description="probability that a labelled image attends in training to its own channels, as all do in "
        "inference, instead of the memory's",
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Optimiser and schedule: linear warm-up, then poly, lr (1 - step / steps)^power, or cosine."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd (with momentum), or adamw")
    lr: float = Field(0.001, gt=0, description="initial learning rate of the encoder")
    head_multiplier: float = Field(10, gt=0, description="learning rate of all other layers, as a multiple of lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adamw: decay of both moments")
    weight_decay: float = Field(1e-4, ge=0, description="sgd: L2 penalty; adamw: decoupled decay")
    decay_norms: bool = Field(True, description="decay norms and biases too; false: only what has two axes or more")
    schedule: Literal["poly", "cosine"] = Field("poly", description="how the learning rate falls to 0")
    power: float = Field(0.9, ge=0, description="poly: exponent")
    warmup_steps: Count = Field(0, description="weight updates in which the learning rate rises linearly [steps]")
    clip_norm: float | None = free(None, gt=0, description="largest norm of the whole gradient; null: no clipping")
    accumulate: Positive = Field(1, description="micro-batches added up for one weight update")
    lr_batch: Positive | None = Field(
        None,
        description="images an update, labelled and unlabelled of all processes, that lr is meant for; with others lr "
        "grows or shrinks in proportion; null: lr is taken as it is",
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
    shard: bool = free(
        False,
        description="several processes: divide weights, gradients and momentum among them (FSDP), for encoders that do "
        "not fit; slower",
    )
    compile: bool = Field(
        False,
        description="compile encoder and decoder by torch.compile: minutes at the start, no gain on a CPU, not "
        "measured on GPUs; needs a C++ compiler",
    )
    device: Literal["auto", "cpu", "cuda"] = free("auto", description="where to compute; auto: a GPU if there is one")
    log_every: Positive = free(10, description="steps between two rows of the log [steps]")
    eval_every: Positive = free(1, description="epochs between two validations [epochs]")
    checkpoint_every: Positive = free(500, description="steps between checkpoints, beside each epoch's end [steps]")
    keep_every: Positive | None = free(
        None, description="steps between checkpoints that are never replaced [steps]; null: only last and best are kept"
    )
    on_nan: Literal["stop", "skip"] = free(
        "stop",
        description="what a loss or a gradient that is not finite does: stop names the images and ends, skip goes on "
        "without the update (and keeps a copy of memory and statistics for it)",
    )
    begin_with: Path | None = free(
        None, description="a run (its last checkpoint) or a checkpoint whose weights training begins with"
    )
    health_images: Count = free(
        16,
        description="images of each kind that each validation watches the pseudo-labels on; 0: none",
    )


class EvalConfig(Section):
    """How whole images are predicted: in validation, `eval`, `predict` and `label`."""

    mode: Literal["whole", "window"] = Field("whole", description="whole image at once, or sliding window")
    window: Size = Field((801, 801), description="sliding window, height and width [pixels]")
    stride: Annotated[float, Field(gt=0, le=1)] = Field(
        2 / 3, description="distance of two windows, as a fraction of the window"
    )
    batch: Positive = free(4, description="windows (or images of equal size) computed at once")
    compare: bool = free(
        False,
        description="score at each validation, beside the network that is deployed, the others that could be (student "
        "and teacher, both networks of cps and their mean): a pass over the validation images for each",
    )
    memory: bool = Field(
        False,
        description="networks with a semantic memory: attend to it, as labelled images do in training; false: each "
        "image attends to its own channels, as published (and while the memory is empty)",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field("fp32", description="arithmetic of the network")


class Config(Section):
    """The complete configuration of a run."""

    seed: int = Field(0, ge=0, strict=True, le=2**63 - 1, description="seed of weights, sampling, views and dropout")
    data: DataConfig = DataConfig()
    views: ViewConfig = ViewConfig()
    model: ModelConfig = ModelConfig()
    method: SerializeAsAny[MethodConfig] = AllSpark()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @field_validator("method", mode="wrap")
    @classmethod
    def _by_name(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> MethodConfig:
        """The settings of the method that ``name`` says."""
        if isinstance(value, MethodConfig):
            return value
        if not isinstance(value, Mapping):
            return handler(value)  # type: ignore[no-any-return]
        return method_config(str(value.get("name", AllSpark().name))).model_validate(value)
