"""Photometric changes of a crop out of a list: some at random, each as strong as chance says (AugSeg).

Zhao et al., *Augmentation Matters*, CVPR 2023: one to three of eleven changes, an equal chance each, with replacement,
in the order drawn. Contrast, brightness, colour and sharpness only ever weaken. All are Pillow's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from allspark.data.colour import shift_hue

Change = Callable[[Image.Image, float], Image.Image]
"""An RGB image, and a number from [0, 1) that its strength follows from."""

_MOST = 3  # changes of one crop


def _blur(image: Image.Image, chance: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * chance))  # sigma 0.1 .. 2 pixels


def _weaken(enhance: Callable[[Image.Image], ImageEnhance._Enhance], image: Image.Image, chance: float) -> Image.Image:
    return enhance(image).enhance(0.95 - 0.9 * chance)  # down to 0.05 of what it was


CHANGES: dict[str, Change] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalise": lambda image, _: ImageOps.equalize(image),
    "blur": _blur,
    "contrast": partial(_weaken, ImageEnhance.Contrast),
    "brightness": partial(_weaken, ImageEnhance.Brightness),
    "colour": partial(_weaken, ImageEnhance.Color),
    "sharpness": partial(_weaken, ImageEnhance.Sharpness),
    "posterise": lambda image, chance: ImageOps.posterize(image, 4 + int(4 * chance)),  # 4 .. 7 bits
    "solarise": lambda image, chance: ImageOps.solarize(image, 1 + int(255 * chance)),  # from 1 .. 255 on
    "hue": lambda image, chance: shift_hue(image, chance - 0.5),  # half of the circle either way
}


def draw_changes(rng: np.random.Generator) -> list[tuple[str, float]]:
    """Draw one crop's changes: how many, then three times which and how strong, whatever their number."""
    count = int(rng.integers(1, _MOST, endpoint=True))
    names = list(CHANGES)
    drawn = [(names[int(rng.integers(len(names)))], float(rng.random())) for _ in range(_MOST)]
    return drawn[:count]


def change_colours(image: Image.Image, changes: list[tuple[str, float]]) -> Image.Image:
    """Apply what was drawn to a whole crop, RGB."""
    for name, chance in changes:
        image = CHANGES[name](image, chance)
    return image
