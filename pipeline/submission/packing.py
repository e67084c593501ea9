"""Pack many images into one file: all of them are usable, or nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import disk_error
from ..runtime.ordered_threads import usable


@dataclass
class Packed:
    """Result of packing; ``failed`` maps names to reasons, and all was written if it is empty."""

    images: int = 0
    bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class _UnfinishedError(Exception):
    """Raised inside a writer's block so that the target stays as it was."""


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
