"""The `folder` layout: images/, masks/ and classes.txt. Unlabelled images need no mask of any kind."""

from __future__ import annotations

import numpy as np

from allspark.config import DataConfig
from allspark.data.classes import colours_in, is_rgb, read_classes
from allspark.data.layout import Layout, configured_lists, divide, find_files, read_list
from allspark.data.source import Sample, Source
from allspark.errors import DataError

_HELD_OUT = 5  # without val.txt, one labelled image of so many is held out


def open_folder(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/images, ROOT/masks and ROOT/classes.txt.

    An image is labelled if masks/ holds a file of the same name (another suffix is fine). ROOT/train.txt and
    ROOT/val.txt, where present, name the training and validation images; without val.txt or a configured list every
    fifth labelled image (in an order shuffled once and for all) is held out, also of a configured labelled list.

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
    images, masks = find_files(root / "images"), find_files(root / "masks")
    if not images:
        raise DataError(f"{root / 'images'}: holds no image (png, jpg, tif, webp or bmp)")
    layout = Layout(root, images, masks, root / "images", root / "masks")
    names, palette, own_colours = read_classes(root / "classes.txt", masks.values())
    first = [mask for mask, _ in zip(masks.values(), range(20), strict=False)]
    coloured = [mask for mask in first if is_rgb(mask)]
    if coloured and not own_colours:
        colours = " | ".join(" ".join(map(str, colour)) for colour in colours_in(coloured)[:8])
        raise DataError(
            f"{coloured[0]}: an RGB mask, but {root / 'classes.txt'} gives no colours; write `0<TAB>NAME<TAB>R G B` a "
            f"line, one a class; the first masks hold the colours {colours}"
        )
    _, _, val_list = configured_lists(config, root)
    train, labeled, val, notes = _own_division(layout, hold_out=val_list is None)
    parts = divide(config, layout, train=train, labeled=labeled, val=val, require_labels=require_labels)
    apart = {sample.id for sample in val} if notes else set()  # held out here: no list of the user's says otherwise
    return Source(
        root=root,
        classes=names,
        palette=palette,
        labeled=tuple(sample for sample in parts.labeled if sample.id not in apart),
        unlabeled=parts.unlabeled,
        val=parts.val,
        rgb_masks=bool(coloured),
        notes=(*notes, *parts.notes),
    )


def _own_division(
    layout: Layout, *, hold_out: bool
) -> tuple[list[Sample], list[Sample], list[Sample], tuple[str, ...]]:
    """Training, labelled and validation images as train.txt and val.txt say, or as the masks do."""
    notes: tuple[str, ...] = ()
    train_list, val_list = layout.root / "train.txt", layout.root / "val.txt"
    train = list(read_list(train_list, layout)) if train_list.is_file() else layout.all()
    masked = [sample for sample in train if sample.mask is not None]
    if val_list.is_file():
        val = list(read_list(val_list, layout))
    else:
        order = np.random.default_rng(0).permutation(len(masked))
        held = sorted(order[: max(1, len(masked) // _HELD_OUT)].tolist()) if hold_out and len(masked) > 1 else []
        val = [masked[i] for i in held]
        if val:
            notes = (f"no {val_list}: {len(val)} of {len(masked)} labelled images are held out for validation",)
    apart = {sample.id for sample in val}
    return train, [sample for sample in masked if sample.id not in apart], val, notes
