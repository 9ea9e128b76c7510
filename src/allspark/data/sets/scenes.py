"""Random scenes of textured things on a plain, with their masks: the pictures of the synthetic data set.

A class is told by its shape and its texture; its colours lean towards one of their own, but those of all classes
overlap. Only exact arithmetic is used (no sine, no exponential, no matrix product), so that the pixels are the same on
every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from allspark.data.source import RGB

CLASSES = ("ground", "sky", "ball", "crate", "tent", "ring")
PALETTE: tuple[RGB, ...] = (
    (120, 96, 64),
    (90, 170, 230),
    (220, 60, 60),
    (240, 180, 40),
    (70, 170, 90),
    (170, 80, 200),
)
GROUND, SKY, BALL, CRATE, TENT, RING = range(6)

_FINE = 2  # scenes are drawn at this multiple of their size
_TEXTURES = ("plain", "speckles", "stripes", "checks")
_LEANING = ((120, 110, 85), (150, 180, 215), (205, 80, 70), (205, 165, 55), (60, 140, 90), (140, 75, 190))
_USUAL_TEXTURE = {BALL: "speckles", CRATE: "stripes", TENT: "plain", RING: "checks"}
_FREQUENCY = {BALL: 0.3, CRATE: 0.45, TENT: 0.25}  # of the common things; rings are rare

Map = NDArray[np.float32]  # (H, W) or (H, W, 3)


@dataclass
class _Canvas:
    """A scene in the making, at the fine resolution."""

    pixels: Map  # (H, W, 3), 0..255
    classes: NDArray[np.uint8]  # (H, W)
    light: tuple[float, float]  # direction the light comes from, x and y, of length at most 1

    @property
    def size(self) -> tuple[int, int]:
        return self.classes.shape[0], self.classes.shape[1]


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], *, ring: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a scene.

    Args:
        rng: all randomness.
        size: height and width [pixels].
        ring: put a ring, the rare class, into the scene.

    Returns:
        The image (h, w, 3) and the class ids (h, w).
    """
    height, width = size[0] * _FINE, size[1] * _FINE
    horizon = float(rng.uniform(0.15, 0.5)) * height if rng.random() < 0.9 else -0.1 * height
    canvas = _background(rng, (height, width), horizon)
    kinds = [int(kind) for kind in rng.choice(list(_FREQUENCY), rng.integers(3, 7), p=list(_FREQUENCY.values()))]
    if ring:
        kinds.append(RING)
    feet = np.sort(rng.uniform(max(0.0, horizon) + 0.08 * height, 1.02 * height, len(kinds)))
    for kind, foot in zip(rng.permutation(kinds), feet, strict=True):  # far ones first: near ones cover them
        near = (float(foot) - horizon) / (height - horizon)
        radius = height * (0.07 + 0.14 * near) * float(rng.uniform(0.75, 1.35)) * (1.3 if kind == RING else 1)
        _put(rng, canvas, int(kind), float(foot), radius)
    return _photograph(rng, canvas, size), _shrink(canvas.classes)


def _background(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> _Canvas:
    """A rough ground below a smooth sky; hills and a tilt make the horizon a curve."""
    height, width = size
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    cloud = _noise(rng, size, height // 4)[..., None] * np.float32(rng.uniform(0.05, 0.25))
    sky = (_colour(rng, SKY) * (1 - down) + _colour(rng, SKY) * down) * (1 + cloud)
    grain = _noise(rng, size, int(rng.integers(3, 7))) * np.float32(0.3) + _noise(rng, size, 2) * np.float32(0.25)
    patches = (_noise(rng, size, height // 6) > 0)[..., None]
    soil = _colour(rng, GROUND)
    ground = np.where(patches, soil, 0.5 * soil + 0.5 * _colour(rng, GROUND)) * (1 + grain[..., None])
    hills = _noise(rng, (1, width), width // 5)[0] * np.float32(rng.uniform(0, 0.06) * height)
    slope = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-0.06, 0.06) * height)
    above = np.arange(height, dtype=np.float32)[:, None] < horizon + hills + slope
    pixels = np.where(above[..., None], sky, ground).astype(np.float32)
    classes = np.where(above, np.uint8(SKY), np.uint8(GROUND))
    return _Canvas(pixels, classes, (float(rng.uniform(-0.9, 0.9)), float(rng.uniform(-0.9, -0.2))))


def _put(rng: np.random.Generator, canvas: _Canvas, kind: int, foot: float, radius: float) -> None:
    """Paint one thing that stands at row ``foot``, over what is there, after its shadow."""
    height, width = canvas.size
    center_x = float(rng.uniform(0, width))
    floating = rng.random() < 0.1
    center_y = float(rng.uniform(0, foot)) if floating else foot - 0.9 * radius
    if not floating:
        _shade(canvas, center_x - canvas.light[0] * radius, foot, radius)
    cosine, sine = _turn(rng)
    stretch = np.float32(rng.uniform(0.8, 1.25))
    reach = int(radius * 1.8) + 2
    rows = slice(max(0, int(center_y) - reach), max(0, min(height, int(center_y) + reach)))
    columns = slice(max(0, int(center_x) - reach), max(0, min(width, int(center_x) + reach)))
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(center_y)) / np.float32(radius)
    x = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(center_x)) / np.float32(radius)
    if x.size == 0 or y.size == 0:
        return
    across, down = (x * cosine + y * sine) * stretch, y * cosine - x * sine
    inside = _shape(kind, across, down)
    usual = rng.random() < 0.7
    texture = _USUAL_TEXTURE[kind] if usual else _TEXTURES[int(rng.integers(len(_TEXTURES)))]
    light = 1 + np.float32(0.3) * (x * np.float32(canvas.light[0]) + y * np.float32(canvas.light[1]))
    paint = _texture(rng, texture, across, down)[..., None]
    pixels = (_colour(rng, kind) * (1 - paint) + _colour(rng, kind) * paint) * light[..., None]
    canvas.pixels[rows, columns] = np.where(inside[..., None], pixels, canvas.pixels[rows, columns])
    canvas.classes[rows, columns][inside] = kind


def _shape(kind: int, across: Map, down: Map) -> NDArray[np.bool_]:
    """Where a thing is, in its own coordinates: the origin at its centre, 1 at its rim."""
    if kind == CRATE:
        return (np.abs(across) < 0.85) & (np.abs(down) < 0.85)
    if kind == TENT:
        return np.asarray((down < 0.9) & (np.abs(across) < (down + 1) * np.float32(0.58)))
    square = across * across + down * down
    return (square < 1) & (square > 0.3) if kind == RING else square < 1


def _texture(rng: np.random.Generator, name: str, across: Map, down: Map) -> Map:
    """Mixture of two colours, 0..1, over a thing's own coordinates."""
    period = np.float32(rng.uniform(0.35, 0.7))
    size = across.shape[0], across.shape[1]
    if name == "speckles":
        return (_noise(rng, size, max(2, size[0] // 14)) > 0.15).astype(np.float32)
    if name == "stripes":
        along = across if rng.random() < 0.5 else down
        return _wave(along / period)
    if name == "checks":
        return np.asarray(np.abs(_wave(across / period) - _wave(down / period)))
    return np.broadcast_to(np.float32(0.15), size)


def _wave(phase: Map) -> Map:
    """0 and 1 in turn."""
    return (phase - np.floor(phase) < 0.5).astype(np.float32)


def _shade(canvas: _Canvas, center_x: float, center_y: float, radius: float) -> None:
    """Darken a soft, flat ellipse."""
    height, width = canvas.size
    y = (np.arange(height, dtype=np.float32) - np.float32(center_y)) / np.float32(0.45 * radius)
    x = (np.arange(width, dtype=np.float32) - np.float32(center_x)) / np.float32(1.5 * radius)
    rows, columns = np.abs(y) < 1, np.abs(x) < 1
    distance = (y * y)[rows, None] + (x * x)[None, columns]
    window = np.ix_(rows, columns)
    canvas.pixels[window] *= 1 - np.float32(0.55) * np.maximum(0, 1 - distance)[..., None]


def _photograph(rng: np.random.Generator, canvas: _Canvas, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Light (brightness, cast, gradient, soft shadows), then what a camera adds: sampling, blur and noise."""
    height, width = canvas.size
    shadow = np.float32(1) + _noise(rng, (height, width), height // 3) * np.float32(rng.uniform(0.05, 0.25))
    slope = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-0.25, 0.25))
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32) * np.float32(rng.uniform(0.7, 1.2))
    lit = canvas.pixels * (shadow * (1 + slope))[..., None] * tint
    image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).reduce(_FINE)
    blur = float(rng.uniform(-0.6, 1.0))
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    strength = int(rng.integers(2, 9))
    # The sum of two uniform numbers is near enough to a normal one, and exact on every machine.
    grain = rng.integers(-strength, strength + 1, (2, *size, 3), dtype=np.int16).sum(axis=0, dtype=np.int16)
    return np.asarray(np.clip(np.asarray(image, np.int16) + grain, 0, 255), np.uint8)


def _shrink(classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class that most of the fine pixels of each pixel have."""
    height, width = classes.shape
    blocks = classes.reshape(height // _FINE, _FINE, width // _FINE, _FINE)
    votes = np.stack([(blocks == kind).sum(axis=(1, 3), dtype=np.uint8) for kind in range(len(CLASSES))])
    return np.asarray(votes.argmax(axis=0), np.uint8)


def _colour(rng: np.random.Generator, kind: int) -> Map:
    """What the class leans to, mixed with any colour."""
    return np.asarray(0.35 * rng.uniform(0, 255, 3) + 0.65 * np.array(_LEANING[kind]), np.float32)


def _turn(rng: np.random.Generator) -> tuple[np.float32, np.float32]:
    """Cosine and sine of an angle of up to 28 degrees, by the half-angle formulas."""
    half = float(rng.uniform(-0.25, 0.25))
    return np.float32((1 - half * half) / (1 + half * half)), np.float32(2 * half / (1 + half * half))


def _noise(rng: np.random.Generator, size: tuple[int, int], cell: int) -> Map:
    """Smooth noise, -1..1, whose values change over ``cell`` pixels."""
    height, width = size
    cell = max(1, cell)
    grid = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8)
    # In two calls: the order of the two passes, which one call leaves to Pillow's version, shows in the last bit.
    smooth = Image.fromarray(grid).resize((width, grid.shape[0]), Image.Resampling.BILINEAR)
    smooth = smooth.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(np.asarray(smooth, np.float32) / np.float32(127.5) - 1)
