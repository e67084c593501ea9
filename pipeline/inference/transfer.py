"""Between the networks and the disk: copies from the GPU, a bound of what waits, and where time goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# With those that are decoded and the one in the network fewer than `scheduler.IN_FLIGHT`.
MOST_WAITING = 16
_COMPUTING = 2


class ByteBudget:
    """Bounds the bytes and the items that wait in a queue; one item larger than the bound may pass alone."""

    def __init__(self, limit: int, items: int = MOST_WAITING) -> None:
        self._limit, self._used = limit, 0
        self._items, self._held = items, 0
        self._freed = threading.Condition()

    def acquire(self, count: int) -> None:
        """Wait until ``count`` bytes fit."""
        with self._freed:
            self._freed.wait_for(
                lambda: self._held == 0 or (self._used + count <= self._limit and self._held < self._items)
            )
            self._used += count
            self._held += 1

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._freed:
            self._used -= count
            self._held -= 1
            self._freed.notify_all()


class HostCopy:
    """Brings what a GPU computed to the CPU beside what it computes next; on a CPU there is nothing to bring.

    Args:
        device: where it is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._computing: deque[torch.cuda.Event] = deque()

    def send(self, result: Tensor) -> Callable[[], Tensor]:
        """Take ``result``, of which nothing may be computed yet, on its way.

        Waits while more than a few results are still being computed, so that a GPU has enough to do and its memory
        does not fill.

        Returns:
            what waits for it, and gives it on the CPU.
        """
        if self._stream is None or result.device.type == "cpu":
            return lambda: result
        computed, arrived = torch.cuda.Event(), torch.cuda.Event()
        computed.record(torch.cuda.current_stream(result.device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            here = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            here.copy_(result, non_blocking=True)
            arrived.record(self._stream)
        result.record_stream(self._stream)
        self._computing.append(computed)
        if len(self._computing) > _COMPUTING:
            self._computing.popleft().synchronize()

        def fetch() -> Tensor:
            arrived.synchronize()
            return here

        return fetch


class StageTimes:
    """Where a block's time goes, as its main thread sees it: each wait of it is somebody's limit."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "forward": 0.0, "write": 0.0}

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Whatever happens inside counts as ``part``."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - begun
