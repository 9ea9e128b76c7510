"""Photometric changes of a crop: colour jitter, greyscale, blur.

The semantics are those of Pillow as torchvision's ``ColorJitter``, ``RandomGrayscale`` and UniMatch's blur use it,
bit by bit; only a hue shift that rounds to zero is left out instead of sent through HSV and back. Two things are
faster: brightness and contrast are one table look-up each, and the hue shift goes through tables instead of Pillow's
two conversions (a third of the time).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from allspark.config.schema import ViewConfig

_CHUNK = 16_384  # pixels: the temporaries of a hue shift then stay in the cache


@dataclass(frozen=True)
class Colour:
    """What was drawn for one crop. Factors are 1 and ``hue`` is 0 where nothing changes.

    Attributes:
        order: order of the jitter's four parts; 0 brightness, 1 contrast, 2 saturation, 3 hue.
        brightness: factor.
        contrast: factor.
        saturation: factor.
        hue: shift as a fraction of the colour circle, -0.5 .. 0.5.
        grey: take the colour away.
        sigma: of the Gaussian blur [pixels]; None: no blur.
    """

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: bool
    sigma: float | None

    @property
    def reach(self) -> int:
        """How far a pixel can be changed by another one, an upper bound [pixels]."""
        # Pillow's Gaussian is three box blurs of half width below sigma + 1 each.
        return 0 if self.sigma is None else 3 * (int(self.sigma) + 3)


def draw_colour(config: ViewConfig, rng: np.random.Generator) -> Colour:
    """Draw one crop's changes: jitter or not, order, four factors, grey or not, blur or not, sigma, in this order.

    All numbers are drawn whatever they decide, so that changing a probability changes nothing else.
    """
    jitter = bool(rng.random() < config.jitter_p)
    order = tuple(int(part) for part in rng.permutation(4))
    bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in config.jitter[:3]]
    brightness, contrast, saturation = (float(rng.uniform(low, high)) for low, high in bounds)
    hue = float(rng.uniform(-config.jitter[3], config.jitter[3]))
    grey = bool(rng.random() < config.grey_p)
    blur = bool(rng.random() < config.blur_p)
    sigma = float(rng.uniform(*config.blur_sigma))
    if not jitter:
        brightness = contrast = saturation = 1.0
        hue = 0.0
    return Colour(order, brightness, contrast, saturation, hue, grey, sigma if blur else None)


def recolour(image: Image.Image, colour: Colour, missing: int = 0) -> Image.Image:
    """Apply what was drawn.

    Args:
        image: RGB.
        colour: from `draw_colour`.
        missing: pixels of the crop that are not in ``image`` and have the colour of its last pixel (uniform padding).
            Only contrast, which depends on the mean of the whole crop, needs their number.

    Returns:
        RGB, same size.
    """
    for part in colour.order:
        if part == 0 and colour.brightness != 1:
            image = _towards(image, 0, colour.brightness)
        elif part == 1 and colour.contrast != 1:
            image = _towards(image, _mean_grey(image, missing), colour.contrast)
        elif part == 2 and colour.saturation != 1:
            image = ImageEnhance.Color(image).enhance(colour.saturation)
        elif part == 3:
            image = shift_hue(image, colour.hue)
    if colour.grey:
        image = image.convert("L")
    if colour.sigma is not None:
        image = image.filter(ImageFilter.GaussianBlur(radius=colour.sigma))
    return image.convert("RGB")


def shift_hue(image: Image.Image, hue: float) -> Image.Image:
    """Turn the hue of an RGB image by ``hue`` of a full circle, equal to Pillow's way through 8-bit HSV.

    As in torchvision the shift is ``int(hue * 255)`` steps of the hue channel, modulo 256; zero steps change nothing.
    """
    steps = int(hue * 255)
    if steps == 0:
        return image
    tables = _hue_tables()
    hue_table = tables.hue + np.uint8(steps % 256)
    pixels = np.asarray(image).reshape(-1, 3)
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        _shift_chunk(pixels[chunk], out[chunk], hue_table, tables)
    return Image.fromarray(out.reshape(image.height, image.width, 3))


def _shift_chunk(
    pixels: NDArray[np.uint8], out: NDArray[np.uint8], hue_table: NDArray[np.uint8], tables: _HueTables
) -> None:
    """Write the shifted colours of (n, 3) ``pixels`` to ``out``."""
    red, green, blue = np.ascontiguousarray(pixels.T)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    r, g, b = red.astype(np.int16), green.astype(np.int16), blue.astype(np.int16)
    # Hue depends on which channel leads, on the signed difference of the other two, and on the chroma.
    turn = np.where(red == value, g - b + _LEAD[0], np.where(green == value, b - r + _LEAD[1], r - g + _LEAD[2]))
    at = turn.astype(np.intp)
    at <<= 8
    at += chroma
    hue = hue_table.take(at, mode="clip")
    at = chroma.astype(np.intp)
    at <<= 8
    at += value
    saturation = tables.saturation.take(at, mode="clip")
    at = hue.astype(np.intp)
    at <<= 8
    at += saturation
    height = value.astype(np.float32)
    for channel in range(3):
        share = tables.share[channel].take(at, mode="clip")
        share *= height
        share += np.float32(0.5)
        out[:, channel] = share  # the cast cuts: with the half above it rounds


_LEAD = tuple(np.int16(channel * 511 + 255) for channel in range(3))  # row of "difference 0" for each leading channel


@dataclass(frozen=True)
class _HueTables:
    """Pillow's conversions in tables."""

    hue: NDArray[np.uint8]  # (3 * 511 * 256,): leading channel, difference of the other two + 255, chroma
    saturation: NDArray[np.uint8]  # (256 * 256,): chroma, value
    share: NDArray[np.float32]  # (3, 256 * 256): the share of the value that each channel has; hue, saturation


@cache
def _hue_tables() -> _HueTables:
    difference, chroma = np.meshgrid(np.arange(-255, 256), np.arange(256), indexing="ij")
    real = np.abs(difference) <= chroma
    low = np.where(real, 255 - chroma, 0)
    one, other = low + np.maximum(difference, 0) * real, low - np.minimum(difference, 0) * real
    lead = np.full_like(low, 255)
    parts = np.stack([lead, one, other], axis=-1)
    colours = np.stack([np.roll(parts, channel, axis=-1) for channel in range(3)])
    hue = _to_hsv(colours.reshape(3 * 511, 256, 3))[..., 0]

    chroma, value = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    low = np.maximum(value - chroma, 0)
    saturation = _to_hsv(np.stack([value, low, low], axis=-1))[..., 1]

    sector, rest = np.divmod(np.arange(256) * 6.0 / 255.0, 1)
    zero, full = np.zeros(256), np.ones(256)
    # What a channel loses of the value, per unit of saturation, in the six sectors of the colour circle.
    losses = (
        (zero, rest, full, full, 1 - rest, zero),
        (1 - rest, zero, zero, rest, full, full),
        (full, full, 1 - rest, zero, zero, rest),
    )
    loss = np.stack([np.choose(sector.astype(np.intp) % 6, channel) for channel in losses])
    share = 1 - loss[:, :, None] * (np.arange(256) / 255.0)
    return _HueTables(hue.ravel(), saturation.ravel(), share.reshape(3, -1).astype(np.float32))


def _to_hsv(colours: NDArray[np.int_]) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(colours.astype(np.uint8)).convert("HSV"))


def _towards(image: Image.Image, grey: int, factor: float) -> Image.Image:
    """``grey + factor * (image - grey)``, as `PIL.Image.blend` rounds it."""
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    table = Image.blend(Image.new("L", ramp.size, grey), ramp, factor).tobytes()
    return image.point(list(table) * 3)


def _mean_grey(image: Image.Image, missing: int) -> int:
    """The mean luminance of the crop, rounded."""
    grey = image.convert("L")
    total = sum(level * count for level, count in enumerate(grey.histogram()))
    last = grey.getpixel((image.width - 1, image.height - 1))
    assert isinstance(last, int)
    return int((total + missing * last) / (image.width * image.height + missing) + 0.5)
