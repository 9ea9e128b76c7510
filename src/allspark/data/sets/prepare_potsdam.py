"""Potsdam's large pictures cut into tiles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from allspark.batch import IGNORE
from allspark.data.image import from_colours, read_image, write_mask
from allspark.data.sets.potsdam import CLASSES
from allspark.data.sets.prepare import Prepared, Progress, for_all
from allspark.errors import DataError
from allspark.files import atomic_write

_IMAGES = "2_Ortho_RGB"
_LABELS = {"all": "5_Labels_all", "noBoundary": "5_Labels_all_noBoundary"}
_PALETTE = [colour for _, colour in CLASSES]
_AREA = re.compile(r"top_potsdam_(\d+_\d+)_RGB$")


def prepare_potsdam(
    root: Path,
    *,
    size: int = 512,
    labels: Literal["all", "noBoundary"] = "all",
    workers: int,
    progress: Progress | None = None,
) -> Prepared:
    """Cut ROOT/2_Ortho_RGB and the label pictures into ROOT/tiles/{images,masks}.

    The tiles of a picture are of equal size within a pixel, do not overlap, and leave nothing out.

    Args:
        root: folder of Potsdam as it is published.
        size: largest side of a tile [pixels].
        labels: ``all``: ROOT/5_Labels_all; ``noBoundary``: ROOT/5_Labels_all_noBoundary, with ignored boundaries.
        workers: processes.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: a folder is missing, or a picture and its labels differ in size.
    """
    pictures = {}
    for path in sorted((root / _IMAGES).glob("*.tif")):
        if found := _AREA.search(path.stem):
            pictures[found[1]] = path
    if not pictures:
        raise DataError(f"{root / _IMAGES}: no top_potsdam_*_RGB.tif there; give the folder that holds {_IMAGES}")
    folder = root / _LABELS[labels]
    end = "_label" if labels == "all" else "_label_noBoundary"
    label_of = {area: folder / f"top_potsdam_{area}{end}.tif" for area in pictures}
    lacking = [area for area, path in label_of.items() if not path.is_file()]
    if len(lacking) == len(pictures):
        raise DataError(f"{label_of[lacking[0]]}: no such file; labels are looked for in {folder} (see --labels)")
    for part in ("images", "masks"):
        (root / "tiles" / part).mkdir(parents=True, exist_ok=True)
    _same_options(root / "tiles", f"{size} {labels}\n")
    jobs = [(area, path, None if area in lacking else label_of[area]) for area, path in pictures.items()]
    there = len(_tiles(root))
    strange = for_all(partial(_cut_all, root / "tiles", size), jobs, workers, progress)
    notes = [f"{area}: no labels in {folder}, its tiles are unlabelled" for area in lacking]
    if strange:
        notes.append(f"{strange} pixels have a colour of no class: they are ignored (255)")
    return Prepared(len(_tiles(root)) - there, there, tuple(notes))


def _tiles(root: Path) -> list[Path]:
    return list((root / "tiles" / "images").glob("*.png"))


def _same_options(folder: Path, options: str) -> None:
    """Tiles of two sizes or labellings must not mix in one folder."""
    record = folder / "options.txt"
    if record.is_file() and record.read_text("utf-8") != options:
        was = record.read_text("utf-8").split()
        raise DataError(f"{folder} holds tiles of --size {was[0]} --labels {was[1]}; remove it to cut others")
    with atomic_write(record, "w") as file:
        file.write(options)


def _cut_all(folder: Path, size: int, job: tuple[str, Path, Path | None]) -> int:
    """Cut one picture; returns how many pixels of its labels have a colour of no class.

    The image of a tile is written after its mask: where it lies, both do.
    """
    area, picture, labels = job
    image = read_image(picture)
    todo = {f"{area}_{box[0]:04d}_{box[1]:04d}.png": box for box in tiles(image.height, image.width, size)}
    todo = {name: box for name, box in todo.items() if not (folder / "images" / name).is_file()}
    mask, strange = _labels(labels, image.size) if labels and todo else (None, 0)
    for name, (top, left, bottom, right) in todo.items():
        if mask is not None:
            part = np.ascontiguousarray(mask[top:bottom, left:right])
            write_mask(folder / "masks" / name, part, _PALETTE)
        with atomic_write(folder / "images" / name) as file:
            image.crop((left, top, right, bottom)).save(file, "png", compress_level=1)
    return strange


def _labels(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.uint8], int]:
    """Class ids (H, W) of a label picture, and how many pixels have a colour of no class."""
    picture = read_image(path)
    if picture.size != size:
        raise DataError(f"{path}: {picture.width}x{picture.height} pixels, but its image has {size[0]}x{size[1]}")
    colours = np.asarray(picture)
    mask = from_colours(colours, _PALETTE)
    boundary = ~colours.any(-1)  # black
    return mask, int(((mask == IGNORE) & ~boundary).sum())


def tiles(height: int, width: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a picture evenly into as few tiles of at most ``size`` pixels a side as there can be.

    Yields:
        top, left, bottom, right of each tile [pixels].
    """
    rows, columns = (_cuts(side, size) for side in (height, width))
    for top, bottom in rows:
        for left, right in columns:
            yield top, left, bottom, right


def _cuts(side: int, size: int) -> list[tuple[int, int]]:
    count = -(-side // size)
    edges = [side * i // count for i in range(count + 1)]
    return list(pairwise(edges))
