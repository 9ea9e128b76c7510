"""COCO 2017 (Lin et al., ECCV 2014) as semantic segmentation: train2017, val2017 and masks of 81 classes."""

from __future__ import annotations

from pathlib import Path

from allspark.config.schema import DataConfig
from allspark.data.sets.lists import Layout, divide, find_files
from allspark.data.source import Source, default_palette
from allspark.errors import DataError

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

PARTS = ("train2017", "val2017")


def open_coco(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/train2017, ROOT/val2017 and ROOT/masks; a sample's id is its number, as in ``000000000139``.

    Masks are those that `allspark prepare coco` draws, or ready-made ones: masks/NUMBER.png, also in
    masks/{train2017,val2017}. Without a list every training image that has a mask is labelled.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    parts = {part: find_files(root / part) for part in PARTS}
    if not parts["train2017"]:
        raise DataError(f"{root / 'train2017'}: no image there; give the folder that holds train2017 and val2017")
    masks = {Path(key).name: path for key, path in find_files(root / "masks").items()}
    layout = Layout(
        root,
        dict(sorted((parts["train2017"] | parts["val2017"]).items())),
        masks,
        root / "train2017",
        root / "masks",
        advice=f"draw them with `allspark prepare coco {root}`, or put ready-made ones there",
    )
    train = [layout.sample(name) for name in parts["train2017"]]
    divided = divide(
        config,
        layout,
        train=train,
        labeled=[sample for sample in train if sample.mask is not None],
        val=[layout.sample(name) for name in parts["val2017"] if name in masks],
        require_labels=require_labels,
    )
    return Source(
        root=root,
        classes=CLASSES,
        palette=default_palette(len(CLASSES)),
        labeled=divided.labeled,
        unlabeled=divided.unlabeled,
        val=divided.val,
        notes=divided.notes,
    )
