"""What is measured: the same work by the product and by the textbook version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from allspark.config import Config
from allspark.engine.optim import build_optimizer
from allspark.inference.predictor import Predictor
from allspark.methods import build_method
from allspark.models.allspark import AllSparkBottleneck
from allspark.models.decoders import SegformerHead
from allspark.models.segmenter import build_segmenter
from allspark.types import Guide, LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from benchmarks import textbook
from benchmarks.measure import Work

WIDTHS = (64, 128, 320, 512)  # MiT-B1 .. B5
PARTS = ("head", "bottleneck", "step", "inference")


@dataclass(frozen=True)
class Goal:
    """At least so many times faster, at most this share of the memory."""

    speed: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Case:
    """One line of the table. Each variant builds its work: the first is the baseline, the last the product."""

    part: str
    name: str
    variants: dict[str, Callable[[str], Work]]
    repeats: int
    goal: Goal = field(default=Goal())


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
class Call:
    """A function of random inputs."""

    function: Callable[[Any], Any]
    draw: Callable[[], Any]

    def inputs(self) -> Any:
        """Return new random arguments."""
        return self.draw()

    def run(self, inputs: Any) -> None:
        """Call once."""
        self.function(inputs)


def sizes(crop: int) -> list[int]:
    """Side of MiT's four feature maps."""
    return [-(-crop // stride) for stride in (4, 8, 16, 32)]


def head_case(crop: int, repeats: int, goal: Goal | None = None) -> Case:
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
        repeats,
        goal or Goal(),
    )


def bottleneck_case(crop: int, images: int, classes: int, repeats: int, channels: int = 512) -> Case:
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
        repeats,
    )


def step_case(encoder: str, crop: int, images: int, classes: int, repeats: int, goal: Goal | None = None) -> Case:
    """A whole training step: eval pass, forward, losses, backward, SGD; the memory is read."""
    config = _config(encoder, crop)

    def draw(device: str) -> TrainBatch:
        image = torch.randn(2, images, 3, crop, crop, device=device)
        mask = torch.randint(classes, (images, crop, crop), device=device)
        return TrainBatch(LabeledBatch(image[0], mask), UnlabeledBatch(image[1]))

    def product(device: str) -> Work:
        method = build_method(config, classes).to(device).train()
        optimizer = build_optimizer(method, config.optim)
        progress = Progress(step=10_000, steps_per_epoch=1, total_steps=20_000)

        def step(batch: TrainBatch) -> None:
            output = method(batch, progress)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(progress)

        return Call(step, lambda: draw(device))

    def plain(attention: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            model = _textbook(encoder, crop, classes, attention).to(device).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
            return Call(
                lambda batch: textbook.textbook_step(model, optimizer, batch, read_memory=True), lambda: draw(device)
            )

        return build

    return Case(
        "step",
        f"MiT-{encoder[-2:].upper()}, {crop} px, {classes} classes, {images} + {images} images",
        {"textbook": plain("eager"), "textbook, sdpa": plain("sdpa"), "product": product},
        repeats,
        goal or Goal(),
    )


def inference_case(encoder: str, size: int, batch: int, repeats: int) -> Case:
    """From normalised images to class ids."""

    def draw(device: str) -> Tensor:
        return torch.randn(batch, 3, size, size, device=device)

    def product(device: str) -> Work:
        config = _config(encoder, size)
        predictor = Predictor(build_segmenter(config, 21), config.eval, device)
        return Call(predictor.labels, lambda: draw(device))

    def plain(attention: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            model = _textbook(encoder, size, 21, attention).to(device).eval()
            return Call(lambda image: textbook.pseudo_scores(model, image).argmax(1), lambda: draw(device))

        return build

    return Case(
        "inference",
        f"MiT-{encoder[-2:].upper()}, {size} x {size} px, batch {batch}",
        {"textbook": plain("eager"), "textbook, sdpa": plain("sdpa"), "product": product},
        repeats,
    )


def all_cases(quick: bool, parts: Sequence[str] = PARTS) -> list[Case]:
    """Return the cases; ``quick`` has small ones that only show that everything runs."""
    if quick:
        cases = [
            head_case(129, 2),
            bottleneck_case(129, 1, 5, 2, channels=128),
            step_case("mit-b0", 129, 1, 5, 2),
            inference_case("mit-b0", 128, 1, 2),
        ]
    else:
        cases = [
            head_case(513, 5, Goal(speed=3)),
            *(bottleneck_case(513, images, classes, 3) for classes in (21, 81) for images in (1, 2)),
            step_case("mit-b2", 513, 1, 21, 3, Goal(speed=1.5, memory=0.6)),
            inference_case("mit-b0", 512, 1, 7),
            inference_case("mit-b2", 512, 1, 5),
        ]
    return [case for case in cases if case.part in parts]


def _config(encoder: str, crop: int) -> Config:
    return Config.model_validate(
        {"data": {"crop": crop}, "model": {"encoder": encoder, "pretrained": "none"}, "method": {"name": "allspark"}}
    )


def _textbook(encoder: str, crop: int, classes: int, attention: str) -> textbook.TextbookSegmenter:
    config = textbook.mit_config(encoder, attention)
    widths, side = tuple(config.hidden_sizes), sizes(crop)[-1]
    return textbook.TextbookSegmenter(
        textbook.build_encoder(config),
        textbook.TextbookBottleneck(widths[-1], classes, (side, side)),
        textbook.TextbookHead(widths, 256 if encoder in ("mit-b0", "mit-b1") else 768, classes),
    )
