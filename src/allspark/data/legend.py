"""A strip below a picture that says what its colours mean."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from allspark.data.source import RGB
from allspark.errors import printable

_SIZE = 12  # of the letters [pixels]
_GAP = 6


def with_legend(image: Image.Image, entries: Sequence[tuple[str, RGB]]) -> Image.Image:
    """Put the names and colours of classes below an image; the image itself stays as it is.

    Args:
        image: RGB.
        entries: name and colour of each class to show.
    """
    font = ImageFont.load_default(_SIZE)
    places: list[tuple[int, int]] = []
    x, y, row = _GAP, _GAP, _SIZE + _GAP
    for name, _ in entries:
        length = _SIZE + _GAP + int(font.getlength(printable(name))) + 2 * _GAP
        if x > _GAP and x + length > image.width:
            x, y = _GAP, y + row
        places.append((x, y))
        x += length
    picture = Image.new("RGB", (image.width, image.height + y + row), (255, 255, 255))
    picture.paste(image)
    draw = ImageDraw.Draw(picture)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        top += image.height
        draw.rectangle((left, top, left + _SIZE, top + _SIZE), colour, (0, 0, 0))
        draw.text((left + _SIZE + _GAP, top - 1), printable(name), (0, 0, 0), font)
    return picture
