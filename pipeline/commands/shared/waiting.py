"""Waits until no other run holds an output."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_SECONDS, _SAY_SECONDS = 5.0, 60.0
Made = TypeVar("Made")


def when_free(wait: bool | None, work: Callable[[], Made]) -> Made:
    """Plan and run; if another run holds the output, wait until that has ended, and begin again.

    A line a minute says for what it waits.

    Args:
        wait: value of ``--wait``; None to wait only in a Slurm job that was put back into the queue.
        work: makes the plan, which depends on what is complete, and carries it out. Of two runs that plan in the same
            moment, the second notices the first one when it starts.

    Raises:
        LockHeldError: another run holds the output, and ``wait`` is false.
    """
    # Here, because every command imports this file, and most of them need no lock.
    from ...runtime.progress import say
    from ...storage.slurm import was_restarted
    from ...storage.writer_lock import LockHeldError, require_free

    def still_held(before: LockHeldError) -> LockHeldError | None:
        try:
            require_free(before.target)
        except LockHeldError as held:
            return held
        return None

    begin: float | None = None
    said = -_SAY_SECONDS
    while True:
        try:
            return work()
        except LockHeldError as held:
            if not (was_restarted() if wait is None else wait):
                raise
            problem = held
        begin = monotonic() if begin is None else begin
        while problem is not None:
            waited = monotonic() - begin
            if waited - said >= _SAY_SECONDS:
                said = waited
                say(f"waiting since {waited:.0f} s: {problem}")
            sleep(_LOOK_SECONDS)
            problem = still_held(problem)
