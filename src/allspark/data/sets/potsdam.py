"""ISPRS Potsdam: aerial images of 6,000 x 6,000 pixels and RGB label pictures, cut into tiles by `prepare_potsdam`."""

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
from allspark.config.schema import DataConfig
from allspark.data.image import from_colours, read_image, write_mask
from allspark.data.sets.base import DataSet
from allspark.data.sets.lists import Layout, divide_images, find_files
from allspark.data.sets.prepare import Prepared, ProgressCallback, for_all
from allspark.data.source import RGB, Source
from allspark.errors import DataError
from allspark.files import atomic_write

CLASSES: tuple[tuple[str, RGB], ...] = (
    ("impervious surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
    ("clutter", (255, 0, 0)),
)
_TEST_COLUMNS = {2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15), 7: (13,)}
TEST_AREAS = frozenset(f"{row}_{column}" for row, columns in _TEST_COLUMNS.items() for column in columns)
"""The 14 areas whose labels the benchmark kept back at first: validation here. The other 24 are for training."""

_IMAGES = "2_Ortho_RGB"
_LABELS = {"all": "5_Labels_all", "noBoundary": "5_Labels_all_noBoundary"}
_PALETTE = tuple(colour for _, colour in CLASSES)
_IMAGE_NAME = re.compile(r"top_potsdam_(\d+_\d+)_RGB$")


def open_potsdam(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/tiles/{images,masks}, as `allspark prepare potsdam` cuts them; a sample's id is AREA_TOP_LEFT.

    Masks hold class ids, or the benchmark's colours. Other colours (black boundaries, some mixed ones) are ignored.
    Without a list every training tile that has a mask is labelled.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    images = find_files(root / "tiles" / "images")
    if not images:
        raise DataError(f"{root / 'tiles' / 'images'}: no tile there; cut them with `allspark prepare potsdam {root}`")
    layout = Layout(
        root,
        images,
        find_files(root / "tiles" / "masks"),
        root / "tiles" / "images",
        root / "tiles" / "masks",
        advice=f"cut them with `allspark prepare potsdam {root}`",
    )
    tiles = layout.all()
    return divide_images(
        Source(root, tuple(name for name, _ in CLASSES), _PALETTE, rgb_masks=True),
        config,
        layout,
        train=[tile for tile in tiles if _area(tile.id) not in TEST_AREAS],
        val=[tile for tile in tiles if _area(tile.id) in TEST_AREAS and tile.mask is not None],
        require_labels=require_labels,
    )


POTSDAM = DataSet(open_potsdam, marks=("2_Ortho_RGB", "tiles/images"))


def _area(tile: str) -> str:
    return "_".join(tile.split("_")[:2])


def prepare_potsdam(
    root: Path,
    *,
    size: int = 512,
    labels: Literal["all", "noBoundary"] = "all",
    workers: int,
    progress: ProgressCallback | None = None,
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
        if found := _IMAGE_NAME.search(path.stem):
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
    there = len(_tile_files(root))
    strange = for_all(partial(_cut_all, root / "tiles", size), jobs, workers, progress)
    notes = [f"{area}: no labels in {folder}, its tiles are unlabelled" for area in lacking]
    if strange:
        notes.append(f"{strange} pixels have a colour of no class: they are ignored (255)")
    return Prepared(len(_tile_files(root)) - there, there, tuple(notes))


def _tile_files(root: Path) -> list[Path]:
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
    todo = {f"{area}_{box[0]:04d}_{box[1]:04d}.png": box for box in tile_boxes(image.height, image.width, size)}
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


def tile_boxes(height: int, width: int, size: int) -> Iterator[tuple[int, int, int, int]]:
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
