"""What every data set is to the rest of the program: samples, classes and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from allspark.batch import IGNORE

RGB = tuple[int, int, int]
Role = Literal["labeled", "unlabeled", "val"]
"""What an image of a data set is for: the field of `Source` that it is in."""


@dataclass(frozen=True)
class Member:
    """An image inside a tar file; it answers what a path is asked for.

    Attributes:
        archive: the tar file.
        member: name inside it.
        offset: where its bytes begin [bytes].
        size: how many they are [bytes].
    """

    archive: Path
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.member).name

    @property
    def suffix(self) -> str:
        """The end of its name, with the dot."""
        return PurePosixPath(self.member).suffix

    def read_bytes(self) -> bytes:
        """Read the file."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Sample:
    """One image. ``id`` is unique in its data set and names results; ``mask`` is None where no label exists."""

    id: str
    image: Path | Member
    mask: Path | None = None


@dataclass(frozen=True)
class Source:
    """A data set on disk, opened: nothing is decoded yet.

    Attributes:
        root: folder of the data set.
        classes: class names; the position is the class id.
        palette: one RGB colour a class, to write and to show masks.
        labeled: training images with a mask.
        unlabeled: training images used without a mask (``Sample.mask`` may be set, it is never read in training); a
            tuple, or :class:`allspark.data.shards.Shards`.
        val: validation images with a mask.
        pseudo: images with a mask of class ids that a network made, see :mod:`allspark.data.pseudo`.
        white: the value of images of more than 8 bits that is shown as white; None: see ``read_image``.
        rgb_masks: masks are RGB pictures that are coded by ``palette``.
        ignore: mask value (or, for RGB masks, colours outside the palette) that does not count.
        codes: how mask files are coded whose values are not class ids: the end of the file's name -> the class id (or
            ``ignore``) of each value 0, 1, 2, ...; values beyond are left as they are.
        faults: what is wrong with the layout, found while opening; ``allspark check`` lists it, all others stop.
        notes: one line for each decision the user should know of (for example a held-out validation part).
    """

    root: Path
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    labeled: tuple[Sample, ...] = ()
    unlabeled: Sequence[Sample] = ()
    val: tuple[Sample, ...] = ()
    pseudo: tuple[Sample, ...] = ()
    white: float | None = None
    rgb_masks: bool = False
    ignore: int = IGNORE
    codes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes (the ignore value is not one)."""
        return len(self.classes)


def code_of(mask: Path, codes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The class id of each value of a mask file, see ``Source.codes``; None where values are class ids."""
    return next((ids for ending, ids in codes.items() if mask.name.endswith(ending)), None)


def default_palette(count: int) -> tuple[RGB, ...]:
    """The colour map of PASCAL VOC: distinct colours for up to 256 ids, id 0 black."""
    colours = []
    for index in range(count):
        r = g = b = 0
        rest = index
        for shift in range(7, -1, -1):
            r |= (rest & 1) << shift
            g |= (rest >> 1 & 1) << shift
            b |= (rest >> 2 & 1) << shift
            rest >>= 3
        colours.append((r, g, b))
    return tuple(colours)
