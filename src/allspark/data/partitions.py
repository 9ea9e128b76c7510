"""Which of the published partitions a labelled list is, so that results carry its name and never mix families.

On PASCAL VOC two families share the names 1/16, 1/8 and 1/4: the common lists, drawn from all 10,582 images, and those
of U2PL, drawn from the finely labelled ones first. 1/16 of the former holds 93 fine masks of 662, of the latter 662 of
662. Their results must never stand in one column.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from allspark.data.source import Source


@dataclass(frozen=True)
class Partition:
    """A published list of labelled images.

    Attributes:
        family: lists whose results may be compared, for example ``voc u2pl``.
        name: within the family, for example ``1/16``.
        miou: the paper's AllSpark (MiT-B5) on it [percent]; None: not reported.
    """

    family: str
    name: str
    miou: float | None = None

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


# Source, number of images, first quarter of the SHA-256 of the sorted ids -> partition. The scores are those of the
# published repository (xmed-lab/AllSpark, README).
_PUBLISHED = {
    ("voc", 92, "124b0aab2fcd1767"): Partition("voc original", "92", 76.07),
    ("voc", 183, "79b959bccf7753cd"): Partition("voc original", "183", 78.41),
    ("voc", 366, "f0e702c687e2ba71"): Partition("voc original", "366", 79.77),
    ("voc", 732, "8c23014f512884b9"): Partition("voc original", "732", 80.75),
    ("voc", 1464, "129f1fe991729b18"): Partition("voc original", "1464", 82.12),
    ("voc", 662, "baa85754594fcd33"): Partition("voc augmented", "1/16", 78.32),
    ("voc", 1323, "c9ca45b4e688d408"): Partition("voc augmented", "1/8", 79.98),
    ("voc", 2646, "fd0e8dca3dac524c"): Partition("voc augmented", "1/4", 80.42),
    ("voc", 5291, "5338f277730143e0"): Partition("voc augmented", "1/2", 81.14),
    ("voc", 662, "feea4692738362e4"): Partition("voc u2pl", "1/16"),
    ("voc", 1323, "23921931a21324cf"): Partition("voc u2pl", "1/8"),
    ("voc", 2646, "d35f7cd4b4815e1d"): Partition("voc u2pl", "1/4"),
    ("cityscapes", 100, "c4164038958f8c8e"): Partition("cityscapes", "1/30"),
    ("cityscapes", 186, "1e5363dd012cdc46"): Partition("cityscapes", "1/16", 78.33),
    ("cityscapes", 372, "6b3b52bab110157a"): Partition("cityscapes", "1/8", 79.24),
    ("cityscapes", 744, "6856046a4415296a"): Partition("cityscapes", "1/4", 80.56),
    ("cityscapes", 1488, "2b3183629a3a9f1a"): Partition("cityscapes", "1/2", 81.39),
    ("coco", 232, "7a80d0605a2a4383"): Partition("coco", "1/512", 34.10),
    ("coco", 463, "d89f8cf50e276af3"): Partition("coco", "1/256", 41.65),
    ("coco", 925, "92eb3929f14c6eab"): Partition("coco", "1/128", 45.48),
    ("coco", 1849, "67e1fa5b00095d68"): Partition("coco", "1/64", 49.56),
    ("coco", 3697, "3410484b25372201"): Partition("coco", "1/32"),
}


def partition_of(kind: str, source: Source) -> Partition | None:
    """Recognise a published partition by the ids of its labelled images.

    Args:
        kind: ``data.source``.
        source: the open data set.

    Returns:
        None if the labelled list is none of the published ones.
    """
    if not any((kind, len(source.labeled)) == known[:2] for known in _PUBLISHED):
        return None
    ids = sorted(sample.id for sample in source.labeled)
    digest = hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return _PUBLISHED.get((kind, len(ids), digest))
