"""A request to stop, by Ctrl-C or by a cluster that takes its machine back, that lets work in progress finish."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """While the block runs, the first signal is only recorded; the second Ctrl-C stops at once.

    Attributes:
        requested: True once a signal asked to stop.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(number, self._note) for number in _SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(_SIGNALS, self._before, strict=bool(self._before)):
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
