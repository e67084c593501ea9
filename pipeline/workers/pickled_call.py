"""Calls as bytes, which Dask's scheduler passes on without unpacking them.

It would otherwise unpack what it schedules, and import this package, and torch with it: half a gigabyte in a process
that only keeps lists. Therefore this module imports no other module of the package.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


def pickle_call(function: Callable[..., Any], *arguments: Any) -> bytes:
    """Pickle a call for `run_pickled_call`."""
    return pickle.dumps((function, arguments))


def run_pickled_call(pickled: bytes) -> Any:
    """Make the call and return its result."""
    function, arguments = pickle.loads(pickled)
    return function(*arguments)
