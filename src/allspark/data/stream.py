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
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from allspark.batch import IGNORE, IMAGENET, LabeledBatch, Normalisation, TrainBatch, UnlabeledBatch, Views
from allspark.config.schema import DataConfig, ViewConfig
from allspark.data.boxes import require_boxes
from allspark.data.decode import Decoded, KeptSamples, read_sample
from allspark.data.image import normalize
from allspark.data.order import index_at, require_order, seeds
from allspark.data.source import Sample, Source
from allspark.data.views import cut_out, labeled_view, unlabeled_views
from allspark.errors import DataError

Role = Literal["labeled", "unlabeled", "partner", "pseudo"]
_ROLE_IDS: dict[Role, int] = {"labeled": 0, "unlabeled": 1, "partner": 2, "pseudo": 3}
_WORDS: dict[Role, str] = {"labeled": "labelled", "pseudo": "pseudo-labelled"}


class TrainStream(Dataset["TrainBatch | DataError"]):
    """An endless sequence of micro-batches; item ``step * accumulate + a`` is part ``a`` of training step ``step``.

    Position p of a role is the image at place ``p % n`` of epoch ``p // n`` (see order.py), cut with random numbers of
    (seed, role, epoch, image); colours and boxes of strong view v with those of (seed, role, epoch, image, 1 + v). What
    a method leaves to chance has the key after these. Crops with pseudo masks are cut as labelled ones are, and boxes
    cut out of them by (seed, role, epoch, image, 1).
    Micro-batch m of a world of w processes takes the positions from m * batch * w on; process r takes the r-th slice of
    them. The images of a role, and their weak views, are the same whatever else is wanted.

    Args:
        source: the data set.
        data: crop, batch sizes and what to do about bad images.
        cuts: ranges and probabilities of the views.
        wanted: the views that the method asks for.
        seed: of the run.
        pixels: what the encoder takes.
        rank: number of this process.
        world: number of processes.

    Raises:
        DataError: there is no labelled image, or no unlabelled one, where they are wanted.
        ConfigError: the images cannot have the order that is asked for, or the boxes do not fit into the crop.
    """

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        cuts: ViewConfig,
        wanted: Views,
        *,
        seed: int,
        pixels: Normalisation = IMAGENET,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if wanted.labeled is not None and not source.labeled:
            raise DataError(
                f"{source.root}: no labelled training image; training needs at least one image with a mask "
                "(see data.labeled and data.split)"
            )
        if wanted.unlabeled and not source.unlabeled:
            raise DataError(
                f"{source.root}: no unlabelled image, which the method learns from; add images without masks, make "
                "lists with `allspark split`, or set method.name=supervised"
            )
        if wanted.pseudo and not source.pseudo:
            raise DataError(
                f"{source.root}: no image with a pseudo mask, which the method learns from (see data.pseudo)"
            )
        require_order(source.unlabeled, data)
        if wanted.boxes is not None:
            require_boxes(wanted.boxes, data.crop)
        self._source = source
        # pseudo masks hold class ids, whatever the data set's own masks are coded by
        self._plain = replace(source, rgb_masks=False, codes={}, ignore=IGNORE)
        self._data = data
        self._cuts = cuts
        self._wanted = wanted
        self._seed = seed
        self._pixels = pixels
        self._rank = rank
        self._world = world
        self._kept = KeptSamples(data.keep_decoded * 1_000_000)

    def __getitem__(self, micro_step: int) -> TrainBatch | DataError:
        """Build one micro-batch; an error in the data is returned, for the main process to raise."""
        wanted, skipped = self._wanted, list[str]()
        try:
            return TrainBatch(
                labeled=self._labeled("labeled", micro_step, skipped) if wanted.labeled is not None else None,
                unlabeled=self._unlabeled("unlabeled", micro_step, skipped) if wanted.unlabeled else None,
                partner=self._unlabeled("partner", micro_step, skipped) if wanted.partner else None,
                pseudo=self._labeled("pseudo", micro_step, skipped) if wanted.pseudo else None,
                skipped=tuple(skipped),
            )
        except DataError as error:
            return error

    def _labeled(self, role: Role, micro_step: int, skipped: list[str]) -> LabeledBatch:
        data, pseudo = self._data, role == "pseudo"
        count = data.batch_unlabeled if pseudo else data.batch_labeled
        strong = pseudo or self._wanted.labeled == "strong"
        images, masks, ids = self._images(count), [], []
        for i, position in enumerate(self._positions(micro_step, count)):
            sample, image, mask, key = self._read(role, position, skipped)
            assert mask is not None
            view, cut = labeled_view(image, mask, data.crop, self._cuts, self._rng(*key), strong=strong)
            if pseudo and self._wanted.cutout is not None:
                view, cut = cut_out(view, cut, self._wanted.cutout, self._rng(*key, 1))
            normalize(view, self._pixels, images[i])
            masks.append(cut)
            ids.append(sample.id)
        return LabeledBatch(torch.from_numpy(images), _stack(masks).long(), tuple(ids))

    def _unlabeled(self, role: Role, micro_step: int, skipped: list[str]) -> UnlabeledBatch:
        count, draws = self._data.batch_unlabeled, self._wanted.strong
        weak, valid, boxes, chance, ids = self._images(count), [], [], [], []
        strong = self._images(draws, count)
        for i, position in enumerate(self._positions(micro_step, count)):
            sample, image, _, key = self._read(role, position, skipped)
            rngs = [self._rng(*key, 1 + v) for v in range(max(draws, self._wanted.boxes is not None))]
            view, inside, others = unlabeled_views(
                image, self._data.crop, self._cuts, self._rng(*key), rngs[:draws], self._wanted.colours
            )
            normalize(view, self._pixels, weak[i])
            for v, other in enumerate(others):
                normalize(other, self._pixels, strong[v, i])
            valid.append(inside)
            ids.append(sample.id)
            if self._wanted.boxes is not None:
                boxes.append([self._wanted.boxes.draw(self._data.crop, rng) for rng in rngs])
            chance.append(self._rng(*key, 1 + len(rngs)).random())
        return UnlabeledBatch(
            torch.from_numpy(weak),
            None if self._cuts.supervise_padding else _stack(valid),
            tuple(ids),
            torch.from_numpy(strong) if draws else None,
            torch.from_numpy(np.array(boxes)).transpose(0, 1).contiguous() if boxes else None,
            torch.tensor(chance) if self._wanted.chance else None,
        )

    def _images(self, *counts: int) -> NDArray[np.float32]:
        return np.empty((*counts, 3, *self._data.crop), np.float32)

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(seeds(self._seed, *key))

    def _positions(self, micro_step: int, batch: int) -> range:
        start = (micro_step * self._world + self._rank) * batch
        return range(start, start + batch)

    def _read(
        self, role: Role, position: int, skipped: list[str]
    ) -> tuple[Sample, Image.Image, NDArray[np.uint8] | None, tuple[int, int, int]]:
        """Read the image at ``position``, or with on_bad_image=skip the next one of the data set that can be read.

        Returns:
            The sample, its image, its mask if it is labelled, and the key of its random numbers.
        """
        with_mask: dict[Role, Sequence[Sample]] = {"labeled": self._source.labeled, "pseudo": self._source.pseudo}
        samples = with_mask.get(role, self._source.unlabeled)
        epoch, place = divmod(position, len(samples))
        where = (_ROLE_IDS[role], epoch)
        index = index_at(place, samples, self._data, self._seed, *where)
        first: DataError | None = None
        for attempt in range(len(samples)):
            sample = samples[(index + attempt) % len(samples)]
            try:
                if role == "labeled":  # the few that come again and again
                    image, mask = self._kept.get(sample, partial(self._decode, sample, role))
                else:
                    image, mask = self._decode(sample, role)
            except DataError as error:
                if self._data.on_bad_image == "stop":
                    raise
                first = first or error
                skipped.append(str(error))
            else:
                return sample, image, mask, (*where, index)
        kind = _WORDS.get(role, "unlabelled")
        raise DataError(f"none of the {len(samples)} {kind} images can be read; the first: {first}")

    def _decode(self, sample: Sample, role: Role) -> Decoded:
        source = self._plain if role == "pseudo" else self._source
        want_mask = role in {"labeled", "pseudo"}
        return read_sample(sample, source, want_mask=want_mask, max_pixels=self._data.max_pixels)


def steps_per_epoch(source: Source, data: DataConfig, accumulate: int, world: int = 1) -> int:
    """Weight updates of one pass over the images with pseudo masks, else the unlabelled, else the labelled ones.

    Args:
        source: the data set.
        data: batch sizes.
        accumulate: micro-batches an update.
        world: number of processes.
    """
    count, batch = len(source.labeled), data.batch_labeled
    if others := source.pseudo or source.unlabeled:
        count, batch = len(others), data.batch_unlabeled
    return max(1, math.ceil(count / (batch * accumulate * world)))


def train_batches(
    stream: TrainStream, parts: range, *, workers: int, pin_memory: bool = False
) -> Generator[TrainBatch, None, None]:
    """Yield some micro-batches of a stream in order, read ahead by processes.

    Neither torch's nor NumPy's global random state is used. Closing the generator ends the workers.

    Args:
        stream: what to read.
        parts: numbers of the micro-batches.
        workers: processes that read; 0 reads in this one.
        pin_memory: hand batches over in page-locked memory (for GPUs).

    Raises:
        DataError: while iterating, if a file cannot be used (see data.on_bad_image) or a worker process died.
    """
    options: dict[str, Any] = {}
    if workers and sys.platform == "linux":
        # Forked workers start at once. They compute with NumPy and Pillow only, so threads of this process that a fork
        # does not copy (OpenMP, CUDA) are not missed.
        options["multiprocessing_context"] = "fork"
    loader: DataLoader[TrainBatch | DataError] = DataLoader(
        stream,
        batch_size=None,
        sampler=parts,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=partial(_exit_if_orphaned, os.getpid()),
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


def _exit_if_orphaned(parent: int, worker: int) -> None:
    """End a worker whose parent was killed before it began: torch's own watch would take the new parent for the old."""
    if os.getppid() != parent:
        os._exit(1)


def _identity(item: Any) -> Any:
    return item  # the stream's items are batches already
