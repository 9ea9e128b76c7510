"""Image and mask files: read whatever people have, write what everybody can open."""

from __future__ import annotations

import io
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from allspark.batch import IGNORE, IMAGENET, Normalisation
from allspark.data.sbd import read_sbd
from allspark.data.source import RGB, Member
from allspark.errors import DataError
from allspark.files import atomic_write

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"}
UNREAD_SUFFIXES = {
    *(".gif", ".jp2", ".j2k", ".heic", ".heif", ".avif", ".jxl", ".svg", ".ppm", ".pgm", ".dcm", ".nii", ".raw"),
    *(".dng", ".npy", ".npz", ".exr", ".hdr", ".psd", ".pdf"),
}
"""Pictures and arrays that people have and that are not read."""
MAX_PIXELS = 178_956_970
IGNORE_COLOUR: RGB = (224, 224, 192)
"""How ignored pixels are shown, as in PASCAL VOC."""

# Warning filters belong to all threads: one at a time changes them.
_HEADERS = threading.Lock()
DEEP_MODES = ("I", "F")  # begin the names of those of more than 8 bits
# What Pillow's decoders raise on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, MemoryError)


def read_image(path: Path | Member, max_pixels: int = MAX_PIXELS, white: float | None = None) -> Image.Image:
    """Read an image as upright RGB.

    The EXIF orientation is applied. Transparent pixels are shown on white. Of animations and multi-page files, the
    first picture is taken.

    Args:
        path: the file, or the file inside a tar file.
        max_pixels: larger images are refused before they are decoded [pixels].
        white: the value of images of more than 8 bits that is shown as white; larger ones are too. None: each image for
            itself, 16-bit values by their high byte, floating-point values from 0..1 if none is larger.

    Raises:
        DataError: the file is missing, damaged, no image, too large, or a TIFF of more than three bands. The message
            names it.
    """
    with _opened(path, max_pixels) as image:
        if image.format == "TIFF" and image.mode in {"RGBA", "RGBX", "RGBa"}:
            raise DataError(
                f"{path}: four bands, and nothing says whether the fourth is transparency or infrared; save three "
                "(gdal_translate -b 1 -b 2 -b 3 OLD NEW)"
            )
        return _to_rgb(ImageOps.exif_transpose(image), white)


def mode_of(path: Path | Member) -> str:
    """Pillow's name of an image's kind (RGB, L, P, I;16 ...), from its header; empty for what is no image.

    Colours of 16 bits, of which Pillow reads the high byte alone, are ``RGB;16``.
    """
    try:
        with _opened(path, MAX_PIXELS, head=True) as image:
            halved = image.mode == "RGB" and any(";16" in str(part) for part in getattr(image, "tile", ()))
            return "RGB;16" if halved else image.mode
    except DataError:
        return ""  # whoever reads it to use it says what is wrong


def read_values(path: Path | Member, max_pixels: int = MAX_PIXELS) -> NDArray[np.generic]:
    """Read an image's values as they are in the file, (H, W) or (H, W, c).

    Raises:
        DataError: as in :func:`read_image`.
    """
    with _opened(path, max_pixels) as image:
        return np.asarray(image)


def read_mask(
    path: Path,
    *,
    num_classes: int | None = None,
    palette: Sequence[RGB] | None = None,
    code: Sequence[int] | None = None,
    ignore: int = IGNORE,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Read a mask as class ids, (H, W).

    Args:
        path: an index PNG, a palette PNG (its indices count, its colours do not), a black-and-white or 16-bit grey
            image with values up to 255, an RGB image if ``palette`` is given or red, green and blue are the same number
            in all pixels, or a .mat file of SBD.
        num_classes: given: other values than 0 .. num_classes - 1 and ``ignore`` are an error.
        palette: the colour of each class, for RGB masks; other colours become ``ignore``.
        code: the class id of each value 0, 1, 2, ... of the file; None: values are class ids.
        ignore: the value of pixels that do not count.
        max_pixels: larger masks are refused [pixels].

    Raises:
        DataError: as in :func:`read_image`, or the values are no classes. The message names file and values.
    """
    mask = read_sbd(path) if path.suffix == ".mat" else _read_picture(path, palette, ignore, max_pixels)
    if code is not None:
        table = np.arange(256, dtype=np.uint8)
        table[: len(code)] = code
        mask = table[mask]
    if num_classes is not None:
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        wrong = [int(v) for v in values if v >= num_classes and v != ignore]
        if wrong:
            raise DataError(
                f"{path}: mask values {_some(wrong)}, but there are classes 0 to {num_classes - 1}"
                f" and {ignore} for ignored pixels"
            )
    return mask


def _read_picture(path: Path, palette: Sequence[RGB] | None, ignore: int, max_pixels: int) -> NDArray[np.uint8]:
    with _opened(path, max_pixels) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode not in {"RGB", "RGBA"}:
            return _indices(image, path)
        if palette is None:
            values = np.asarray(image.convert("RGB"))
            if _is_grey(values):
                return np.array(values[:, :, 0])
            raise DataError(
                f"{path}: an RGB mask, but no colours are known for the classes; "
                "give every class its colour in classes.txt (id, name, R G B; tab-separated)"
            )
        return from_colours(np.asarray(image.convert("RGB")), palette, ignore)


def from_colours(image: NDArray[np.uint8], palette: Sequence[RGB], ignore: int = IGNORE) -> NDArray[np.uint8]:
    """Class ids (H, W) of an RGB mask (H, W, 3); colours outside the palette become ``ignore``."""
    codes = _colour_codes(image)
    mask = np.full(codes.shape, ignore, np.uint8)
    for index, colour in reversed(list(enumerate(palette))):  # of equal colours the first class counts
        mask[codes == _colour_codes(np.array(colour, np.uint8))] = index
    return mask


def normalize(
    image: NDArray[np.uint8], how: Normalisation = IMAGENET, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Turn RGB (H, W, 3) into what encoders take, (3, H, W): (x / 255 - mean) / std.

    Args:
        image: 8-bit RGB.
        how: mean and std.
        out: (3, H, W), where to write it; None: a new array.
    """
    if out is None:
        out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, (mean, std) in enumerate(zip(how.mean, how.std, strict=True)):
        plane = np.multiply(image[:, :, channel], np.float32(1 / (255 * std)), out=out[channel])
        plane -= np.float32(mean / std)
    return out


def write_mask(path: Path, mask: NDArray[np.uint8], palette: Sequence[RGB]) -> None:
    """Write class ids (H, W) as a palette PNG, whole or not at all."""
    image = Image.fromarray(mask)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    image.putpalette(colours.tobytes())
    with atomic_write(path) as file:
        image.save(file, "png", optimize=False)


def overlay(image: Image.Image, mask: NDArray[np.uint8], palette: Sequence[RGB], alpha: float = 0.5) -> Image.Image:
    """Lay the colours of a mask over an image; ignored pixels stay as they are.

    Args:
        image: RGB.
        mask: (H, W), of the image's size.
        palette: the colour of each class.
        alpha: weight of the colours, 0 to 1.
    """
    pixels = np.asarray(image)
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    blended = (pixels * np.float32(1 - alpha) + colours[mask] * np.float32(alpha) + 0.5).astype(np.uint8)
    return Image.fromarray(np.where((mask == IGNORE)[:, :, None], pixels, blended))


@contextmanager
def _opened(path: Path | Member, max_pixels: int, *, head: bool = False) -> Iterator[Image.Image]:
    """Open an image file; whatever its decoder raises in the block becomes one line that names the file.

    Args:
        path: the file.
        max_pixels: larger images are refused [pixels].
        head: only the header is of interest; to look for the orientation of a PNG, all of it is decoded.
    """
    try:
        if isinstance(path, Path):
            require_file(path)
        # Warnings on odd metadata and large sizes help nobody here, and the filters belong to all threads.
        with _HEADERS, warnings.catch_warnings(), _pillows_limit_off():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(path.read_bytes()) if isinstance(path, Member) else path)
            with suppress(*_DAMAGE):
                if not head:
                    image.getexif()  # odd metadata is no damage; parsed here, it warns here
        with image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels are more than data.max_pixels = {max_pixels}"
                )
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: a folder, not an image") from error
    except UnidentifiedImageError as error:
        size = path.size if isinstance(path, Member) else path.stat().st_size
        kind = "the file is empty" if size == 0 else "not an image that can be read"
        raise DataError(f"{path}: {kind}") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: the image is damaged ({reason})") from error


@contextmanager
def _pillows_limit_off() -> Iterator[None]:
    """``max_pixels`` is the limit here; Pillow's own belongs to the whole program."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def require_file(path: Path) -> None:
    """Refuse pipes and devices, which a reader would wait for."""
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise DataError(f"{path}: a pipe or a device, not an image file")


def _to_rgb(image: Image.Image, white: float | None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith(DEEP_MODES):
        image = Image.fromarray(_to_8_bits(np.asarray(image), white))
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _to_8_bits(values: NDArray[np.generic], white: float | None) -> NDArray[np.uint8]:
    numbers = np.nan_to_num(values.astype(np.float64))
    if white is not None:
        numbers = numbers * (255 / white) + 0.5
    elif values.dtype.kind == "f" and numbers.max(initial=0) <= 1:
        numbers = numbers * 255
    elif numbers.max(initial=0) > 255:
        numbers = numbers // 256
    return np.clip(numbers, 0, 255).astype(np.uint8)


def is_coloured(path: Path, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a mask is an RGB picture whose channels differ, so that its colours must be known; reads its pixels."""
    try:
        with _opened(path, max_pixels) as image:
            return image.mode in {"RGB", "RGBA"} and not _is_grey(np.asarray(image.convert("RGB")))
    except DataError:
        return False  # whoever reads it to use it says so


def _is_grey(image: NDArray[np.uint8]) -> bool:
    return bool((image[:, :, :1] == image[:, :, 1:]).all())


def _indices(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode not in {"L", "P", "1"} and not image.mode.startswith("I"):
        raise DataError(f"{path}: a mask of mode {image.mode}; expected index, palette, grey or RGB")
    values = np.asarray(image)
    if values.dtype != np.uint8 and values.max(initial=0) > 255:
        raise DataError(f"{path}: mask values up to {values.max()}, but class ids end at 254")
    if values.min(initial=0) < 0:
        raise DataError(
            f"{path}: mask values from {values.min()}, but class ids begin at 0 (write 255 for ignored pixels)"
        )
    return np.array(values, np.uint8)


def _colour_codes(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    wide = colours.astype(np.uint32)
    codes: NDArray[np.uint32] = wide @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    return codes


def _some(values: Sequence[int]) -> str:
    text = ", ".join(str(v) for v in values[:5])
    return text if len(values) <= 5 else f"{text} and {len(values) - 5} more"
