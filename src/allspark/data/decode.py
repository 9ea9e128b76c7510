"""Samples, decoded and checked: one, one that is kept, or many in order, a few ahead of who asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from allspark.batch import IGNORE
from allspark.data.image import read_image, read_mask
from allspark.data.source import Member, Sample, Source, code_of
from allspark.errors import DataError

Decoded = tuple[Image.Image, NDArray[np.uint8] | None]
"""An image (RGB), and its mask (H, W) where there is one."""
EvalItem = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (H, W, 3) and its mask (H, W)."""

Job = TypeVar("Job")
Result = TypeVar("Result")


class KeptSamples:
    """Decoded samples that come again and again: the first ones that fit in memory are kept, the others read anew.

    Which ones come next is random, so it would be no gain to put a new one in an older one's place.

    Args:
        limit: how much may be kept [bytes].
    """

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._samples: dict[str, Decoded] = {}

    def get(self, sample: Sample, decode: Callable[[], Decoded]) -> Decoded:
        """Return what ``decode`` returned for this sample, now or an earlier time; nobody may change it."""
        kept = self._samples.get(sample.id)
        if kept is not None:
            return kept
        image, mask = decode()
        size = 4 * image.width * image.height + (0 if mask is None else mask.nbytes)  # Pillow: 4 bytes a pixel of RGB
        if size <= self._room:
            self._room -= size
            self._samples[sample.id] = image, mask
        return image, mask


def read_sample(sample: Sample, source: Source, *, want_mask: bool, max_pixels: int) -> Decoded:
    """Decode an image (RGB) and, if wanted, its mask (H, W) with class ids and 255.

    Raises:
        DataError: a file is missing or unreadable, the mask has another size than the image or values that are no
            class; both files are named.
    """
    image = read_image(sample.image, max_pixels, source.white)
    if not want_mask:
        return image, None
    if sample.mask is None:
        raise DataError(f"{sample.image}: this image has no mask; training on it as labelled and evaluation need one")
    try:
        mask = read_mask(
            sample.mask,
            num_classes=source.num_classes,
            palette=source.palette if source.rgb_masks else None,
            code=code_of(sample.mask, source.codes),
            ignore=source.ignore,
            max_pixels=max_pixels,
        )
    except DataError as error:
        raise DataError(f"{error} (mask of {sample.image})") from error
    if mask.shape != (image.height, image.width):
        raise DataError(
            f"{sample.mask}: the mask is {mask.shape[1]}x{mask.shape[0]} but its image {sample.image} is "
            f"{image.width}x{image.height}; both need the same width and height"
        )
    if source.ignore != IGNORE:
        mask = np.where(mask == source.ignore, np.uint8(IGNORE), mask)
    return image, mask


def picture_or_error(image: Path | Member, max_pixels: int, white: float | None) -> Image.Image | DataError:
    """The picture (RGB), or what is wrong with it: for who reads the ones after it all the same.

    Args:
        image: the file.
        max_pixels: larger images are errors [pixels].
        white: as ``data.white``.
    """
    try:
        return read_image(image, max_pixels, white)
    except DataError as error:
        return error


def prefetch(
    jobs: Iterable[Job], function: Callable[[Job], Result], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Call a function for each job in threads, some jobs ahead of the consumer.

    Close the generator where it may not be read to its end (``contextlib.closing``): that drops the jobs not begun and
    waits for the others.

    Args:
        jobs: in the order of the results.
        function: called in a thread (Pillow and NumPy work outside Python's lock). What it raises ends the results; an
            error that shall not is returned.
        workers: threads; 0 calls when a result is asked for.
        ahead: jobs begun before their result is asked for, at most: bounds the memory.

    Yields:
        What ``function`` returned for each job.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="allspark-prefetch")
    try:
        waiting = iter(jobs)
        begun = deque(pool.submit(function, job) for job in islice(waiting, ahead))
        for job in waiting:
            begun.append(pool.submit(function, job))
            yield begun.popleft().result()  # not kept under a name here: a decoded image is large
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def eval_items(
    samples: Sequence[Sample],
    source: Source,
    *,
    workers: int,
    max_pixels: int,
    on_bad: Callable[[DataError], None] | None = None,
) -> Generator[tuple[Sample, NDArray[np.uint8], NDArray[np.uint8]], None, None]:
    """Read images and masks to evaluate in order, a few ahead of the consumer.

    Args:
        samples: what to read; each needs a mask.
        source: their data set.
        workers: threads that read ahead; 0 reads when asked.
        max_pixels: larger images are refused [pixels].
        on_bad: called with what is wrong with an image, which is passed over then; None: the error is raised.

    Yields:
        The sample, its image (H, W, 3) uint8 and its mask (H, W) uint8 with class ids and 255.

    Raises:
        DataError: a file cannot be used.
    """
    read = partial(_eval_item, source=source, max_pixels=max_pixels)
    with closing(prefetch(samples, read, workers, ahead=2 * workers)) as items:
        for sample, item in zip(samples, items, strict=True):
            if not isinstance(item, DataError):
                yield (sample, *item)
            elif on_bad is None:
                raise item
            else:
                on_bad(item)


def _eval_item(sample: Sample, source: Source, max_pixels: int) -> EvalItem | DataError:
    """The image and its mask, or what is wrong with them: the ones after it are read all the same."""
    try:
        image, mask = read_sample(sample, source, want_mask=True, max_pixels=max_pixels)
    except DataError as error:
        return error
    assert mask is not None
    return np.asarray(image), mask
