"""Work in threads, with results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ...errors import DatasetError, StoreError
from .progress import Progress

THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield each item with the result of ``work``, in order; at most 8 items are worked on ahead of the consumer."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= 2 * THREADS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def usable(
    title: str, items: Sequence[Item], work: Callable[[Item], Result], use: Callable[[Item, Result], object]
) -> dict[Item, str]:
    """Work on each item in threads, under a progress bar, and use the results in order.

    Args:
        title: names the job in the bar.
        items: what is worked on.
        work: called in a thread; a DatasetError or StoreError says that the item cannot be used.
        use: called in this thread with an item and what came of it, in the order of ``items``.

    Returns:
        item -> why it cannot be used, for those that cannot.
    """

    def one(item: Item) -> Result | DatasetError | StoreError:
        try:
            return work(item)
        except (DatasetError, StoreError) as error:
            return error

    reasons: dict[Item, str] = {}
    with Progress(len(items)) as progress:
        progress.job(title, len(items))
        for item, found in map_in_order(one, items):
            if isinstance(found, DatasetError | StoreError):
                reasons[item] = str(found)
            else:
                use(item, found)
            progress.advance()
    return reasons
