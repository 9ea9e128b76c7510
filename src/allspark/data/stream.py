"""From a `Source` to training batches.

The state of the training stream is one number, the micro-batch: which images it holds and how they are cut follows from
the seed, the epoch and the position alone. So a resumed run sees what an unbroken one would have seen, with any number
of workers, and each of several processes takes its slice of the same global batch.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from allspark.batch import LabeledBatch, TrainBatch, UnlabeledBatch
from allspark.config.schema import Config
from allspark.data.decode import Decoded, KeptSamples, read_sample
from allspark.data.image import normalize
from allspark.data.order import index_at, require_order, seeds
from allspark.data.source import Sample, Source
from allspark.data.views import labeled_view, unlabeled_view
from allspark.errors import DataError

Role = Literal["labelled", "unlabelled"]
_ROLE_IDS: dict[Role, int] = {"labelled": 0, "unlabelled": 1}


class TrainStream(Dataset["TrainBatch | DataError"]):
    """An endless sequence of micro-batches; item ``step * accumulate + a`` is part ``a`` of training step ``step``.

    Position p of a role (labelled, unlabelled) is the image at place ``p % n`` of epoch ``p // n`` (see order.py), cut
    with random numbers of (seed, role, epoch, image). Micro-batch m of a world of w processes takes the positions from
    m * batch * w on; process r takes the r-th slice of them. Labelled images are the same whether or not unlabelled
    ones are wanted.

    Raises:
        DataError: there is no labelled image, or no unlabelled one where they are wanted.
    """

    def __init__(self, source: Source, config: Config, *, want_unlabeled: bool, rank: int = 0, world: int = 1) -> None:
        if not source.labeled:
            raise DataError(
                f"{source.root}: no labelled training image; training needs at least one image with a mask "
                "(see data.labeled and data.split)"
            )
        if want_unlabeled and not source.unlabeled:
            raise DataError(
                f"{source.root}: no unlabelled image, but the method {config.method.name!r} learns from them; "
                "add images without a mask, make lists with `allspark split`, or set method.name=supervised"
            )
        require_order(source.unlabeled, config.data)
        self._source = source
        self._config = config
        self._want_unlabeled = want_unlabeled
        self._rank = rank
        self._world = world
        self._kept = KeptSamples(config.data.keep_decoded * 1_000_000)

    def __getitem__(self, micro_step: int) -> TrainBatch | DataError:
        """Build one micro-batch; an error in the data is returned, for the main process to raise."""
        skipped: list[str] = []
        try:
            labeled = self._labeled(micro_step, skipped)
            unlabeled = self._unlabeled(micro_step, skipped) if self._want_unlabeled else None
        except DataError as error:
            return error
        return TrainBatch(labeled, unlabeled, tuple(skipped))

    def _labeled(self, micro_step: int, skipped: list[str]) -> LabeledBatch:
        data = self._config.data
        images, masks, ids = self._images(data.batch_labeled), [], []
        for i, position in enumerate(self._positions(micro_step, data.batch_labeled)):
            sample, image, mask, rng = self._read("labelled", position, skipped)
            assert mask is not None
            view, cut = labeled_view(image, mask, data.crop, self._config.views, rng)
            normalize(view, out=images[i])
            masks.append(cut)
            ids.append(sample.id)
        return LabeledBatch(torch.from_numpy(images), _stack(masks).long(), tuple(ids))

    def _unlabeled(self, micro_step: int, skipped: list[str]) -> UnlabeledBatch:
        data = self._config.data
        images, valid, ids = self._images(data.batch_unlabeled), [], []
        for i, position in enumerate(self._positions(micro_step, data.batch_unlabeled)):
            sample, image, _, rng = self._read("unlabelled", position, skipped)
            view, inside = unlabeled_view(image, data.crop, self._config.views, rng)
            normalize(view, out=images[i])
            valid.append(inside)
            ids.append(sample.id)
        return UnlabeledBatch(
            torch.from_numpy(images), None if self._config.views.supervise_padding else _stack(valid), tuple(ids)
        )

    def _images(self, count: int) -> NDArray[np.float32]:
        return np.empty((count, 3, *self._config.data.crop), np.float32)

    def _positions(self, micro_step: int, batch: int) -> range:
        start = (micro_step * self._world + self._rank) * batch
        return range(start, start + batch)

    def _read(
        self, role: Role, position: int, skipped: list[str]
    ) -> tuple[Sample, Image.Image, NDArray[np.uint8] | None, np.random.Generator]:
        """Read the image at ``position``, or with on_bad_image=skip the next one of the data set that can be read."""
        samples = self._source.labeled if role == "labelled" else self._source.unlabeled
        epoch, place = divmod(position, len(samples))
        seed, where = self._config.seed, (_ROLE_IDS[role], epoch)
        index = index_at(place, samples, self._config.data, seed, *where)
        rng = np.random.default_rng(seeds(seed, *where, index))
        first: DataError | None = None
        for attempt in range(len(samples)):
            sample = samples[(index + attempt) % len(samples)]
            try:
                if role == "labelled":  # the few that come again and again
                    image, mask = self._kept.get(sample, partial(self._decode, sample, want_mask=True))
                else:
                    image, mask = self._decode(sample, want_mask=False)
            except DataError as error:
                if self._config.data.on_bad_image == "stop":
                    raise
                first = first or error
                skipped.append(str(error))
            else:
                return sample, image, mask, rng
        raise DataError(f"none of the {len(samples)} {role} images can be read; the first: {first}")

    def _decode(self, sample: Sample, *, want_mask: bool) -> Decoded:
        return read_sample(sample, self._source, want_mask=want_mask, max_pixels=self._config.data.max_pixels)


def steps_per_epoch(source: Source, config: Config, world: int = 1) -> int:
    """Weight updates an epoch: as configured, else one pass over the unlabelled images (labelled if there are none).

    Args:
        source: the data set.
        config: the run's configuration.
        world: number of processes.
    """
    if config.train.steps_per_epoch is not None:
        return config.train.steps_per_epoch
    count, batch = len(source.labeled), config.data.batch_labeled
    if source.unlabeled:
        count, batch = len(source.unlabeled), config.data.batch_unlabeled
    return max(1, math.ceil(count / (batch * config.optim.accumulate * world)))


def train_batches(
    source: Source,
    config: Config,
    *,
    start_step: int,
    total_steps: int,
    want_unlabeled: bool,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Generator[TrainBatch, None, None]:
    """Yield the micro-batches of the steps start_step .. total_steps - 1, read ahead in ``data.workers`` processes.

    Each step has ``config.optim.accumulate`` micro-batches. Neither torch's nor NumPy's global random state is used.
    Closing the generator ends the workers.

    Raises:
        DataError: from the call itself if images are missing altogether; while iterating if a file cannot be used
            (see data.on_bad_image) or a worker process died.
    """
    stream = TrainStream(source, config, want_unlabeled=want_unlabeled, rank=rank, world=world)
    workers = config.data.workers
    options: dict[str, Any] = {}
    if workers and sys.platform == "linux":
        # Forked workers start at once. They compute with NumPy and Pillow only, so threads of this process that a fork
        # does not copy (OpenMP, CUDA) are not missed.
        options["multiprocessing_context"] = "fork"
    loader: DataLoader[TrainBatch | DataError] = DataLoader(
        stream,
        batch_size=None,
        sampler=range(start_step * config.optim.accumulate, total_steps * config.optim.accumulate),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_only_under, os.getpid()),
        pin_memory=pin_memory and torch.cuda.is_available(),
        # Without one of its own, the loader would draw from torch's global generator, and a resumed run would differ.
        generator=torch.Generator(),
        **options,
    )
    return _batches(loader)


def _batches(loader: DataLoader[TrainBatch | DataError]) -> Generator[TrainBatch, None, None]:
    with _quiet_start():
        items = iter(loader)
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            # The latter three: it died while it handed a batch over.
            except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                exited = "exited unexpectedly" in str(error)  # a worker, or the thread that hands on to a GPU
                if isinstance(error, RuntimeError) and not exited:
                    raise
                raise DataError(
                    "a process that reads images died, most often because memory (in a container: /dev/shm) ran out: "
                    "use fewer data.workers or a smaller data.crop; data.workers=0 reads in the main process"
                ) from error
            if isinstance(item, DataError):
                raise item
            yield item
    finally:
        del items  # ends the workers now, even while a traceback holds this frame


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without two side effects.

    torch sets a SIGCHLD handler that raises at whatever line the main program is when a worker dies; asking for the
    next batch notices it as well, at a place where it can be explained. And Python 3.12 warns of any fork beside
    threads (see the choice of fork above).
    """
    here = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGCHLD) if here else None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            yield
    finally:
        if here:
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)


def _stack(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _only_under(parent: int, worker: int) -> None:
    """End a worker whose parent was killed before it began: torch's own watch would take the new parent for the old."""
    if os.getppid() != parent:
        os._exit(1)


def _as_it_is(item: Any) -> Any:
    return item  # the stream's items are batches already
