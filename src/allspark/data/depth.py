"""Images of more than 8 bits: which of their values is shown as white, the same in all images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from allspark.data.image import DEEP_MODES, mode_of, read_values
from allspark.data.source import Sample, Source
from allspark.errors import DataError

_HEADS = 200  # images of each list whose headers are read
_DECODED = 50  # of those with more than 8 bits, how many are read
_DARK = 63  # of 255: values of 14 bits in 16
_WHITE = (1, 255, 1023, 4095, 16383, 65535)
"""Of floating-point values, and of 8, 10, 12, 14 and 16 bits."""


def with_white(source: Source, max_pixels: int, note: Callable[[str], None]) -> Source:
    """The source with ``white`` found from its images, where some have more than 8 bits and nobody said it.

    It is the next of 255, 1023, 4095, 16383 and 65535 above all values of the images looked at, evenly spread over the
    lists; for floating-point values from 0 to 1 it is 1.

    Args:
        source: an open data set.
        max_pixels: larger images are passed over [pixels].
        note: called with a line that says what was found.
    """
    lists = (source.labeled, source.unlabeled, source.val)
    looked_at = [samples[place] for samples in lists for place in _spread(len(samples), _HEADS)]
    modes = [mode_of(sample.image) for sample in looked_at]
    halved = [sample for sample, mode in zip(looked_at, modes, strict=True) if mode == "RGB;16"]
    _tell_of_dark_colours(halved, len(looked_at), max_pixels, note)
    deep = [sample for sample, mode in zip(looked_at, modes, strict=True) if mode.startswith(DEEP_MODES)]
    if source.white is not None or not deep:
        return source
    highest, floating = _highest((deep[place] for place in _spread(len(deep), _DECODED)), max_pixels)
    white = next((float(x) for x in _WHITE if highest <= x and (floating or x > 1)), highest)
    note(
        f"{len(deep)} of {len(looked_at)} images have more than 8 bits, values up to {highest:g}: {white:g} is white "
        "in all of them (data.white)"
    )
    return replace(source, white=white)


def _tell_of_dark_colours(
    halved: Sequence[Sample], looked_at: int, max_pixels: int, note: Callable[[str], None]
) -> None:
    """Say that 12 bits in 16 look black where only the high byte of colours can be read."""
    some = [halved[place] for place in _spread(len(halved), _DECODED)]
    if some and _highest(some, max_pixels)[0] <= _DARK:
        note(
            f"{len(halved)} of {looked_at} images have colours of 16 bits with values of 14 or fewer; their high "
            f"byte alone is read, and they look black ({some[0].image}); save them with 8 bits"
        )


def _spread(count: int, limit: int) -> list[int]:
    return [int(place) for place in np.linspace(0, count - 1, min(count, limit)).round()]


def _highest(samples: Iterable[Sample], max_pixels: int) -> tuple[float, bool]:
    """The highest value, and whether all images hold floating-point values."""
    highest, floating = 0.0, True
    for sample in samples:
        try:
            values = read_values(sample.image, max_pixels)
        except DataError:
            continue  # whoever reads it to use it says so
        highest = max(highest, float(np.nan_to_num(values, posinf=0).max(initial=0)))
        floating &= values.dtype.kind == "f"
    return highest, floating
