"""Pseudo masks for unlabelled images, with how far each can be relied on: ``allspark label``."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from allspark.batch import IGNORE
from allspark.data.decode import picture_or_error, prefetch
from allspark.data.image import write_mask
from allspark.data.pseudo import list_lines, name_in_list
from allspark.data.source import Sample, Source
from allspark.errors import ConfigError, DataError
from allspark.files import atomic_write, lock_folder
from allspark.inference.files import Input, output_names
from allspark.inference.metrics import ConfusionMatrix
from allspark.inference.predictor import Predictor

SETTINGS = "label.json"
_TABLE = "reliability.csv"
_MASKS = "pseudo_masks"  # no data set has a folder of this name: a list cannot mean true masks
_COLUMNS = ("image", "mask", "confidence", "kept", "stability")


@dataclass(frozen=True)
class Labeled:
    """An image with the mask that it was given.

    Attributes:
        image: as lists name it.
        mask: the mask's path below the folder of the labels.
        confidence: mean probability of the pixels' classes.
        kept: share of the pixels that have a label; the others were not confident enough.
        stability: mean IoU of earlier checkpoints' predictions with the last one's; None: there is one checkpoint.
    """

    image: str
    mask: str
    confidence: float
    kept: float
    stability: float | None

    @property
    def reliability(self) -> float:
        """By which images are ranked: the stability where it is known, else the confidence."""
        return self.confidence if self.stability is None else self.stability


@dataclass(frozen=True)
class Labeller:
    """What gives an image its mask.

    Attributes:
        predictor: gives the labels.
        checkpoints: predict as well, for the stability; the last is the one that the others are compared with. Empty:
            none is computed.
        confidence: pixels below this probability get no label (255); None: all get one.
        tta: labels are the mean over sizes and mirrored images; the stability is without, as published.
    """

    predictor: Predictor
    checkpoints: Sequence[Predictor] = ()
    confidence: float | None = None
    tta: bool = False

    def label(self, image: Image.Image, num_classes: int) -> tuple[NDArray[np.uint8], float, float | None]:
        """Return the mask (H, W), the mean confidence and the stability of an RGB image."""
        found = self.predictor.predict(image, tta=self.tta)
        mask = found.mask
        if self.confidence is not None:
            mask = np.where(found.confidence < self.confidence, np.uint8(IGNORE), mask)
        steady = None
        if self.checkpoints:
            steady = stability([one.predict(image).mask for one in self.checkpoints], num_classes)
        return mask, float(found.confidence.mean(dtype=np.float64)), steady


def stability(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> float:
    """How steady the predictions of one image were while the network learned (ST++, Yang et al., CVPR 2022).

    Args:
        masks: (H, W) each, of two or more checkpoints, the last one last.
        num_classes: k.

    Returns:
        The mean, over the earlier ones, of their mIoU with the last one; classes that neither has do not count.
    """
    *earlier, last = (torch.from_numpy(mask) for mask in masks)
    scores = []
    for mask in earlier:
        confusion = ConfusionMatrix(num_classes)
        confusion.update(mask, last)
        scores.append(confusion.scores().miou)
    return math.fsum(scores) / len(scores)


def reliable(labeled: Sequence[Labeled], share: float) -> list[Labeled]:
    """The most reliable images, ``floor(share * count)`` of them, in the order that they have."""
    count = math.floor(share * len(labeled) + 1e-9)
    ranked = sorted(range(len(labeled)), key=lambda place: -labeled[place].reliability)  # stable
    return [labeled[place] for place in sorted(ranked[:count])]


def label_images(
    labeller: Labeller,
    samples: Sequence[Sample],
    source: Source,
    out: Path,
    settings: Mapping[str, Any],
    *,
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
    on_bad: Callable[[DataError], None] | None = None,
) -> list[Labeled]:
    """Write a pseudo mask for each image, class ids in a PNG, and a table of their reliability.

    What an earlier call with the same settings has done in ``out`` is not done again.

    Args:
        labeller: what gives the masks.
        samples: the images, none of them in a tar file.
        source: their data set: classes, colours and folder.
        out: folder of the labels, made if need be: label.json, reliability.csv and pseudo_masks/.
        settings: JSON-able, all that the labels depend on; kept in label.json.
        max_pixels: largest image that is decoded [pixels].
        progress: called with the number of images done and of all.
        on_bad: called with what is wrong with an image, which is left out then; None: the error is raised.

    Raises:
        ConfigError: ``out`` holds other files, or labels that were made in another way.
        DataError: an image cannot be used.
    """
    if not samples:
        raise DataError(f"{source.root}: no image to label")
    names, files = _names(samples, source.root)
    with _claimed(out, settings):
        done = _read_table(out)
        todo = [place for place, name in enumerate(names) if name not in done]
        _require_free([(names[place], files[place]) for place in todo], done, out)
        with atomic_write(out / _TABLE, "w") as file:  # without the half line that a killed run may have left
            _writer(file).writeheader()
            _writer(file).writerows(_row(one) for one in done.values())
        read = partial(picture_or_error, max_pixels=max_pixels, white=source.white)
        images = prefetch([samples[place].image for place in todo], read, workers=1, ahead=2)
        with closing(images) as pictures, (out / _TABLE).open("a", encoding="utf-8", newline="") as table:
            for count, (place, picture) in enumerate(zip(todo, pictures, strict=True), len(samples) - len(todo) + 1):
                if isinstance(picture, DataError):
                    if on_bad is None:
                        raise picture
                    on_bad(picture)
                else:
                    mask, confidence, steady = labeller.label(picture, source.num_classes)
                    path = out / files[place]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_mask(path, mask, source.palette)
                    kept = float((mask != IGNORE).mean())
                    one = Labeled(names[place], files[place].as_posix(), confidence, kept, steady)
                    done[one.image] = one
                    _writer(table).writerow(_row(one))
                    table.flush()
                if progress is not None:
                    progress(count, len(samples))
    return [done[name] for name in names if name in done]


def write_lists(
    labeled: Sequence[Labeled], chosen: Sequence[Labeled], out: Path, path: Path, before: Sequence[tuple[str, Path]]
) -> None:
    """Write the list of the chosen images, and rest.txt, in the folder of the labels, of the others.

    Args:
        labeled: all images.
        chosen: those for the list.
        out: folder of the labels.
        path: the list's file.
        before: images and masks of another list, which come first.
    """
    taken = {one.image for one in chosen}
    rest = [one.image for one in labeled if one.image not in taken]
    pairs = dict(before) | {one.image: out / one.mask for one in chosen}
    if rest:
        with atomic_write(out / "rest.txt", "w") as file:
            file.write("".join(f"{name}\n" for name in rest))
    else:
        (out / "rest.txt").unlink(missing_ok=True)
    with atomic_write(path, "w") as file:  # last: where it is, all is
        file.write(list_lines(pairs.items(), path))


@contextmanager
def _claimed(out: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make the folder, keep other processes from it for a while, and write down how its labels are made."""
    require_ours(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(out)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            raise
        raise ConfigError(f"{out}: another process labels into this folder; wait for it, or choose another") from error
    with lock:
        with atomic_write(out / SETTINGS, "w") as file:
            json.dump(dict(settings), file, indent=2)
        yield


def require_ours(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder of something else, and one with labels that were made in another way.

    Raises:
        ConfigError: what is there instead.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: a file, but a folder is needed; choose another --out")
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if not others:
        return
    if SETTINGS not in others:
        raise ConfigError(f"{out}: holds other files ({others[0]}, ...); give a new or an empty folder with --out")
    try:
        found = json.loads((out / SETTINGS).read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{out / SETTINGS}: damaged ({error}); choose another --out") from error
    for name, value in settings.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{out}: holds labels that were made with {name} {found.get(name)}, not {value}; choose another --out, "
                "or remove the folder"
            )


def _names(samples: Sequence[Sample], root: Path) -> tuple[list[str], list[Path]]:
    """How lists name the images, and the masks' paths below the folder of the labels."""
    images = [Path(str(sample.image)) for sample in samples]
    ids = [Path(f"{sample.id}.png") for sample in samples]
    inside = [Path(*(part for part in path.parts if part not in {path.anchor, ".."})) for path in ids]
    files = output_names([Input(*pair) for pair in zip(images, inside, strict=True)])
    return [name_in_list(image, root) for image in images], [Path(_MASKS, f"{file}.png") for file in files]


def _require_free(wanted: Sequence[tuple[str, Path]], done: Mapping[str, Labeled], out: Path) -> None:
    """Refuse to write over the mask that an earlier call gave another image of the same name."""
    taken = {one.mask.casefold(): one.image for one in done.values()}
    for image, file in wanted:
        if file.as_posix().casefold() in taken:
            other = taken[file.as_posix().casefold()]
            raise ConfigError(f"{out}: {file} is the mask of {other}, not of {image}; choose another --out")


def _read_table(out: Path) -> dict[str, Labeled]:
    """What is labelled already, by the names of the images."""
    done: dict[str, Labeled] = {}
    if (out / _TABLE).is_file():
        text = (out / _TABLE).read_text("utf-8", "replace")
        whole = text[: text.rfind("\n") + 1]  # a killed run may have left a part of a line
        for row in csv.DictReader(io.StringIO(whole, newline="")):
            if (out / row["mask"]).is_file():
                steady = float(row["stability"]) if row["stability"] else None
                numbers = float(row["confidence"]), float(row["kept"])
                done[row["image"]] = Labeled(row["image"], row["mask"], *numbers, steady)
    return done


def _writer(file: IO[str]) -> csv.DictWriter[str]:
    return csv.DictWriter(file, _COLUMNS, lineterminator="\n")


def _row(one: Labeled) -> dict[str, Any]:
    steady = "" if one.stability is None else one.stability
    return {
        "image": one.image,
        "mask": one.mask,
        "confidence": one.confidence,
        "kept": one.kept,
        "stability": steady,
    }
