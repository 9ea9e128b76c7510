"""Generated scenes: the embedded default data set, and the tests' data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from allspark.config.schema import DataConfig
from allspark.data.image import write_mask
from allspark.data.sets.base import DataSet
from allspark.data.sets.folder import open_folder
from allspark.data.sets.scenes import CLASSES, PALETTE, draw_scene
from allspark.data.source import Source
from allspark.errors import DataError

_RING_EVERY = 5  # the rare class is in one scene of so many


def generate(
    root: Path,
    *,
    labeled: int = 8,
    unlabeled: int = 160,
    val: int = 48,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> None:
    """Write scenes in the `folder` layout: images/, masks/ of the labelled and validation ones, classes.txt, lists.

    The same arguments give the same files on every machine. The folder appears whole or not at all.

    Args:
        root: a folder that does not exist yet, or is empty.
        labeled: number of labelled training scenes.
        unlabeled: number of scenes without a mask.
        val: number of validation scenes.
        size: height and width [pixels].
        seed: of all scenes.

    Raises:
        DataError: ``root`` is a file, or holds something.
    """
    if _taken(root):
        raise DataError(f"{root} is not an empty folder; scenes are generated into a new one (choose another name)")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        draft = Path(temporary) / "draft"  # one level down: the outer folder can be entered by its owner only
        (draft / "images").mkdir(parents=True)
        (draft / "masks").mkdir()
        lists: dict[str, list[str]] = {"train": [], "val": []}
        parts = (("train", "labeled", labeled), ("train", "unlabeled", unlabeled), ("val", "val", val))
        for part_id, (list_name, part, count) in enumerate(parts):
            for index in range(count):
                name = f"{part}_{index:04d}"
                rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(part_id, index)))
                image, mask = draw_scene(rng, size, ring=index % _RING_EVERY == 0)
                Image.fromarray(image).save(draft / "images" / f"{name}.png")
                if part != "unlabeled":
                    write_mask(draft / "masks" / f"{name}.png", mask, PALETTE)
                lists[list_name].append(name)
        for list_name, names in lists.items():
            (draft / f"{list_name}.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
        rows = (f"{k}\t{name}\t{r} {g} {b}\n" for k, (name, (r, g, b)) in enumerate(zip(CLASSES, PALETTE, strict=True)))
        (draft / "classes.txt").write_text("".join(rows), "utf-8")
        try:
            draft.replace(root)
        except OSError as error:
            if not _taken(root):
                raise
            raise DataError(f"{root} was filled by another program while scenes were drawn for it") from error


def open_synthetic(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open generated scenes; a folder that does not exist yet is generated.

    Raises:
        DataError: the folder holds something else.
    """
    root = config.root
    assert root is not None
    if not _taken(root):
        try:
            generate(root)
        except DataError:
            if not _taken(root):  # else another process of this run was faster, and its scenes are the same
                raise
    return open_folder(config, require_labels=require_labels)


SYNTHETIC = DataSet(open_synthetic, generated=True)


def _taken(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))
