"""A check reads many files side by side, in processes that a damaged file may bring down."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain

from allspark.data.check.files import Fault, Inspected, Job, Rules, inspect_files
from allspark.data.decode import prefetch

_LARGEST_CHUNK = 16  # images read between two reports of progress


def read_all(jobs: Sequence[Job], rules: Rules, *, workers: int, fast: bool) -> Iterator[list[Inspected]]:
    """Inspect all images, some at a time, in any order.

    Args:
        jobs: what to read.
        rules: how masks are coded.
        workers: at most so many at once; 0 and 1 read in this process.
        fast: use threads, which start at once. Otherwise processes: one that a damaged file brings down is replaced,
            and the file is named.
    """
    size = max(1, min(_LARGEST_CHUNK, len(jobs) // (4 * max(workers, 1))))
    chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    workers = min(workers, len(chunks))
    if workers > 1 and not fast:
        yield from _in_processes(chunks, rules, workers)
        return
    # Pillow's remarks on odd metadata help nobody here. Warning filters belong to all threads: set once, around them.
    read = partial(inspect_files, rules=rules)
    threads = workers if workers > 1 else 0
    with warnings.catch_warnings(), closing(prefetch(chunks, read, threads, ahead=2 * threads)) as results:
        warnings.simplefilter("ignore")
        yield from results


def _in_processes(chunks: Sequence[Sequence[Job]], rules: Rules, workers: int) -> Iterator[list[Inspected]]:
    rest = deque(chunks)
    while rest:
        running: dict[Future[list[Inspected]], Sequence[Job]] = {}
        with _processes(workers) as pool:
            if pool is None:
                yield from (inspect_files(chunk, rules) for chunk in rest)
                return
            try:
                while rest or running:
                    while rest and len(running) < 2 * workers:
                        running[pool.submit(inspect_files, rest[0], rules)] = rest[0]
                        rest.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        inspected = future.result()
                        del running[future]
                        yield inspected
            except BrokenProcessPool:
                pass  # one of the chunks under way did it; below, which file
        yield from _one_by_one(list(chain.from_iterable(running.values())), rules)


def _one_by_one(jobs: Sequence[Job], rules: Rules) -> Iterator[list[Inspected]]:
    """Inspect each image in a process that may die of it."""
    rest = deque(jobs)
    while rest:
        with _processes(1) as pool:
            try:
                while rest and pool is not None:
                    inspected = pool.submit(inspect_files, [rest[0]], rules).result()
                    rest.popleft()
                    yield inspected
            except BrokenProcessPool:
                yield [_deadly(rest.popleft())]
        if pool is None:
            yield [_deadly(job) for job in rest]
            return


def _deadly(job: Job) -> Inspected:
    """What is known of an image that no process survives."""
    inspected = Inspected(job.index, job.sample, job.role)
    files = str(job.sample.image)
    if job.mask != "none" and job.sample.mask is not None:
        files += f" or its mask {job.sample.mask}"
    line = f"{files}: the process that read it died (out of memory, or a damaged file that Pillow cannot stand)"
    inspected.faults.append(Fault("unreadable", str(job.sample.image), line))
    return inspected


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that read files; None where they cannot be started (a script without a main guard, a full machine)."""
    # No plain fork: this process may run threads (a progress bar, torch), and their locks would be copied as they are.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), initializer=_prepare_process)
    try:
        try:
            pool.submit(os.getpid).result()
        except (BrokenProcessPool, OSError):
            yield None
        else:
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to answer
    warnings.simplefilter("ignore")
