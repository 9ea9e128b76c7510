"""One sample, decoded and checked: what training and evaluation both begin with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allspark.batch import IGNORE
from allspark.data.image import read_image, read_mask
from allspark.data.source import Sample, Source, code_of
from allspark.errors import DataError

Decoded = tuple[Image.Image, NDArray[np.uint8] | None]
"""An image (RGB), and its mask (H, W) where there is one."""


class KeptSamples:
    """Decoded samples that come again and again: the first ones that fit in memory are kept, the others read anew.

    Which ones come next is random, so it would be no gain to put a new one in an older one's place.

    Args:
        limit: how much may be kept [bytes].
    """

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._samples: dict[str, Decoded] = {}

    def get(self, sample: Sample, decode: Callable[[], Decoded]) -> Decoded:
        """Return what ``decode`` returned for this sample, now or an earlier time; nobody may change it."""
        kept = self._samples.get(sample.id)
        if kept is not None:
            return kept
        image, mask = decode()
        size = 4 * image.width * image.height + (0 if mask is None else mask.nbytes)  # Pillow: 4 bytes a pixel of RGB
        if size <= self._room:
            self._room -= size
            self._samples[sample.id] = image, mask
        return image, mask


def read_sample(sample: Sample, source: Source, *, want_mask: bool, max_pixels: int) -> Decoded:
    """Decode an image (RGB) and, if wanted, its mask (H, W) with class ids and 255.

    Raises:
        DataError: a file is missing or unreadable, the mask has another size than the image or values that are no
            class; both files are named.
    """
    image = read_image(sample.image, max_pixels)
    if not want_mask:
        return image, None
    if sample.mask is None:
        raise DataError(f"{sample.image}: this image has no mask; training on it as labelled and evaluation need one")
    try:
        mask = read_mask(
            sample.mask,
            num_classes=source.num_classes,
            palette=source.palette if source.rgb_masks else None,
            code=code_of(sample.mask, source.codes),
            ignore=source.ignore,
            max_pixels=max_pixels,
        )
    except DataError as error:
        raise DataError(f"{error} (mask of {sample.image})") from error
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{sample.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image} is "
            f"{image.width}x{image.height}; both need the same width and height"
        )
    if source.ignore != IGNORE:
        mask = np.where(mask == source.ignore, np.uint8(IGNORE), mask)
    return image, mask
