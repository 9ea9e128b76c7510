"""The record of a run: what is logged of its steps, and what outlives them beside tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from allspark.engine.scalars import Scalars
from allspark.engine.sinks import Sink
from allspark.errors import NotFiniteError
from allspark.runtime.agreement import CONTINUE, FAILED, agree_on, fail_together, raise_in_all
from allspark.runtime.collectives import all_reduce, world_size


@dataclass
class RunState:
    """What outlives a step beside tensors; it is in every checkpoint."""

    step: int = 0  # weight updates done
    seconds: float = 0.0  # of training alone
    best: float | None = None
    last: float | None = None
    best_step: int | None = None
    peak_memory: int = 0  # of the process, or of the GPU [bytes]
    sums: dict[str, float] = field(default_factory=dict)  # of the log row that is being gathered
    count: int = 0  # micro-batches in it
    counts: dict[str, int] = field(default_factory=dict)  # of each of the sums, which can be fewer
    class_pixels: dict[str, list[int]] = field(default_factory=dict)  # of the targets since the last validation
    pseudo: dict[str, float | None] = field(default_factory=dict)  # kept and right, of watched images with masks
    warned: list[str] = field(default_factory=list)
    initial: str = ""  # checksum of the weights that encoder and decoder began with
    weights: dict[str, Any] | None = None  # whose those of the encoder were, and their licence; None: random ones


class Recorder:
    """Gathers what steps have to log, and passes rows on.

    Args:
        state: where the run stands; it is changed as training goes on.
        sink: where rows and notes go; in processes that write nothing, a ``Sink`` that does nothing.
        images: crops that one process has in a micro-batch.
        steps_per_epoch: weight updates an epoch.
    """

    def __init__(self, state: RunState, sink: Sink, images: int, steps_per_epoch: int) -> None:
        self.state = state
        self.sink = sink
        self._images = images
        self.steps_per_epoch = steps_per_epoch
        self._unread: list[tuple[int, Scalars]] = []  # values are still on the device

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of training alone: no validation, no checkpoints."""
        began = time.perf_counter()
        yield
        elapsed = time.perf_counter() - began
        self.state.sums["time"] = self.state.sums.get("time", 0.0) + elapsed
        self.state.seconds += elapsed

    def done(self, scalars: Sequence[Scalars]) -> None:
        """A weight update is done (or was skipped, and has nothing to log)."""
        self.state.step += 1
        self._unread += ((self.state.step, one) for one in scalars)

    def flush(self) -> None:
        """Add the scalars of the last steps to the row of the log.

        Reading from a GPU waits for it, so that is left until a number is needed, and done in one transfer.

        Raises:
            NotFiniteError: a loss or a gradient is not finite. Nothing is saved before this is called.
        """
        if not self._unread:
            return
        state = self.state
        own = torch.cat([one.values for _, one in self._unread])
        self._require_finite()
        values = iter((all_reduce(own) / world_size()).tolist())
        for _, one in self._unread:  # not all have the same names: unlabelled images may join later
            for name in one.names:
                # earlier checkpoints did not count each by itself
                before = state.counts.get(name, state.count if name in state.sums else 0)
                state.sums[name] = state.sums.get(name, 0.0) + next(values)
                state.counts[name] = before + 1
            state.count += 1
        for name, pixels in sorted(self._class_pixels().items()):
            sums = state.class_pixels.get(name, [0] * len(pixels))
            state.class_pixels[name] = [a + b for a, b in zip(sums, all_reduce(pixels).tolist(), strict=True)]
        self._unread.clear()

    def _class_pixels(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for _, one in self._unread:
            for name, pixels in one.class_pixels.items():
                total[name] = total[name] + pixels if name in total else pixels
        return total

    def _require_finite(self) -> None:
        """Stop all processes at the first loss or gradient, of any of them, that is not a number."""
        found = [(step, one.ids, what, x) for step, one in self._unread for what, x in one.judged().items()]
        error = None
        for (step, ids, what, _), value in zip(found, torch.stack([x for *_, x in found]).tolist(), strict=True):
            if not math.isfinite(value):
                error = NotFiniteError(f"the {what} is {value} in step {step} (images {', '.join(ids)})", step)
                break
        if agree_on(CONTINUE if error is None else FAILED) == FAILED:
            raise_in_all(error)

    def write_means(self, lr: float) -> None:
        """Write a row with the means since the last one."""
        state = self.state
        if not state.count:  # all steps were skipped
            return
        means = {name: state.sums[name] / count for name, count in state.counts.items()}
        row = {
            **self.head(),
            **means,
            "lr": lr,
            "images_per_s": state.count * self._images * world_size() / state.sums["time"],
            "seconds": state.seconds,
        }
        state.sums, state.count, state.counts = {}, 0, {}
        self.write(row)

    def head(self) -> dict[str, Any]:
        """What every row begins with."""
        return {"step": self.state.step, "epoch": self.state.step / self.steps_per_epoch}

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row; what fails ends all processes."""
        with fail_together():
            self.sink.row(row)

    def meta(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"state": asdict(self.state)}
