"""Decoded samples that are kept."""

import numpy as np
from PIL import Image

from allspark.data.decode import KeptSamples
from allspark.data.source import Sample


def test_what_fits_is_kept_and_the_rest_is_read_again():
    """An image of 10 x 10 with its mask takes 500 bytes: two of three fit in 1,200."""
    kept, read = KeptSamples(1_200), []

    def decode(name):
        read.append(name)
        return Image.new("RGB", (10, 10), name), np.zeros((10, 10), np.uint8)

    for _ in range(2):
        for name in ("red", "green", "blue"):
            image, _ = kept.get(Sample(name, name), lambda name=name: decode(name))
            assert image.getpixel((0, 0)) == Image.new("RGB", (1, 1), name).getpixel((0, 0))
    assert read == ["red", "green", "blue", "blue"]
