"""Apply one function to many files, in several processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from ..errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TOGETHER = 8
# Fewer files than as many parcels are done sooner than processes start.
_FEW = 4


def map_files(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None, together: int = _TOGETHER
) -> Iterator[Result]:
    """``work`` of each item, in their order; here if they are few or there is one process, else in several.

    Args:
        work: a function of a module, or a `functools.partial` of one: it is sent to the processes.
        items: what it is called with, such as paths.
        processes: how many at a time; None for one a usable core.
        together: how many items make a parcel; 1 where each of them takes a second or more.

    Raises:
        DatasetError: a process was ended from outside; and whatever ``work`` raises.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), -(-len(items) // together))
    if processes < 2 or len(items) < _FEW * together:
        yield from map(work, items)
        return
    function = work.func if isinstance(work, partial) else work
    start_server([function.__module__])
    # Never a plain fork: the caller may hold threads, whose locks nobody would open in the copy, or a CUDA context.
    context = multiprocessing.get_context("forkserver")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start)
    try:
        with _interruptions_later():
            results = executor.map(work, items, chunksize=together)
        yield from results
    except BrokenProcessPool as error:
        raise DatasetError(
            "a process that worked on images was ended from outside, as it happens where memory runs out; "
            f"run the same command again with fewer than {processes} processes"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def start_server(modules: Sequence[str]) -> None:
    """Start the process that all worker processes of this one are forked from, if it does not run yet.

    It imports ``modules`` once, so that no worker has to; one that cannot be imported is left out. This returns at
    once, and the modules of later calls are imported by each worker. Ctrl-C and SIGTERM
    that reach a whole group of processes end neither it nor, while they start, its workers: these signals are blocked
    from the beginning, and a worker does with them what it wants.
    """
    multiprocessing.set_forkserver_preload(["__main__", *modules])
    resource_tracker.ensure_running()  # which unblocks the signals when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interruptions_later() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end: a process that is started half complains of it on the terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in noted[:1]:
            signal.raise_signal(number)


def end_with_parent() -> None:
    """In a worker: end as soon as the process that started it is gone, even where it was killed."""
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _start() -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker whose parent was killed waits for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
