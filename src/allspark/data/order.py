"""In which order training sees its images: a function of seed, epoch and place, so that any place can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from allspark.config.schema import DataConfig
from allspark.data.shards import Shards
from allspark.data.source import Sample
from allspark.errors import ConfigError

_LARGEST_TABLE = 1 << 20  # images whose order is kept as a table; the order of more is computed place by place
_ROUNDS = 6


def seeds(seed: int, *where: int) -> np.random.SeedSequence:
    """The seed of a stream; a spawn key, unlike a plain list, is not padded with zeros."""
    return np.random.SeedSequence(seed, spawn_key=where)


def require_order(samples: Sequence[Sample], config: DataConfig) -> None:
    """Refuse an order that these images cannot have.

    Raises:
        ConfigError: ``sharded``, but the images are no tar files.
    """
    if config.unlabeled_order == "sharded" and not isinstance(samples, Shards):
        raise ConfigError(
            "data.unlabeled_order: sharded is for tar files, but data.unlabeled names none; set it to random"
        )


def index_at(place: int, samples: Sequence[Sample], config: DataConfig, seed: int, *where: int) -> int:
    """Which image stands at a place of an epoch; each one stands at one place.

    Args:
        place: 0 .. len(samples) - 1.
        samples: the images.
        config: ``unlabeled_order`` and ``shuffle_buffer`` are read, for tar files.
        seed: of the run.
        where: role and epoch.
    """
    if isinstance(samples, Shards) and config.unlabeled_order == "sharded":
        return _sharded(place, samples, config.shuffle_buffer, seed, *where)
    if len(samples) <= _LARGEST_TABLE:
        return int(_permutation(len(samples), seed, *where)[place])
    return _scattered(place, len(samples), _round_keys(seed, *where))


def _sharded(place: int, shards: Shards, buffer: int, seed: int, *where: int) -> int:
    """Tar files in a shuffled order; their images one after the other, mixed within windows of ``buffer`` images."""
    order = _permutation(len(shards.counts), seed, *where, 0)
    window, rest = divmod(place, buffer)
    length = min(buffer, len(shards) - window * buffer)
    position = window * buffer + int(_permutation(length, seed, *where, 1, window)[rest])
    ends = shards.counts[order].cumsum()
    number = int(ends.searchsorted(position, "right"))
    shard = int(order[number])
    inside = position - int(ends[number] - shards.counts[shard])
    return int(shards.counts[:shard].sum()) + inside


@lru_cache(maxsize=8)  # a batch can span two epochs or windows of each role
def _permutation(count: int, seed: int, *where: int) -> NDArray[np.int64]:
    return np.random.default_rng(seeds(seed, *where)).permutation(count)


@lru_cache(maxsize=4)
def _round_keys(seed: int, *where: int) -> tuple[int, ...]:
    return tuple(int(key) for key in seeds(seed, *where).generate_state(_ROUNDS, np.uint64))


def _scattered(place: int, count: int, keys: Sequence[int]) -> int:
    """A permutation of 0 .. count - 1 without a table: a Feistel network, walked until it lands inside."""
    half = (max(count - 1, 1).bit_length() + 1) // 2
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        place = left << half | right
        if place < count:
            return place


def _mixed(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
