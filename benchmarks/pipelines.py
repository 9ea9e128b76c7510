"""From files to batches, and from images to scores: plain Pillow and one image at a time against the product."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from allspark.batch import IMAGENET, Views
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.data.sets import open_source
from allspark.data.sets.synthetic import generate
from allspark.data.source import Sample, Source
from allspark.data.stream import TrainStream
from allspark.inference.evaluate import evaluate
from allspark.inference.predictor import Predictor
from benchmarks import textbook
from benchmarks.cases import Call, Case, Goal
from benchmarks.measure import Work, temporary_folder
from benchmarks.networks import build_network, build_textbook

_SHARED = Path(os.environ.get("ALLSPARK_SHARED", Path(__file__).parents[2] / "shared"))
_VOC = _SHARED / "data" / "voc-mini"


def data_case(crop: int, steps: int, large: bool = False) -> Case:
    """Batches of 2 + 2 crops from image files, in the process that asks for them.

    ``large``: generated scenes of 2048 x 1024 pixels, as Cityscapes', instead of photographs.
    """

    def product(*changes: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            source, config = _pictures(crop, *changes, large=large)
            stream = TrainStream(source, config.data, config.views, Views(), seed=config.seed, rank=0, world=1)

            def batches(_: None) -> None:
                for step in range(steps):
                    stream[step]

            return Call(batches, lambda: None)

        return build

    def plain(device: str) -> Work:
        source, _ = _pictures(crop, large=large)

        def batches(_: None) -> None:
            rng = random.Random(0)
            for step in range(steps):
                pair = (2 * step, 2 * step + 1)
                for read, samples in ((plain_labeled, source.labeled), (plain_unlabeled, source.unlabeled)):
                    views = [read(samples[i % len(samples)], crop, rng) for i in pair]
                    for tensors in zip(*views, strict=True):
                        torch.stack(tensors)

        return Call(batches, lambda: None)

    return Case(
        "data",
        f"crops of {crop} px of {_pictured(large)}, one process",
        {"plain Pillow": plain, "product, nothing kept": product("data.keep_decoded=0"), "product": product()},
        Goal(speed=1.5),
        units=(4 * steps, "images"),
    )


def plain_labeled(sample: Sample, crop: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """UniMatch's labelled view, step by step with Pillow: (3, crop, crop) float and (crop, crop) long."""
    assert sample.mask is not None and isinstance(sample.image, Path)
    image, mask = _plain_geometry(Image.open(sample.image).convert("RGB"), Image.open(sample.mask), crop, rng)
    if rng.random() < 0.8:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.5, 1.5))
        hue, saturation, value = image.convert("HSV").split()
        shifted = (np.asarray(hue).astype(np.int16) + int(rng.uniform(-0.25, 0.25) * 255)).astype(np.uint8)
        image = Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
    if rng.random() < 0.2:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return _plain_tensor(image), torch.from_numpy(np.array(mask)).long()


def plain_unlabeled(sample: Sample, crop: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """The unlabelled view: (3, crop, crop) float, and where the image is."""
    assert isinstance(sample.image, Path)
    image = Image.open(sample.image).convert("RGB")
    image, inside = _plain_geometry(image, Image.new("L", image.size), crop, rng)
    return _plain_tensor(image), torch.from_numpy(np.array(inside)) != 255


def _plain_geometry(
    image: Image.Image, mask: Image.Image, crop: int, rng: random.Random
) -> tuple[Image.Image, Image.Image]:
    width, height = image.size
    long = rng.randint(int(max(width, height) * 0.5), int(max(width, height) * 2.0))
    ratio = long / max(width, height)
    size = (long, int(height * ratio + 0.5)) if width >= height else (int(width * ratio + 0.5), long)
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    padding = (0, 0, max(0, crop - size[0]), max(0, crop - size[1]))
    image, mask = ImageOps.expand(image, padding, fill=0), ImageOps.expand(mask, padding, fill=255)
    left, top = rng.randint(0, image.width - crop), rng.randint(0, image.height - crop)
    box = (left, top, left + crop, top + crop)
    image, mask = image.crop(box), mask.crop(box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image, mask


def _plain_tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
    return (values - torch.tensor(IMAGENET.mean)[:, None, None]) / torch.tensor(IMAGENET.std)[:, None, None]


def scoring_case(encoder: str, count: int) -> Case:
    """Score whole images of about 500 x 375 pixels, from files to the score."""

    def product(*changes: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            source, config = _pictures(513, f"model.encoder={encoder}", *changes)
            predictor = Predictor(build_network(config, source.num_classes), config.eval, device)

            def score(_: None) -> None:
                samples = source.val[:count]
                evaluate(predictor, samples, source, workers=1, max_pixels=config.data.max_pixels)

            return Call(score, lambda: None)

        return build

    def plain(device: str) -> Work:
        source, _ = _pictures(513)
        model = build_textbook(encoder, 513, source.num_classes, "eager").to(device).eval()

        def score(_: None) -> None:
            hits, union = np.zeros(source.num_classes), np.zeros(source.num_classes)
            for sample in source.val[:count]:
                assert isinstance(sample.image, Path) and sample.mask is not None
                image = _plain_tensor(Image.open(sample.image).convert("RGB"))[None]
                found = textbook.pseudo_scores(model, image.to(device)).argmax(1)[0].cpu().numpy()
                _count(found, np.array(Image.open(sample.mask)), hits, union)

        return Call(score, lambda: None)

    return Case(
        "evaluation",
        f"MiT-{encoder[-2:].upper()}, {_pictured()}, files to mIoU",
        {"textbook": plain, "product, bf16": product("eval.precision=bf16"), "product": product()},
        Goal(speed=2),
        units=(count, "images"),
    )


def _count(found: NDArray[Any], mask: NDArray[Any], hits: NDArray[Any], union: NDArray[Any]) -> None:
    """Intersections and unions of an image by histograms, as the published evaluation has them."""
    found = np.where(mask == 255, 255, found)
    bins = np.arange(len(hits) + 1)
    both = np.histogram(found[found == mask], bins)[0]
    hits += both
    union += np.histogram(found, bins)[0] + np.histogram(mask, bins)[0] - both


def window_case(encoder: str, height: int, width: int, window: int) -> Case:
    """Class ids of one large image by a sliding window."""

    def draw(device: str) -> Tensor:
        return torch.randn(1, 3, height, width, device=device)

    def product(*changes: str) -> Callable[[str], Work]:
        def build(device: str) -> Work:
            settings = ["eval.mode=window", f"eval.window=[{window},{window}]", f"model.encoder={encoder}", *changes]
            config = apply_overrides(Config(), ["model.pretrained=none", f"data.crop={window}", *settings])
            predictor = Predictor(build_network(config, 19), config.eval, device)
            return Call(predictor.labels, lambda: draw(device))

        return build

    def plain(device: str) -> Work:
        model = build_textbook(encoder, window, 19, "eager").to(device).eval()
        step = int(window * 2 / 3)

        def labels(image: Tensor) -> None:
            total = torch.zeros(1, 19, height, width, device=device)
            for row in range(math.ceil((height - window) / step) + 1):
                for column in range(math.ceil((width - window) / step) + 1):
                    top, left = min(row * step, height - window), min(column * step, width - window)
                    crop = image[:, :, top : top + window, left : left + window]
                    scores = textbook.pseudo_scores(model, crop).softmax(1)
                    total[:, :, top : top + window, left : left + window] += scores
            total.argmax(1)

        return Call(labels, lambda: draw(device))

    return Case(
        "evaluation",
        f"MiT-{encoder[-2:].upper()}, {width} x {height} px, windows of {window}",
        {"textbook": plain, "product, bf16": product("eval.precision=bf16"), "product": product()},
        Goal(speed=2),
        repeats=1,
    )


def cases(quick: bool) -> list[Case]:
    """Loading, whole images, sliding windows."""
    if quick:
        return [data_case(129, 1), scoring_case("mit-b0", 2), window_case("mit-b0", 96, 160, 64)]
    return [
        data_case(513, 50),
        data_case(801, 5, large=True),
        scoring_case("mit-b0", 16),
        window_case("mit-b0", 1024, 2048, 801),
    ]


def _pictured(large: bool = False) -> str:
    """What the figures are about."""
    if large:
        return "generated scenes of 2048 x 1024"
    return "photographs of about 500 x 375" if _VOC.is_dir() else "generated scenes of 500 x 375"


@cache
def _folder(large: bool) -> Path:
    """Photographs of PASCAL VOC where they are at hand, else generated scenes of the same size."""
    if not large and _VOC.is_dir():
        return _VOC
    root = temporary_folder() / "scenes"
    count, size = (4, (1024, 2048)) if large else (16, (375, 500))
    generate(root, labeled=count, unlabeled=count, val=count, size=size)
    return root


def _pictures(crop: int, *changes: str, large: bool = False) -> tuple[Source, Config]:
    root = _folder(large)
    voc = [
        "data.source=voc",
        f"data.labeled={_VOC}/splits/mini/half/labeled.txt",
        f"data.unlabeled={_VOC}/splits/mini/half/unlabeled.txt",
    ]
    layout = voc if root == _VOC else ["data.source=folder"]
    fixed = [f"data.root={root}", f"data.crop={crop}", "model.pretrained=none"]
    config = apply_overrides(Config(), [*fixed, *layout, *changes])
    return open_source(config.data), config
