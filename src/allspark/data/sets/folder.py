"""The `folder` layout: images/, masks/ and classes.txt. Unlabelled images need no mask of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from allspark.batch import IGNORE
from allspark.config.schema import DataConfig
from allspark.data.image import is_coloured
from allspark.data.sets.base import DataSet
from allspark.data.sets.classes import colours_in, read_classes, unnamed_classes
from allspark.data.sets.lists import Layout, configured_lists, divide_images, find_files, read_list
from allspark.data.source import RGB, Sample, Source, default_palette
from allspark.errors import DataError

_LOOKED_AT = 20  # masks whose headers are read before training; `allspark check` reads all
_PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of folders in images/ that say what their images are for."""
_MASK_FOLDERS = ("labels", "annotations", "gt", "ground_truth", "SegmentationClass")
_MASK_ENDINGS = ("_mask", "_label", "_labels", "_gt", "_seg", "-mask")
_HELD_OUT = 5  # without val.txt, one labelled image of so many is held out


def open_folder(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/images, ROOT/masks and ROOT/classes.txt.

    An image is labelled if masks/ holds a file of the same name (another suffix is fine). ROOT/train.txt and
    ROOT/val.txt, where present, name the training and validation images; so do folders of these names in images/ (and
    masks/), where images/test is left out. Without any of these or a configured list every fifth labelled image (in an
    order shuffled once and for all) is held out, also of a configured labelled list.

    Args:
        config: where and which lists.
        require_labels: False accepts a set in which nothing is labelled (`check`, `split`, `eval`).

    Raises:
        DataError: something is missing; the message says which file was looked for and how to fix it.
    """
    root = config.root
    assert root is not None
    if not (root / "images").is_dir():
        here = sorted(path.name for path in root.iterdir())[:5]
        raise DataError(
            f"{root / 'images'}: no such folder; put images in {root}/images, masks of the same names in {root}/masks "
            f"and class names in {root}/classes.txt ({root} holds {', '.join(here) or 'nothing'})"
        )
    doubled: list[str] = []
    images, masks = find_files(root / "images", doubled), find_files(root / "masks", doubled)
    if not images:
        raise DataError(f"{root / 'images'}: holds no image (png, jpg, tif, webp or bmp)")
    doubled += _misplaced(root, images, masks)
    layout = Layout(root, images, masks, root / "images", root / "masks", faults=doubled)
    names, palette, own_colours, faults = _classes(root / "classes.txt", list(masks.values()))
    _, _, val_list = configured_lists(config, root)
    train, val, notes = _own_division(layout, hold_out=val_list is None)
    source = Source(root, names, palette, rgb_masks=own_colours, faults=faults, notes=notes)
    source = divide_images(source, config, layout, train=train, val=val, require_labels=require_labels)
    held_out = val_list is None and not (root / "val.txt").is_file()
    apart = {sample.id for sample in val} if held_out else set()  # no list of the user's says otherwise
    labeled = tuple(sample for sample in source.labeled if sample.id not in apart)
    if require_labels and not labeled and not source.faults:
        raise DataError(
            f"all {len(source.labeled)} labelled images are held out for validation, as there is no "
            f"{root / 'val.txt'}; write one, or name a list with data.val"
        )
    return replace(source, labeled=labeled)


def _parts(layout: Layout) -> dict[str, list[Sample]]:
    """Images that lie in images/train, images/val and the like; empty where they lie otherwise."""
    parts: dict[str, list[Sample]] = {}
    for sample in layout.all():
        folder = sample.id.partition("/")[0].lower() if "/" in sample.id else ""
        parts.setdefault(_PARTS.get(folder, ""), []).append(sample)
    if not {"val", "test"} & parts.keys():
        return {}
    parts["train"] = parts.get("train", []) + parts.get("", [])
    return {name: parts[name] for name in ("train", "val", "test") if name in parts}


def _misplaced(root: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    """Why none of the masks is found, where that can be seen."""
    if any(name in masks for name in images):
        return []
    other = next((name for name in _MASK_FOLDERS if (root / name).is_dir()), None)
    if other and not masks:
        return [f"{root / 'masks'}: no mask there, but {root / other} is there; rename it: mv {other} masks"]
    for where, names in (("masks", masks), ("images", images)):
        for ending in _MASK_ENDINGS:
            if any(name.endswith(ending) and name.removesuffix(ending) in images for name in names):
                return [
                    f"{root / where}: masks are named NAME{ending}; they belong into masks/ under the names of their "
                    f'images: mkdir -p masks; for f in {where}/*{ending}.png; do n=${{f##*/}}; mv "$f" '
                    f'"masks/${{n%{ending}.png}}.png"; done (in {root})'
                ]
    return []


FOLDER = DataSet(open_folder, marks=("images",))


def _classes(path: Path, masks: Sequence[Path]) -> tuple[tuple[str, ...], tuple[RGB, ...], bool, tuple[str, ...]]:
    """Names, colours, whether the colours are the file's own, and what is wrong with the file."""
    try:
        names, palette, own_colours = read_classes(path, masks)
    except DataError as error:
        return unnamed_classes(), default_palette(IGNORE), False, (str(error),)
    coloured = [] if own_colours else [mask for mask in masks[:_LOOKED_AT] if is_coloured(mask)]
    if not coloured:
        return names, palette, own_colours, ()
    colours = " | ".join(" ".join(map(str, colour)) for colour in colours_in(coloured)[:8])
    fault = (
        f"{coloured[0]}: an RGB mask, but {path} gives no colours; write `0<TAB>NAME<TAB>R G B` a line, one a class; "
        f"the first masks hold the colours {colours}"
    )
    return names, palette, own_colours, (fault,)


def _own_division(layout: Layout, *, hold_out: bool) -> tuple[list[Sample], list[Sample], tuple[str, ...]]:
    """Training and validation images as train.txt and val.txt say, or images/train and images/val, or as the masks do.

    Returns:
        Both, and what to know of them.
    """
    notes: tuple[str, ...] = ()
    train_list, val_list = layout.root / "train.txt", layout.root / "val.txt"
    parts = _parts(layout)
    val = list(read_list(val_list, layout)) if val_list.is_file() else parts.get("val", [])
    apart = {sample.id for sample in val}  # not for training, even where another list is validated on
    train = list(read_list(train_list, layout)) if train_list.is_file() else parts.get("train", layout.all())
    both = [sample for sample in train if sample.id in apart] if train_list.is_file() else []
    if both:
        notes = (f"{len(both)} of {val_list} stand in {train_list} too: they are kept out of training",)
    train = [sample for sample in train if sample.id not in apart]
    if parts and not (train_list.is_file() and val_list.is_file()):
        found = ", ".join(f"{len(samples)} {name}" for name, samples in parts.items())
        unused = "; test images are not used" if "test" in parts else ""
        notes = (*notes, f"the folders in {layout.image_folder} divide the images: {found}{unused}")
    if not val:
        masked = [sample for sample in train if sample.mask is not None]
        order = np.random.default_rng(0).permutation(len(masked))
        held = sorted(order[: max(1, len(masked) // _HELD_OUT)].tolist()) if hold_out and len(masked) > 1 else []
        val = [masked[i] for i in held]
        if val:
            notes = (
                *notes,
                f"no {val_list}: {len(val)} of {len(masked)} labelled images are held out for validation",
            )
    return train, val, notes
