"""The network and its parts: the same work by the textbook version and by the product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from allspark.batch import LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.config.files import apply_overrides
from allspark.config.resolve import network_config
from allspark.config.schema import Config
from allspark.engine.optim import build_optimizer
from allspark.inference.predictor import Predictor
from allspark.methods import build_method
from allspark.models.allspark import AllSparkBottleneck, Guide
from allspark.models.decoders import SegformerHead
from allspark.models.segmenter import Segmenter, build_segmenter
from benchmarks import textbook
from benchmarks.cases import Call, Case, Goal
from benchmarks.measure import Work

WIDTHS = (64, 128, 320, 512)  # MiT-B1 .. B5
CROPS, CLASSES, BATCHES = (257, 513, 801), (2, 21, 81, 150), (1, 2, 4, 8, 16)  # scaling; images of both kinds together


@dataclass
class ForwardBackward:
    """A module's forward and backward pass."""

    module: nn.Module
    draw: Callable[[], tuple[Any, ...]]

    def inputs(self) -> tuple[Any, ...]:
        """Return new random arguments."""
        return self.draw()

    def run(self, inputs: tuple[Any, ...]) -> None:
        """Forward and backward once."""
        out = self.module(*inputs)
        out.backward(torch.ones_like(out))
        self.module.zero_grad()


@dataclass
class TrainingStep:
    """Losses, their gradients and the update of a network."""

    model: Segmenter | textbook.TextbookSegmenter
    loss: Callable[[TrainBatch], Tensor]
    update: Callable[[], None]
    draw: Callable[[], TrainBatch]

    def inputs(self) -> TrainBatch:
        """Return a new random batch."""
        return self.draw()

    def run(self, inputs: TrainBatch) -> None:
        """Learn from a batch."""
        torch.autograd.backward(self.loss(inputs))
        self.update()


def sizes(crop: int) -> list[int]:
    """Side of MiT's four feature maps."""
    return [-(-crop // stride) for stride in (4, 8, 16, 32)]


def head_case(crop: int) -> Case:
    """SegFormer's head on the maps of a batch of two."""

    def draw(device: str) -> list[Tensor]:
        shapes = [(2, c, n, n) for c, n in zip(WIDTHS, sizes(crop), strict=True)]
        return [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]

    def work(make: Callable[..., nn.Module]) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            head = make(WIDTHS, 768, 21).to(device).train()
            return ForwardBackward(head, lambda: (draw(device),))

        return build

    return Case(
        "head",
        f"forward + backward, 768 wide, 21 classes, {crop} px, batch 2",
        {"textbook": work(textbook.TextbookHead), "product": work(SegformerHead)},
        Goal(speed=3),
    )


def bottleneck_case(crop: int, images: int, classes: int, channels: int = 512) -> Case:
    """The bottleneck with a memory to read, as many labelled as unlabelled images."""
    side = sizes(crop)[-1]

    def draw(device: str) -> tuple[Tensor, Guide]:
        feature = torch.randn(2 * images, channels, side, side, device=device, requires_grad=True)
        scores = torch.randn(images, classes, 4 * side, 4 * side, device=device)
        return feature, Guide(images, scores, read_memory=True)

    def work(make: Callable[..., nn.Module]) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            module = make(channels, classes, (side, side)).to(device).train()
            return ForwardBackward(module, lambda: draw(device))

        return build

    return Case(
        "bottleneck",
        f"forward + backward, {classes} classes, {crop} px, {images} + {images} images",
        {"textbook": work(textbook.TextbookBottleneck), "product": work(AllSparkBottleneck)},
        Goal(speed=1.5, memory=0.3),
    )


def step_variants(encoder: str, crop: int, images: int, classes: int) -> dict[str, Callable[[str], TrainingStep]]:
    """A whole training step: eval pass, forward, losses, backward, SGD; the memory is read.

    ``images`` is even, half of them are labelled.
    """

    def draw(device: str) -> TrainBatch:
        image = torch.randn(images, 3, crop, crop, device=device)
        labeled, rest = image.tensor_split(2)
        mask = torch.randint(classes, (len(labeled), crop, crop), device=device)
        return TrainBatch(LabeledBatch(labeled, mask), UnlabeledBatch(rest))

    def product(*changes: str) -> Callable[[str], TrainingStep]:
        def build(device: str) -> TrainingStep:
            config = _config(encoder, crop, *changes)
            method = build_method(config, classes).to(device).train()
            optimizer = build_optimizer(method, config.optim)
            progress = Progress(step=10_000, steps_per_epoch=1, total_steps=20_000)
            precision = {"bf16": torch.bfloat16}.get(config.train.precision)

            def loss(batch: TrainBatch) -> Tensor:
                with torch.autocast(device, precision, enabled=precision is not None):
                    output: Tensor = method(batch, progress).loss
                return output

            def update() -> None:
                optimizer.step()
                optimizer.zero_grad()
                method.after_step(progress)

            return TrainingStep(method.segmenter, loss, update, lambda: draw(device))

        return build

    def plain(attention: str) -> Callable[[str], TrainingStep]:
        def build(device: str) -> TrainingStep:
            model = build_textbook(encoder, crop, classes, attention).to(device).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)

            def loss(batch: TrainBatch) -> Tensor:
                return textbook.textbook_losses(model, batch, read_memory=True)[-1]

            def update() -> None:
                optimizer.step()
                optimizer.zero_grad()

            return TrainingStep(model, loss, update, lambda: draw(device))

        return build

    return {
        "textbook": plain("eager"),
        "textbook, sdpa": plain("sdpa"),
        "product, bf16": product("train.precision=bf16"),
        "product, activation checkpointing": product("model.activation_checkpointing=true"),
        "product": product(),
    }


def step_case(encoder: str, crop: int, images: int, classes: int, turns: int = 3, goal: Goal | None = None) -> Case:
    """A training step in all ways."""
    return Case(
        "step",
        step_name(encoder, crop, images, classes),
        {**step_variants(encoder, crop, images, classes)},
        goal or Goal(),
        turns,
        warmups=2,
        repeats=1,
        units=(images, "images"),
    )


def growing_step_case(encoder: str, crop: int, images: int, classes: int) -> Case:
    """A point of the curves that say how a step grows."""
    variants = step_variants(encoder, crop, images, classes)
    return Case(
        "scaling",
        step_name(encoder, crop, images, classes),
        {name: variants[name] for name in ("textbook", "product")},
        turns=1,
        repeats=1,
        units=(images, "images"),
        growth=(classes, crop, images),
    )


def step_name(encoder: str, crop: int, images: int, classes: int) -> str:
    """What a step is called in tables."""
    return f"MiT-{encoder[-2:].upper()}, {crop} px, {classes} classes, {images // 2} + {images // 2} images"


def inference_case(encoder: str, size: int, batch: int, goal: Goal | None = None, repeats: int = 5) -> Case:
    """From normalised images to class ids."""

    def product(*changes: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            config = _config(encoder, size, *changes)
            predictor = Predictor(build_network(config, 21), config.eval, device)
            return Call(predictor.labels, lambda: _images(batch, size, device))

        return build

    def plain(attention: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            model = build_textbook(encoder, size, 21, attention).to(device).eval()
            return Call(
                lambda image: textbook.pseudo_scores(model, image).argmax(1), lambda: _images(batch, size, device)
            )

        return build

    return Case(
        "inference",
        f"MiT-{encoder[-2:].upper()} with bottleneck, {size} x {size} px, batch {batch}",
        {
            "textbook": plain("eager"),
            "textbook, sdpa": plain("sdpa"),
            "product, bf16": product("eval.precision=bf16"),
            "product, memory": product("eval.memory=true"),
            "product": product(),
        },
        goal or Goal(),
        repeats=repeats,
        units=(batch, "images"),
    )


def segformer_case(encoder: str, size: int, batch: int, goal: Goal | None = None) -> Case:
    """Plain SegFormer, transformers' own against ours with the same weights."""

    def theirs(device: str) -> Work:
        model = transformers_segformer(encoder).to(device).eval()

        @torch.inference_mode()
        def labels(image: Tensor) -> Tensor:
            logits = model(pixel_values=image).logits
            return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False).argmax(1)

        return Call(labels, lambda: _images(batch, size, device))

    def product(device: str) -> Work:
        config = _config(encoder, size)
        predictor = Predictor(same_weights(transformers_segformer(encoder), encoder), config.eval, device)
        return Call(predictor.labels, lambda: _images(batch, size, device))

    name = f"MiT-{encoder[-2:].upper()}, plain SegFormer, {size} x {size} px, batch {batch}"
    variants = {"transformers": theirs, "product": product}
    return Case("inference", name, variants, goal or Goal(), repeats=5, units=(batch, "images"))


def transformers_segformer(encoder: str, classes: int = 21) -> SegformerForSemanticSegmentation:
    """Build transformers' network with its fastest attention, randomly initialised, layer-norm eps as published."""
    config = SegformerConfig(**textbook.mit_config(encoder, "sdpa").to_diff_dict())
    config.num_labels, config.decoder_hidden_size = classes, 256 if encoder in ("mit-b0", "mit-b1") else 768
    model = SegformerForSemanticSegmentation(config)
    textbook.set_eps(model)
    return model


def same_weights(model: SegformerForSemanticSegmentation, encoder: str) -> Segmenter:
    """Our network with the weights of transformers'."""
    classes = model.config.num_labels
    segmenter = build_network(_config(encoder, 513, "method.name=supervised"), classes)
    segmenter.encoder.body.load_state_dict(model.segformer.state_dict())
    theirs, renamed = model.decode_head.state_dict(), {}
    for name, tensor in theirs.items():
        for old, new in _HEAD_NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    segmenter.decoder.load_state_dict(renamed)
    return segmenter


_HEAD_NAMES = (
    ("linear_projections.", "stages."),
    ("linear_c.", "stages."),
    (".proj.", "."),
    ("linear_fuse.", "fuse."),
    ("batch_norm.", "norm."),
)


def cases(quick: bool) -> list[Case]:
    """Heads, bottlenecks, steps, inference, and how steps grow."""
    if quick:
        return [
            head_case(129),
            bottleneck_case(129, 1, 5, channels=128),
            step_case("mit-b0", 129, 2, 5, turns=1),
            inference_case("mit-b0", 128, 1),
            segformer_case("mit-b0", 128, 1),
            growing_step_case("mit-b0", 65, 2, 5),
        ]
    small, large = Goal(speed=2), Goal(speed=1.5)
    shapes = {
        *((513, k, 4) for k in CLASSES),
        *((crop, 21, 4) for crop in CROPS),
        *((513, 21, images) for images in BATCHES if images > 1),
    }
    return [
        head_case(513),
        *(bottleneck_case(513, images, classes) for classes, images in ((21, 2), (81, 2), (81, 4))),
        step_case("mit-b5", 513, 4, 21, turns=2, goal=Goal(speed=2, memory=0.5)),
        step_case("mit-b2", 513, 2, 21),
        *(inference_case("mit-b0", 512, batch, small) for batch in (1, 8)),
        *(inference_case("mit-b5", 512, batch, large, repeats=repeats) for batch, repeats in ((1, 5), (8, 1))),
        *(segformer_case("mit-b0", 512, batch, large) for batch in (1, 8)),
        *(growing_step_case("mit-b0", crop, images, classes) for crop, classes, images in sorted(shapes)),
    ]


def _images(batch: int, size: int, device: str) -> Tensor:
    return torch.randn(batch, 3, size, size, device=device)


def _config(encoder: str, crop: int, *changes: str) -> Config:
    config = Config.model_validate(
        {"data": {"crop": crop}, "model": {"encoder": encoder, "pretrained": "none"}, "method": {"name": "allspark"}}
    )
    return apply_overrides(config, list(changes))


def build_network(config: Config, classes: int) -> Segmenter:
    """The network of a configuration, with the bottleneck that its method has."""
    return build_segmenter(network_config(config), classes, config.data.crop)


def build_textbook(encoder: str, crop: int, classes: int, attention: str) -> textbook.TextbookSegmenter:
    config = textbook.mit_config(encoder, attention)
    widths, side = tuple(config.hidden_sizes), sizes(crop)[-1]
    return textbook.TextbookSegmenter(
        textbook.build_encoder(config),
        textbook.TextbookBottleneck(widths[-1], classes, (side, side)),
        textbook.TextbookHead(widths, 256 if encoder in ("mit-b0", "mit-b1") else 768, classes),
    )
