"""Cityscapes (Cordts et al., CVPR 2016) in its own layout: leftImg8bit and gtFine."""

from __future__ import annotations

from pathlib import Path

from allspark.batch import IGNORE
from allspark.config.schema import DataConfig
from allspark.data.sets.base import DataSet, Partition
from allspark.data.sets.lists import Layout, divide_images, find_files
from allspark.data.source import RGB, Source
from allspark.errors import DataError

# The 19 classes that are evaluated: name, value in labelIds, colour.
_CLASSES: tuple[tuple[str, int, RGB], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_IMAGE_END = "_leftImg8bit"
_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds", "_gtFine_labelTrainIds"


def open_cityscapes(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/leftImg8bit and ROOT/gtFine; a sample's id is CITY_SEQUENCE_FRAME.

    Masks are ``*_labelTrainIds.png`` where they exist, else ``*_labelIds.png``, whose 34 values become the 19 classes
    while they are read. Without a list every image of ``train`` that has a mask is labelled. Lists in the published
    format load as they are, whichever of the two masks lies on disk.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    for part in ("leftImg8bit", "leftImg8bit/train"):
        if not (root / part).is_dir():
            raise DataError(f"{root / part}: no such folder; give the folder that holds leftImg8bit and gtFine")
    images = _by_frame(root / "leftImg8bit", "train", _IMAGE_END) | _by_frame(root / "leftImg8bit", "val", _IMAGE_END)
    if not images:
        raise DataError(f"{root / 'leftImg8bit'}: no image *{_IMAGE_END}.png in train or val")
    masks: dict[str, Path] = {}
    for ending in (_LABEL_IDS, _TRAIN_IDS):  # the latter wins
        for part in ("train", "val"):
            masks |= _by_frame(root / "gtFine", part, ending)
    layout = Layout(root, dict(sorted(images.items())), masks, root / "leftImg8bit", root / "gtFine")
    samples = layout.all()
    table = [IGNORE] * 34
    for index, (_, value, _) in enumerate(_CLASSES):
        table[value] = index
    source = Source(
        root,
        classes=tuple(name for name, _, _ in _CLASSES),
        palette=tuple(colour for _, _, colour in _CLASSES),
        codes={f"{_LABEL_IDS}.png": tuple(table)},
    )
    return divide_images(
        source,
        config,
        layout,
        train=[sample for sample in samples if _part(images[sample.id], root) == "train"],
        val=[sample for sample in samples if _part(images[sample.id], root) == "val"],
        require_labels=require_labels,
    )


CITYSCAPES = DataSet(
    open_cityscapes,
    marks=("leftImg8bit",),
    partitions={
        (100, "c4164038958f8c8e"): Partition("cityscapes", "1/30"),
        (186, "1e5363dd012cdc46"): Partition("cityscapes", "1/16", 78.33),
        (372, "6b3b52bab110157a"): Partition("cityscapes", "1/8", 79.24),
        (744, "6856046a4415296a"): Partition("cityscapes", "1/4", 80.56),
        (1488, "2b3183629a3a9f1a"): Partition("cityscapes", "1/2", 81.39),
    },
)


def _by_frame(folder: Path, part: str, ending: str) -> dict[str, Path]:
    """Files of a part whose name ends so, by CITY_SEQUENCE_FRAME."""
    found = find_files(folder / part)
    return {Path(key).name.removesuffix(ending): path for key, path in found.items() if key.endswith(ending)}


def _part(image: Path, root: Path) -> str:
    return image.relative_to(root / "leftImg8bit").parts[0]
