"""Which of the published partitions a labelled list is, so that results carry its name and never mix families.

On PASCAL VOC two families share the names 1/16, 1/8 and 1/4: the common lists, drawn from all 10,582 images, and those
of U2PL, drawn from the finely labelled ones first. 1/16 of the former holds 93 fine masks of 662, of the latter 662 of
662. Their results must never stand in one column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from allspark.data.sets import DATA_SETS
from allspark.data.sets.base import Partition
from allspark.data.source import Source


def partition_of(kind: str, source: Source) -> Partition | None:
    """Recognise a published partition by the ids of its labelled images.

    Args:
        kind: ``data.source``.
        source: the open data set.

    Returns:
        None if the labelled list is none of the published ones.
    """
    known = DATA_SETS[kind].partitions if kind in DATA_SETS else {}
    count = len(source.labeled)
    if not any(count == length for length, _ in known):
        return None
    return known.get((count, digest(sample.id for sample in source.labeled)))


def digest(ids: Iterable[str]) -> str:
    """What a list is known by: the first quarter of the SHA-256 of its sorted ids, one a line, in hexadecimal."""
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
