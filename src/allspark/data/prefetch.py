"""Images and masks to evaluate, read in order by threads while the network works on the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from allspark.data.decode import read_sample
from allspark.data.source import Sample, Source
from allspark.errors import DataError

EvalItem = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image (H, W, 3) and its mask (H, W)."""


def eval_items(
    samples: Sequence[Sample],
    source: Source,
    *,
    workers: int,
    max_pixels: int,
    on_bad: Callable[[DataError], None] | None = None,
) -> Generator[tuple[Sample, NDArray[np.uint8], NDArray[np.uint8]], None, None]:
    """Read images and masks in order, a few ahead of the consumer.

    Args:
        samples: what to read; each needs a mask.
        source: their data set.
        workers: threads that read ahead (Pillow decodes outside Python's lock); 0 reads when asked.
        max_pixels: larger images are refused.
        on_bad: called with what is wrong with an image, which is passed over then; None: the error is raised.

    Yields:
        The sample, its image (H, W, 3) uint8 and its mask (H, W) uint8 with class ids and 255.

    Raises:
        DataError: a file cannot be used.
    """
    with closing(_reading_ahead(samples, source, workers, max_pixels)) as readings:
        for sample, read in readings:
            try:
                item = read()
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield (sample, *item)


def _reading_ahead(
    samples: Sequence[Sample], source: Source, workers: int, max_pixels: int
) -> Generator[tuple[Sample, Callable[[], EvalItem]], None, None]:
    """Each sample with a function that gives its image and mask, or raises."""
    if workers == 0:
        for sample in samples:
            yield sample, partial(_eval_item, sample, source, max_pixels)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="allspark-eval")
    try:
        rest = iter(samples)
        ahead = deque(
            (sample, pool.submit(_eval_item, sample, source, max_pixels)) for sample in islice(rest, 2 * workers)
        )
        while ahead:
            sample, future = ahead.popleft()
            wait([future])
            for following in islice(rest, 1):
                ahead.append((following, pool.submit(_eval_item, following, source, max_pixels)))
            yield sample, future.result
    finally:
        pool.shutdown(cancel_futures=True)


def _eval_item(sample: Sample, source: Source, max_pixels: int) -> EvalItem:
    image, mask = read_sample(sample, source, want_mask=True, max_pixels=max_pixels)
    assert mask is not None
    return np.asarray(image), mask
