"""Random crops of training images: joint geometry for image and mask, photometric changes for strong views.

The semantics are those of UniMatch and the published AllSpark: the longer side is resized to a whole number of pixels
drawn uniformly, the shorter follows; the result is padded at the right and at the bottom to the crop, cropped and
flipped: a weak view. Colour jitter, greyscale and blur make it a strong one. A view is a function of the image and of
the state of its generators alone. Numbers are drawn in this order, all of them in each view: longer side, top, left,
flip; then those of `allspark.data.colour.draw_colour` or `allspark.data.colour_list.draw_changes`.

The pixels equal those of resize-pad-crop on whole images, but most that the crop throws away are not computed, and of
uniform padding only a margin is. An image is resized along its rows first and then along its columns, whatever its
aspect, as Pillow did up to version 12 (newer ones choose by the sizes, and the last bit may differ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allspark.batch import IGNORE, Boxes
from allspark.config.schema import ViewConfig
from allspark.data.colour import Colour, draw_colour, recolour
from allspark.data.colour_list import change_colours, draw_changes


@dataclass(frozen=True)
class Geometry:
    """A crop: the image is resized to ``height`` x ``width``, then cut at ``top``, ``left``, then flipped."""

    height: int
    width: int
    top: int
    left: int
    flip: bool
    crop: tuple[int, int]  # height, width

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of the part of the crop that shows the image; the rest, right and below, is padding."""
        return min(self.crop[0], self.height), min(self.crop[1], self.width)

    def place(self, width: int) -> slice:
        """Columns of the crop that its leftmost ``width`` columns take after the flip."""
        return slice(self.crop[1] - width, self.crop[1]) if self.flip else slice(0, width)


def labeled_view(
    image: Image.Image,
    mask: NDArray[np.uint8],
    crop: tuple[int, int],
    config: ViewConfig,
    rng: np.random.Generator,
    *,
    strong: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a random view of an image and its mask.

    Args:
        image: RGB, of any size.
        mask: (H, W) class ids and 255 (ignore), of the image's size.
        crop: height and width of the view [pixels].
        config: ranges and probabilities.
        rng: all randomness.
        strong: change its colours.

    Returns:
        The image (h, w, 3) and the mask (h, w); padding is 255 in the mask, and black before the change of colours.
    """
    geometry = draw_geometry(image.height, image.width, crop, config, rng)
    part = _resize_window(image, geometry)
    view = _strong(part, geometry, draw_colour(config, rng)) if strong else _weak(part, geometry)
    return view, _mask_view(mask, geometry)


def unlabeled_views(
    image: Image.Image,
    crop: tuple[int, int],
    config: ViewConfig,
    rng: np.random.Generator,
    strong: Sequence[np.random.Generator] = (),
    colours: Literal["jitter", "random-list"] = "jitter",
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[NDArray[np.uint8]]]:
    """Cut a random view of an image without a mask, and change its colours in some ways.

    Args:
        image: RGB, of any size.
        crop: height and width of the view [pixels].
        config: ranges and probabilities.
        rng: of the geometry.
        strong: of the colours, one generator for each strong view.
        colours: how they are changed, see `allspark.batch.Views`; ``config`` is of the jitter.

    Returns:
        The weak view (h, w, 3), black where padded; valid (h, w), False where padded; and the strong views, pixel by
        pixel the same places.
    """
    geometry = draw_geometry(image.height, image.width, crop, config, rng)
    rows, columns = geometry.seen
    valid = np.zeros(crop, np.bool_)
    valid[:rows, geometry.place(columns)] = True
    part = _resize_window(image, geometry)
    weak = _weak(part, geometry)
    if colours == "random-list":  # histograms and means are of the whole crop
        whole = Image.fromarray(weak)
        return weak, valid, [np.asarray(change_colours(whole, draw_changes(one))) for one in strong]
    return weak, valid, [_strong(part, geometry, draw_colour(config, one)) for one in strong]


def cut_out(
    view: NDArray[np.uint8], mask: NDArray[np.uint8], boxes: Boxes, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fill boxes of a view with noise, uniform for each pixel and channel, and ignore them (ST++, CVPR 2022).

    Args:
        view: (h, w, 3).
        mask: (h, w), class ids and 255.
        boxes: how they are drawn.
        rng: of the boxes, then of the noise.

    Returns:
        A changed copy of both.
    """
    view, mask = view.copy(), mask.copy()
    for top, left, bottom, right in boxes.draw((mask.shape[0], mask.shape[1]), rng):
        part = view[top:bottom, left:right]
        part[...] = rng.integers(0, 255, part.shape, dtype=np.uint8)
        mask[top:bottom, left:right] = IGNORE
    return view, mask


def _weak(part: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    return _assemble(_with_margin(part, geometry, 1), geometry)


def _strong(part: Image.Image, geometry: Geometry, colour: Colour) -> NDArray[np.uint8]:
    # One row and column of padding at least: there its colour after the changes is read.
    part = _with_margin(part, geometry, 1 + colour.reach)
    missing = geometry.crop[0] * geometry.crop[1] - part.width * part.height
    return _assemble(recolour(part, colour, missing=missing), geometry)


def draw_geometry(
    height: int, width: int, crop: tuple[int, int], config: ViewConfig, rng: np.random.Generator
) -> Geometry:
    """Draw the crop of an image of ``height`` x ``width`` pixels."""
    long = max(height, width)
    # An image of very few pixels can round to nothing: one pixel stays.
    low, high = (max(1, int(long * factor)) for factor in config.scale)
    side = int(rng.integers(low, high, endpoint=True))
    if height > width:
        new_height, new_width = side, max(1, int(width * side / height + 0.5))
    else:
        new_height, new_width = max(1, int(height * side / width + 0.5)), side
    top = int(rng.integers(0, max(0, new_height - crop[0]), endpoint=True))
    left = int(rng.integers(0, max(0, new_width - crop[1]), endpoint=True))
    return Geometry(new_height, new_width, top, left, bool(rng.random() < config.flip), crop)


def _with_margin(part: Image.Image, geometry: Geometry, margin: int) -> Image.Image:
    """The part of the crop that shows the image, and up to ``margin`` pixels of padding right and below; unflipped."""
    rows, columns = geometry.seen
    padded = min(geometry.crop[1], columns + margin), min(geometry.crop[0], rows + margin)
    return part if part.size == padded else part.crop((0, 0, *padded))  # Pillow fills with black


def _resize_window(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Equal to resizing the whole image and cropping, without most pixels that the crop would drop.

    Pillow's ``resize(box=...)`` would compute no other pixel but rounds the box to float32, and the result is off by
    one here and there. So the two passes, horizontal then vertical, are made one by one with a crop after each.
    """
    rows, columns = geometry.seen
    top, left = geometry.top, geometry.left
    scale = image.height / geometry.height
    reach = max(scale, 1.0) + 1  # of the filter, and one for rounding [source rows]
    first = max(0, math.floor(top * scale - reach))
    last = min(image.height, math.ceil((top + rows) * scale + reach))
    band = image.crop((0, first, image.width, last))
    band = band.resize((geometry.width, band.height), Image.Resampling.BILINEAR)
    if geometry.height == rows:  # nothing is dropped above or below: the band is the whole image
        sheet = band if geometry.width == columns else band.crop((left, 0, left + columns, band.height))
    else:
        sheet = Image.new("RGB", (columns, image.height))
        sheet.paste(band.crop((left, 0, left + columns, band.height)), (0, first))
    sheet = sheet.resize((columns, geometry.height), Image.Resampling.BILINEAR)
    return sheet if geometry.height == rows else sheet.crop((0, top, columns, top + rows))


def _assemble(part: Image.Image, geometry: Geometry) -> NDArray[np.uint8]:
    """Flip, and fill the rest of the crop with the colour that the padding has."""
    if geometry.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    height, width = geometry.crop
    if part.size != (width, height):
        corner = part.getpixel((0 if geometry.flip else part.width - 1, part.height - 1))
        sheet = Image.new("RGB", (width, height), corner)
        sheet.paste(part, (geometry.place(part.width).start, 0))
        part = sheet
    return np.asarray(part)


def _mask_view(mask: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """The mask's crop: nearest neighbour, padding ignored."""
    rows, columns = geometry.seen
    y = _nearest(mask.shape[0], geometry.height)[geometry.top : geometry.top + rows]
    x = _nearest(mask.shape[1], geometry.width)[geometry.left : geometry.left + columns]
    out: NDArray[np.uint8] = np.full(geometry.crop, IGNORE, np.uint8)
    out[:rows, geometry.place(columns)] = mask.take(y, axis=0).take(x[::-1] if geometry.flip else x, axis=1)
    return out


def _nearest(old: int, new: int) -> NDArray[np.int32]:
    """Which of ``old`` pixels Pillow's nearest-neighbour resize takes for each of ``new``."""
    index = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    found: NDArray[np.int32] = np.asarray(index.resize((new, 1), Image.Resampling.NEAREST))[0]
    return found
