"""Draw or cut the files that a data set lacks, in parallel; what lies there already is not made again."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from allspark.errors import DataError

Job = TypeVar("Job")
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What a preparation did.

    Attributes:
        made: files written now.
        kept: files that were there already.
        notes: one line for each thing the user should know.
    """

    made: int
    kept: int
    notes: tuple[str, ...] = ()


def for_all(work: Callable[[Job], int], jobs: Sequence[Job], workers: int, progress: ProgressCallback | None) -> int:
    """Call ``work`` for each job, in processes of their own, and add up what it returns.

    Args:
        work: a function of a module; it writes whole files or none.
        jobs: its arguments, small enough to be sent.
        workers: processes; 0 and 1 work in this one.
        progress: called with (jobs done, jobs in all).

    Raises:
        DataError: of a job; or a process died. What was written stays, and the next call goes on from there.
    """
    total = done = 0
    if workers <= 1:
        for job in jobs:
            total += work(job)
            done += 1
            if progress:
                progress(done, len(jobs))
        return total
    context = multiprocessing.get_context("spawn")  # the main process shows progress in a thread: no plain fork
    waiting = iter(jobs)
    with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=_IGNORE_INTERRUPT) as pool:
        try:
            running = {pool.submit(work, job) for job in islice(waiting, 2 * workers)}
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                total += sum(future.result() for future in finished)
                running |= {pool.submit(work, job) for job in islice(waiting, len(finished))}
                done += len(finished)
                if progress:
                    progress(done, len(jobs))
        except BrokenProcessPool as error:
            raise DataError(
                "a process that prepares files died (out of memory?); try again with --workers 1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return total


_IGNORE_INTERRUPT = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to answer
