"""What is remembered of the pixels of each class: rows of features, first in, first out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allspark.runtime.host_memory import require_host_memory


class ClassBank(nn.Module):
    """A queue of rows for each class, on the device of the network and in every checkpoint.

    All processes have to push the same rows in the same order: then they hold the same, bit by bit. Nothing is read
    back from the device.

    Args:
        sizes: rows that each class has room for.
        channels: d, of a row.
        setting: what the user sets to have smaller ones, for a message.

    Attributes:
        sizes: as given.
        rows: (sum of the sizes, d), those of one class after those of another.
        written: (k,), rows ever pushed.

    Raises:
        ConfigError: this machine has not so much memory.
    """

    rows: Tensor
    written: Tensor
    capacity: Tensor
    first: Tensor

    def __init__(self, sizes: Sequence[int], channels: int, setting: str) -> None:
        super().__init__()
        what = (
            f"{setting}: a bank of {sum(sizes)} rows of {channels} channels, for {len(sizes)} classes together, needs"
        )
        require_host_memory(4 * sum(sizes) * channels, what, "set it smaller")
        self.sizes = tuple(sizes)
        self._firsts = tuple(itertools.accumulate(sizes[:-1], initial=0))
        self.register_buffer("rows", torch.zeros(sum(sizes), channels))
        self.register_buffer("written", torch.zeros(len(sizes), dtype=torch.int64))
        self.register_buffer("capacity", torch.tensor(self.sizes), persistent=False)
        self.register_buffer("first", torch.tensor(self._firsts), persistent=False)

    @property
    def count(self) -> Int[Tensor, " k"]:
        """Rows that each class has now."""
        return torch.minimum(self.written, self.capacity)

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "n d"], members: Bool[Tensor, "k n"]) -> None:
        """Add the rows that are members of a class to its queue, in their order; the oldest ones make way.

        Args:
            rows: of all processes.
            members: which rows each class takes; of more than it has room for, the last ones.
        """
        totals = members.sum(1)
        for index, (size, first) in enumerate(zip(self.sizes, self._firsts, strict=True)):
            width = min(size, len(rows))
            place = totals[index] - width + torch.arange(width, device=rows.device)  # below 0: there are no so many
            slot = first + (self.written[index] + place) % size  # each one once
            new = rows[nth_members(members[index], place)].to(self.rows.dtype)
            self.rows[slot] = torch.where((place >= 0)[:, None], new, self.rows[slot])
        self.written += totals

    def at(self, place: Int[Tensor, "c m"], classes: Int[Tensor, " c"]) -> Float[Tensor, "c m d"]:
        """Rows by their age.

        Args:
            place: for each of the classes, from 0, its oldest row, to ``count - 1``, its youngest; others give any row.
            classes: ids.
        """
        oldest, size = (self.written - self.count)[classes], self.capacity[classes]
        return self.rows[self.first[classes, None] + (oldest[:, None] + place) % size[:, None]]


def nth_members(members: Bool[Tensor, "*c n"], place: Int[Tensor, "*c m"]) -> Int[Tensor, "*c m"]:
    """Which of n rows is the first, second, ... member (places count from 0); any row where there are no so many.

    Args:
        members: which rows are.
        place: which of the members are wanted.
    """
    found = torch.searchsorted(members.long().cumsum(-1), place + 1)
    return found.clamp(max=members.shape[-1] - 1)
