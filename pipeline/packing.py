"""What the commands share that put many images into one file: all of them are usable, or nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import DatasetError, StoreError, disk_error
from .progress import Progress
from .threads import in_order

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Packed:
    """What became of the images; ``failed`` maps names to reasons, and without any all was written."""

    images: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class _UnfinishedError(Exception):
    """Makes what is written leave its target as it was."""


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
        for item, found in in_order(one, items):
            if isinstance(found, DatasetError | StoreError):
                reasons[item] = str(found)
            else:
                use(item, found)
            progress.advance()
    return reasons


def pack(
    target: Path,
    names: Sequence[str],
    encode: Callable[[str], bytes],
    written: AbstractContextManager[Callable[[str, bytes], object]],
) -> Packed:
    """Encode all and put them into ``target``; if one cannot be used nothing is written.

    Args:
        target: for messages.
        names: of what is encoded, in the order in which it is written.
        encode: the bytes of a name; a DatasetError says why there are none.
        written: gives a function that adds a name and its bytes; if its block ends with an exception the target must
            stay as it was.

    Raises:
        DiskError: ``target`` cannot be written.
    """
    result = Packed()
    try:
        with written as add:

            def put(name: str, content: bytes) -> None:
                add(name, content)
                result.images += 1
                result.bytes += len(content)

            failed = usable(target.name, names, encode, put)
            if failed:
                result = Packed(failed=failed)
                raise _UnfinishedError
    except _UnfinishedError:
        pass
    except OSError as error:
        raise disk_error(target, error) from error
    return result
