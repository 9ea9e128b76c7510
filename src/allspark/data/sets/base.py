"""What the program knows of a kind of data set: how to open it, what its folder looks like, its published lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from allspark.data.source import Source


@dataclass(frozen=True)
class Partition:
    """A published list of labelled images.

    Attributes:
        family: lists whose results may be compared, for example ``voc u2pl``.
        name: within the family, for example ``1/16``.
        miou: the paper's AllSpark (MiT-B5) on it [percent], as the published repository gives it (xmed-lab/AllSpark,
            README); None: not reported.
    """

    family: str
    name: str
    miou: float | None = None

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


@dataclass(frozen=True)
class DataSet:
    """A kind of data set.

    Attributes:
        open: called with a `DataConfig`, whose ``root`` is a folder, and ``require_labels``; returns the `Source`.
            Nothing is decoded. What is missing on disk is a `DataError` that names the file looked for and the fix.
        marks: paths below the root; a folder in which one of them exists is taken for this data set.
        partitions: published labelled lists, by the number of their images and their
            :func:`allspark.data.partitions.digest`.
        generated: opening makes the images; the root need not exist.
    """

    open: Callable[..., Source]
    marks: tuple[str, ...] = ()
    partitions: Mapping[tuple[int, str], Partition] = field(default_factory=dict)
    generated: bool = False
