"""Between the networks and the disk: copies from the GPU, a bound on waiting bytes, and stage times."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# With the decoded images and the one in the network, fewer than `retries.IN_FLIGHT`.
MAX_WAITING = 16
_MAX_COMPUTING = 2


class ByteBudget:
    """Bounds the bytes, and the number, of the items that wait in a queue; an item above the bound may pass alone."""

    def __init__(self, limit: int, items: int = MAX_WAITING) -> None:
        self._limit, self._used = limit, 0
        self._items, self._held = items, 0
        self._freed = threading.Condition()

    def acquire(self, count: int) -> None:
        """Wait until an item of ``count`` bytes fits, and take its place."""
        with self._freed:
            self._freed.wait_for(
                lambda: self._held == 0 or (self._used + count <= self._limit and self._held < self._items)
            )
            self._used += count
            self._held += 1

    def release(self, count: int) -> None:
        """Free the place of an item of ``count`` bytes."""
        with self._freed:
            self._used -= count
            self._held -= 1
            self._freed.notify_all()


class HostCopy:
    """Copies results of a GPU to the CPU while it computes the next; on a CPU nothing is copied."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._computing: deque[torch.cuda.Event] = deque()

    def start(self, result: Tensor) -> Callable[[], Tensor]:
        """Start the copy of ``result``, which may still be being computed; return a function that waits for it.

        Waits while more than a few results are being computed, so that a GPU has enough to do and its memory does
        not fill.
        """
        if self._stream is None or result.device.type == "cpu":
            return lambda: result
        computed, arrived = torch.cuda.Event(), torch.cuda.Event()
        computed.record(torch.cuda.current_stream(result.device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            copy = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            copy.copy_(result, non_blocking=True)
            arrived.record(self._stream)
        result.record_stream(self._stream)
        self._computing.append(computed)
        if len(self._computing) > _MAX_COMPUTING:
            self._computing.popleft().synchronize()

        def fetch() -> Tensor:
            arrived.synchronize()
            return copy

        return fetch


class StageTimes:
    """Seconds that a block's main thread spends in each stage: reading, the forward pass and writing."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "forward": 0.0, "write": 0.0}

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the ``with`` block as ``stage``: read, forward or write."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - begun
