"""COCO 2017 (Lin et al., ECCV 2014) as semantic segmentation: train2017, val2017 and masks of 81 classes.

The masks are drawn from COCO's instances, by `prepare_coco`.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allspark.batch import IGNORE
from allspark.config.schema import DataConfig
from allspark.data.image import write_mask
from allspark.data.sets.base import DataSet, Partition
from allspark.data.sets.lists import Layout, divide_images, find_files
from allspark.data.sets.prepare import Prepared, ProgressCallback, for_all
from allspark.data.source import Source, default_palette
from allspark.errors import DataError, UserError

CLASSES = (
    *("background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep"),
    *("cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana"),
    *("apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""Background and the 80 categories in the order of their ids (which have gaps in COCO, and none here)."""

_PARTS = ("train2017", "val2017")
_IMAGES_A_JOB = 32


def open_coco(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/train2017, ROOT/val2017 and ROOT/masks; a sample's id is its number, as in ``000000000139``.

    Masks are those that `allspark prepare coco` draws, or ready-made ones: masks/NUMBER.png, also in
    masks/{train2017,val2017}. Without a list every training image that has a mask is labelled.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    parts = {part: find_files(root / part) for part in _PARTS}
    if not parts["train2017"]:
        raise DataError(f"{root / 'train2017'}: no image there; give the folder that holds train2017 and val2017")
    masks = {Path(key).name: path for key, path in find_files(root / "masks").items()}
    faults = [] if masks else [f"{root / 'masks'}: no mask there; draw them with `allspark prepare coco {root}`"]
    layout = Layout(
        root,
        dict(sorted((parts["train2017"] | parts["val2017"]).items())),
        masks,
        root / "train2017",
        root / "masks",
        advice=f"draw them with `allspark prepare coco {root}`, or put ready-made ones there",
        faults=faults,
    )
    return divide_images(
        Source(root, CLASSES, default_palette(len(CLASSES))),
        config,
        layout,
        train=[layout.sample(name) for name in parts["train2017"]],
        val=[layout.sample(name) for name in parts["val2017"] if name in masks],
        require_labels=require_labels,
    )


COCO = DataSet(
    open_coco,
    marks=("train2017", "annotations/instances_train2017.json"),
    partitions={
        (232, "7a80d0605a2a4383"): Partition("coco", "1/512", 34.10),
        (463, "d89f8cf50e276af3"): Partition("coco", "1/256", 41.65),
        (925, "92eb3929f14c6eab"): Partition("coco", "1/128", 45.48),
        (1849, "67e1fa5b00095d68"): Partition("coco", "1/64", 49.56),
        (3697, "3410484b25372201"): Partition("coco", "1/32"),
    },
)


def prepare_coco(root: Path, *, workers: int, progress: ProgressCallback | None = None) -> Prepared:
    """Write ROOT/masks/NUMBER.png for every image of ROOT/annotations/instances_{train2017,val2017}.json.

    Values are 0 for background, 1 .. 80 for the categories in the order of their ids, 255 for crowds. Where instances
    overlap, the smaller one is seen.

    Args:
        root: folder of COCO.
        workers: processes.
        progress: called with (jobs done, jobs in all).

    Raises:
        UserError: pycocotools is not installed.
        DataError: an annotation file is missing or is not COCO's.
    """
    try:
        import pycocotools.mask  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise UserError("prepare coco needs pycocotools: pip install 'allspark[coco]'") from error
    files = [root / "annotations" / f"instances_{part}.json" for part in _PARTS]
    if not any(file.is_file() for file in files):
        raise DataError(f"{files[0]}: no such file; give the folder that holds annotations, train2017 and val2017")
    folder = root / "masks"
    folder.mkdir(exist_ok=True)
    missing = [str(file) for file in files if not file.is_file()]
    made = kept = 0
    for file in files:
        if str(file) in missing:
            continue
        images, drawn = _read_instances(file)
        there = {path.name for path in folder.iterdir()}
        todo = [image for image in images if f"{image[0]}.png" not in there]
        kept += len(images) - len(todo)
        jobs = [
            [(*image, drawn.get(image[3], [])) for image in todo[i : i + _IMAGES_A_JOB]]
            for i in range(0, len(todo), _IMAGES_A_JOB)
        ]
        made += for_all(partial(_draw_masks, folder), jobs, workers, progress)
    return Prepared(made, kept, tuple(f"{file}: no such file, so its images have no masks" for file in missing))


# Of an image: name without suffix, height, width, number. Of an instance: class, area, crowd, segmentation.
_Image = tuple[str, int, int, int]
_Instance = tuple[int, float, bool, Any]


def _read_instances(file: Path) -> tuple[list[_Image], dict[int, list[_Instance]]]:
    try:
        content = json.loads(file.read_bytes())
        categories = sorted((int(item["id"]), str(item["name"])) for item in content["categories"])
        if tuple(name for _, name in categories) != CLASSES[1:]:
            raise DataError(f"{file}: its categories are not the 80 of COCO")
        class_of = {number: k for k, (number, _) in enumerate(categories, 1)}
        images = [
            (Path(item["file_name"]).stem, int(item["height"]), int(item["width"]), int(item["id"]))
            for item in content["images"]
        ]
        instances: dict[int, list[_Instance]] = defaultdict(list)
        for item in content["annotations"]:
            crowd, shape = bool(item.get("iscrowd", 0)), item["segmentation"]
            instance = (class_of[item["category_id"]], float(item["area"]), crowd, shape)
            instances[int(item["image_id"])].append(instance)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not an instances file of COCO ({type(error).__name__}: {error})") from error
    return images, dict(instances)


def _draw_masks(folder: Path, images: Sequence[tuple[str, int, int, int, list[_Instance]]]) -> int:
    for name, height, width, _, instances in images:
        write_mask(folder / f"{name}.png", draw_instances(height, width, instances), default_palette(len(CLASSES)))
    return len(images)


def draw_instances(height: int, width: int, instances: Sequence[_Instance]) -> NDArray[np.uint8]:
    """Draw the instances (class, area, crowd, segmentation) of an image, larger ones first: (height, width)."""
    from pycocotools import mask as rle

    canvas = np.zeros((height, width), np.uint8)
    for k, _, crowd, shape in sorted(instances, key=lambda instance: -instance[1]):
        if isinstance(shape, list):
            shape = [polygon for polygon in shape if len(polygon) >= 6]  # less than a triangle covers nothing
            if not shape:
                continue
            coded = rle.merge(rle.frPyObjects(shape, height, width))
        else:
            coded = rle.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its array type is older than numpy 2
            canvas[rle.decode(coded).astype(bool)] = IGNORE if crowd else k
    return canvas
