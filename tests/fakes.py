"""Small generated data sets in the true layouts of the published ones: the same folders, names, formats and codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from allspark.config.schema import ModelConfig
from allspark.data.sets.coco import CLASSES as COCO_CLASSES
from allspark.data.sets.coco import prepare_coco
from allspark.data.sets.potsdam import CLASSES as POTSDAM_CLASSES
from allspark.data.sets.potsdam import prepare_potsdam
from allspark.data.sets.synthetic import generate
from allspark.data.source import default_palette

SIZE = (64, 80)  # height, width


def picture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """Coarse blocks of colour under some noise."""
    blocks = rng.integers(0, 256, (4, 5, 3), np.uint8)
    noise = rng.integers(0, 40, (*size, 3), np.uint8)
    large = np.asarray(Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST))
    return Image.fromarray(np.where(noise > large, large, large - noise))


def values(rng: np.random.Generator, of: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Coarse blocks of mask values."""
    blocks = rng.choice(np.array(of, np.uint8), (4, 5))
    return np.asarray(Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST))


def _save(image: Image.Image | np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def folder(root: Path) -> None:
    """images/, masks/, classes.txt."""
    generate(root, labeled=4, unlabeled=6, val=3, size=SIZE)


def voc(root: Path) -> None:
    """VOCdevkit/VOC2012: palette masks, of which those of SBD lie in SegmentationClassAug."""
    rng = np.random.default_rng(0)
    home = root / "VOCdevkit" / "VOC2012"
    names = [f"2007_{i:06d}" for i in range(13)]
    parts = {"train": names[:4], "val": names[10:], "train_aug": names[:10]}
    for name in names:
        _save(picture(rng), home / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(values(rng, [0, 1, 15, 20, 255]))
        mask.putpalette(np.array(default_palette(256), np.uint8).tobytes())
        fine = name not in parts["train_aug"][4:]
        _save(mask, home / ("SegmentationClass" if fine else "SegmentationClassAug") / f"{name}.png")
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part, members in parts.items():
        (home / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("".join(f"{name}\n" for name in members))


def cityscapes(root: Path) -> None:
    """leftImg8bit and gtFine with labelIds; the last city of train has no masks, val has labelTrainIds as well."""
    rng = np.random.default_rng(1)
    cities = {"train": {"aachen": 4, "jena": 2, "ulm": 4}, "val": {"lindau": 3}}
    for part, counts in cities.items():
        for city, count in counts.items():
            for i in range(count):
                frame = f"{city}_{i:06d}_000019"
                _save(picture(rng), root / "leftImg8bit" / part / city / f"{frame}_leftImg8bit.png")
                if city == "ulm":
                    continue
                ids = values(rng, [0, 3, 7, 11, 26, 33, 255])
                masks = root / "gtFine" / part / city
                _save(ids, masks / f"{frame}_gtFine_labelIds.png")
                _save(ids, masks / f"{frame}_gtFine_instanceIds.png")
                _save(picture(rng), masks / f"{frame}_gtFine_color.png")
                if part == "val":
                    train_ids = np.full(256, 255, np.uint8)
                    train_ids[[7, 11, 26, 33]] = (0, 2, 13, 18)
                    _save(train_ids[ids], masks / f"{frame}_gtFine_labelTrainIds.png")


def coco_annotations(root: Path) -> None:
    """train2017, val2017 and annotations: polygons in several parts, a crowd, an image without any instance."""
    rng = np.random.default_rng(2)
    height, width = SIZE
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    numbers = [number for number in range(1, 91) if number not in gaps]
    named = zip(numbers, COCO_CLASSES[1:], strict=True)
    categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in named]
    (root / "annotations").mkdir(parents=True)
    for part, first, count in (("train2017", 1, 10), ("val2017", 501, 3)):
        images, annotations = [], []
        for image_id in range(first, first + count):
            name = f"{image_id:012d}.jpg"
            _save(picture(rng), root / part / name)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            if image_id == first:
                continue
            for _ in range(4):
                top, left = (int(rng.integers(0, side - 20)) for side in SIZE)
                h, w = (int(rng.integers(5, 20)) for _ in SIZE)
                box = [left, top, left + w, top, left + w, top + h, left, top + h]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(rng.choice(numbers)),
                        "segmentation": [box, [0, 0, 4, 0, 4, 4]],
                        "area": h * w + 8,
                        "bbox": [left, top, w, h],
                        "iscrowd": 0,
                    }
                )
            run = height * 10
            crowd = {"size": [height, width], "counts": [run, 30, height * width - run - 30]}
            annotations[-1] |= {"segmentation": crowd, "area": 30, "iscrowd": 1}
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def coco(root: Path) -> None:
    """COCO after `allspark prepare coco`; six training masks are taken away again."""
    coco_annotations(root)
    prepare_coco(root, workers=1)
    for image_id in range(5, 11):
        (root / "masks" / f"{image_id:012d}.png").unlink()


def loveda(root: Path) -> None:
    """Train and Val, urban and rural; mask value 0 is no data. Rural training images have no masks."""
    rng = np.random.default_rng(3)
    number = 0
    for part, area, count in (("Train", "Urban", 4), ("Train", "Rural", 6), ("Val", "Urban", 2), ("Val", "Rural", 1)):
        for _ in range(count):
            home = root / part / area
            _save(picture(rng), home / "images_png" / f"{number}.png")
            if (part, area) != ("Train", "Rural"):
                _save(values(rng, [0, 1, 2, 7]), home / "masks_png" / f"{number}.png")
            number += 1


def potsdam_pictures(root: Path, size: tuple[int, int] = (128, 160)) -> None:
    """2_Ortho_RGB and both kinds of labels; one training area has no labels."""
    rng = np.random.default_rng(4)
    colours = np.array([colour for _, colour in POTSDAM_CLASSES] + [(252, 255, 0)], np.uint8)
    for area in ("2_10", "6_7", "7_13"):
        _save(picture(rng, size), root / "2_Ortho_RGB" / f"top_potsdam_{area}_RGB.tif")
        if area != "6_7":
            labels = colours[values(rng, list(range(7)), size)]
            _save(labels, root / "5_Labels_all" / f"top_potsdam_{area}_label.tif")
            labels[:3] = 0
            _save(labels, root / "5_Labels_all_noBoundary" / f"top_potsdam_{area}_label_noBoundary.tif")


def potsdam(root: Path) -> None:
    """Potsdam after `allspark prepare potsdam --size 80`."""
    potsdam_pictures(root)
    prepare_potsdam(root, size=80, workers=1)


FAKES: dict[str, Callable[[Path], None]] = {
    "folder": folder,
    "voc": voc,
    "cityscapes": cityscapes,
    "coco": coco,
    "loveda": loveda,
    "potsdam": potsdam,
    "synthetic": folder,
}
"""One for each of DATA_SETS: writes into a folder that does not exist yet."""


ENCODERS = {
    "segformer": {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 5, 8]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 2]},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2},
}
"""Encoders of each kind, small enough for a test: model type -> fields of its transformers configuration."""


def tiny(name, **kwargs):
    return ModelConfig(encoder=name, encoder_config=ENCODERS[name], pretrained="none", bottleneck="none", **kwargs)
