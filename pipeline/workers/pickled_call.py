"""Calls that Dask's scheduler passes on unopened.

It would else unpack what it schedules, and for that import this package, and torch with it: half a gigabyte in a
process that only keeps lists. Therefore this module imports nothing of ours.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


def pickle_call(function: Callable[..., Any], *arguments: Any) -> bytes:
    """A call, as `opened` takes it."""
    return pickle.dumps((function, arguments))


def run_pickled_call(parcel: bytes) -> Any:
    """Make the call, and give back what it returns."""
    function, arguments = pickle.loads(parcel)
    return function(*arguments)
