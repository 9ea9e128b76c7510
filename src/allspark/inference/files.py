"""Masks for files: ``allspark predict``."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from allspark.data.decode import picture_or_error, prefetch
from allspark.data.image import IMAGE_SUFFIXES, MAX_PIXELS, UNREAD_SUFFIXES, write_mask
from allspark.data.image import overlay as blend
from allspark.data.legend import with_legend
from allspark.data.source import RGB
from allspark.errors import DataError, UserError
from allspark.files import atomic_write
from allspark.inference.predictor import Prediction, Predictor

_AHEAD = 2
"""Images decoded before they are needed, and results not yet written: bounds the memory."""
_LISTED = 20
"""Most failed images that one message names."""


@dataclass(frozen=True)
class Input:
    """An image to predict. ``relative`` is its path below the given folder, which the output keeps."""

    image: Path
    relative: Path


def expand_inputs(paths: Sequence[str | Path], outs: Sequence[Path] = ()) -> list[Input]:
    """Find the images that are meant.

    Args:
        paths: image files, folders (searched with all sub-folders), globs (``**`` is any depth). Folders and globs give
            the files that end like an image; a file that is named itself may end as it likes. Hidden files and folders
            are passed over.
        outs: passed over inside folders and globs, so that the masks of an earlier run are not taken for images.

    Returns:
        Each image once, in the given order, the files of a folder or glob sorted by path.

    Raises:
        DataError: nothing was given, a path does not exist, or a folder or glob holds no image.
    """
    if not paths:
        raise DataError("no image to predict: give image files, folders or globs")
    found: dict[Path, Input] = {}
    for path in paths:
        for item in _expand(Path(path).expanduser(), outs):
            found.setdefault(item.image.resolve(), item)
    return list(found.values())


def _expand(path: Path, outs: Sequence[Path]) -> list[Input]:
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    if path.is_file():
        return [Input(path, Path(path.name))]
    if path.is_dir():
        base, candidates = path, list(_walk(path))
    elif glob.has_magic(str(path)):
        depth = next(index for index, part in enumerate(path.parts) if glob.has_magic(part))
        base = Path(*path.parts[:depth])
        candidates = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    else:
        raise DataError(f"{path}: no such file or folder: give an image, a folder of images or a quoted glob")
    inside = {out.resolve() for out in outs if base.resolve() in out.resolve().parents}
    images = [
        Input(file, _below(base, file))
        for file in sorted(candidates)
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not file.name.startswith(".")
        and not (inside and inside & set(file.resolve().parents))
    ]
    if not images:
        kind = "the folder holds no image" if path.is_dir() else "no image matches the glob"
        raise DataError(f"{path}: {kind}: looked for files that end in {suffixes}")
    return images


def unread_inputs(paths: Sequence[str | Path]) -> list[Path]:
    """Pictures in the given folders, and matches of the given globs, of kinds that cannot be read; sorted."""
    found: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            found += _walk(path)
        elif not path.is_file() and glob.has_magic(str(path)):
            found += (Path(name) for name in glob.glob(str(path), recursive=True))
    return sorted({path for path in found if path.suffix.lower() in UNREAD_SUFFIXES and not path.name.startswith(".")})


def _below(base: Path, file: Path) -> Path:
    relative = file.relative_to(base)
    return Path(file.name) if ".." in relative.parts else relative  # never climb out of the output folder


def _walk(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files)


def output_names(inputs: Sequence[Input]) -> list[Path]:
    """Give each image a name, without ending, under which its results do not overwrite another's.

    The name is the image's path below its folder without suffix. Where results of two images would share a name
    (``a.jpg`` and ``a.png``, or ``a.jpg`` from two folders), each of them keeps its suffix (``a.jpg.png``), then takes
    the name of its folder too, then its position in the list. Upper and lower case count as the same, for file systems
    where they are.
    """
    levels = [0] * len(inputs)
    while True:
        names = [_name(item, index, level) for index, (item, level) in enumerate(zip(inputs, levels, strict=True))]
        keys = [_key(str(name)) for name in names]
        uses = Counter(keys)
        clashing = [index for index, key in enumerate(keys) if uses[key] > 1]
        if not clashing:
            return names
        for index in clashing:
            levels[index] += 1


def _name(item: Input, index: int, level: int) -> Path:
    relative = item.relative
    if level == 0:
        return relative.with_suffix("") if relative.suffix else relative
    if level == 1:
        return relative
    named = relative.with_name(f"{item.image.resolve().parent.name}_{relative.name}")
    # each level is longer than the last, so that clashes end
    return named if level == 2 else named.with_name(f"{named.name}_{index + 1}" + "_" * (level - 3))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: Path,
    palette: Sequence[RGB],
    *,
    classes: Sequence[str] = (),
    overlay: bool = False,
    scores: bool = False,
    max_pixels: int = MAX_PIXELS,
    white: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a mask for each image: a palette PNG of the image's own size and name.

    Sub-folders of a given folder are kept below ``out``. Images are read and masks written beside the computation. A
    photograph with an EXIF orientation is turned upright first, and its mask fits the upright picture. One bad image
    does not stop the others: all are reported at the end.

    Args:
        predictor: the model.
        paths: images, folders, globs; see ``expand_inputs``.
        out: folder of the masks, made if it does not exist. It must be another than the images'.
        palette: one colour a class.
        classes: their names, for the legend of overlays; empty: no legend.
        overlay: also write OUT-overlays/NAME.png, the image under its coloured mask, with a legend below.
        scores: also write OUT-scores/NAME.png, 8-bit grey: the confidence of each pixel from 0 (0) to 1 (255).
        max_pixels: largest image that is decoded [pixels].
        white: as ``data.white``; None: as :func:`allspark.data.image.read_image` does without.
        progress: called with the number of images done and of all.

    Returns:
        The masks, in the order of ``expand_inputs``.

    Raises:
        DataError: no image, ``out`` holds the images, or some could not be predicted (the others are written).
        OSError: a result cannot be written.
    """
    folders = {"mask": out}  # masks alone, so that the folder can be a data set's masks/
    folders |= {"overlay": out.with_name(f"{out.resolve().name}-overlays")} if overlay else {}
    folders |= {"scores": out.with_name(f"{out.resolve().name}-scores")} if scores else {}
    inputs = expand_inputs(paths, list(folders.values()))
    names = output_names(inputs)
    for folder in folders.values():
        _check_out(folder, inputs, names)
    files = [{kind: folder / f"{name}.png" for kind, folder in folders.items()} for name in names]
    legend = list(zip(classes, palette, strict=True)) if classes else []
    failed: dict[Path, str] = {}
    read = partial(picture_or_error, max_pixels=max_pixels, white=white)
    images = [item.image for item in inputs]
    with closing(prefetch(images, read, workers=1, ahead=_AHEAD)) as pictures, ThreadPoolExecutor(1) as writer:
        pending: deque[Future[None]] = deque()
        for count, (item, picture) in enumerate(zip(inputs, pictures, strict=True), 1):
            try:
                if isinstance(picture, UserError):
                    raise picture
                prediction = predictor.predict(picture)
            except UserError as error:
                failed[item.image] = str(error)
            else:
                pending.append(writer.submit(_write, files[count - 1], picture, prediction, palette, legend))
            while len(pending) > (_AHEAD if count < len(inputs) else 0):
                pending.popleft().result()
            if progress is not None:
                progress(count, len(inputs))
    if failed:
        raise DataError(_report(failed, len(inputs), out))
    return [group["mask"] for group in files]


def _check_out(out: Path, inputs: Sequence[Input], names: Sequence[Path]) -> None:
    """Refuse folders where a mask could replace an image, of this run or of the user's."""
    fix = "give another folder to --out"
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file, expected a folder for the masks: {fix}")
    folders = {_identity(item.image.parent): item.image for item in inputs}
    for folder in dict.fromkeys((out / name).parent for name in names):
        image = folders.get(_identity(folder)) if folder.is_dir() else None
        if image is not None:
            raise DataError(f"{folder}: masks would be written among the images ({image}) and could replace one: {fix}")


def _identity(folder: Path) -> tuple[int, int]:
    """Tell folders apart by what they are, not by how they are spelled: upper case, links, ``..``."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _write(
    files: dict[str, Path],
    picture: Image.Image,
    prediction: Prediction,
    palette: Sequence[RGB],
    legend: Sequence[tuple[str, RGB]],
) -> None:
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    if "overlay" in files:
        blended = blend(picture, prediction.mask, palette)
        there = [legend[index] for index in np.unique(prediction.mask)] if legend else []
        pictures["overlay"] = with_legend(blended, there) if there else blended
    if "scores" in files:
        pictures["scores"] = Image.fromarray(np.rint(prediction.confidence * 255).astype(np.uint8))
    for kind, result in pictures.items():
        with atomic_write(files[kind]) as stream:
            result.save(stream, format="PNG")
    write_mask(files["mask"], prediction.mask, palette)  # last: where a mask is, all is


def _report(failed: Mapping[Path, str], total: int, out: Path) -> str:
    lines = [text if str(image) in text else f"{image}: {text}" for image, text in failed.items()]
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    rest = total - len(lines)
    written = f"the masks of the other {rest} are in {out}" if rest else "nothing was written"
    return f"{len(lines)} of {total} images could not be predicted, {written}: {'; '.join(lines[:_LISTED])}{more}"
