"""PASCAL VOC 2012 in its own layout, original or with the merged SBD masks (Hariharan et al. 2011)."""

from __future__ import annotations

from pathlib import Path

from allspark.config.schema import DataConfig
from allspark.data.sbd import find_sbd
from allspark.data.sets.base import DataSet, Partition
from allspark.data.sets.lists import Layout, divide_images, find_files, read_list
from allspark.data.source import Source, default_palette
from allspark.errors import DataError

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def open_voc(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open VOCdevkit, VOC2012, or any folder that holds JPEGImages and SegmentationClass.

    A mask is looked for in SegmentationClass (fine), then in SegmentationClassAug (the merged set as PNG files), then
    among the .mat files of SBD (benchmark_RELEASE/dataset/cls, or SBD/cls, in the given folder). Without a list, the
    1,464 finely labelled images of train.txt are labelled. All training images are those of train_aug.txt if it is
    there; else those of train.txt and all that have a mask of any kind and are not for validation, which with SBD are
    the same 10,582. Those that are not labelled are the unlabelled ones. Lists in the published format
    (`JPEGImages/X.jpg SegmentationClass/X.png`) load as they are.

    Raises:
        DataError: something is missing; the message says which file was looked for and how to fix it.
    """
    assert config.root is not None
    root = _voc_root(config.root)
    masks = {
        **find_sbd(root, config.root),
        **find_files(root / "SegmentationClassAug"),
        **find_files(root / "SegmentationClass"),
    }
    layout = Layout(root, find_files(root / "JPEGImages"), masks, root / "JPEGImages", root / "SegmentationClass")
    sets = root / "ImageSets" / "Segmentation"
    parts = {name: sets / f"{name}.txt" for name in ("train", "train_aug", "val")}
    if not parts["train"].is_file() and config.labeled is None and config.split is None:
        raise DataError(f"{parts['train']}: no such file; it lists the labelled images (or set data.labeled)")
    fine = read_list(parts["train"], layout) if parts["train"].is_file() else ()
    val = read_list(parts["val"], layout) if parts["val"].is_file() else ()
    if parts["train_aug"].is_file():
        train = read_list(parts["train_aug"], layout)
    else:
        apart = {sample.id for sample in val}
        train = tuple(layout.sample(name) for name in sorted(masks) if name in layout.images and name not in apart)
    known = {sample.id for sample in train}
    train = (*train, *(sample for sample in fine if sample.id not in known))
    source = Source(root, CLASSES, default_palette(len(CLASSES)))
    return divide_images(source, config, layout, train=train, val=val, labeled=fine, require_labels=require_labels)


VOC = DataSet(
    open_voc,
    marks=("JPEGImages", "VOC2012", "VOCdevkit/VOC2012"),
    partitions={
        (92, "124b0aab2fcd1767"): Partition("voc original", "92", 76.07),
        (183, "79b959bccf7753cd"): Partition("voc original", "183", 78.41),
        (366, "f0e702c687e2ba71"): Partition("voc original", "366", 79.77),
        (732, "8c23014f512884b9"): Partition("voc original", "732", 80.75),
        (1464, "129f1fe991729b18"): Partition("voc original", "1464", 82.12),
        (662, "baa85754594fcd33"): Partition("voc augmented", "1/16", 78.32),
        (1323, "c9ca45b4e688d408"): Partition("voc augmented", "1/8", 79.98),
        (2646, "fd0e8dca3dac524c"): Partition("voc augmented", "1/4", 80.42),
        (5291, "5338f277730143e0"): Partition("voc augmented", "1/2", 81.14),
        (662, "feea4692738362e4"): Partition("voc u2pl", "1/16"),
        (1323, "23921931a21324cf"): Partition("voc u2pl", "1/8"),
        (2646, "d35f7cd4b4815e1d"): Partition("voc u2pl", "1/4"),
    },
)


def _voc_root(root: Path) -> Path:
    for candidate in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise DataError(f"{root / 'JPEGImages'}: no such folder; give VOCdevkit, its VOC2012, or a folder in that layout")
