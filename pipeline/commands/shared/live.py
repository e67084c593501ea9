"""Lines that are drawn again and again: in their place on a terminal, one line a time elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TextIO


class LiveLines:
    """Draws lines over those that it drew before, if ``stream`` is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal, self._drawn = stream, stream.isatty(), 0

    def show(self, lines: Sequence[str], brief: str) -> None:
        """Draw.

        Args:
            lines: for a terminal; what its width or height has no room for is left out.
            brief: the line that is printed elsewhere.
        """
        if not self._terminal:
            print(brief, file=self._stream, flush=True)
            return
        columns, rows = shutil.get_terminal_size()
        room = max(1, rows - 1)
        kept = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"] if len(lines) > room else lines
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        text = "".join(f"{line[: max(1, columns - 1)]}\x1b[K\n" for line in kept)
        print(f"{up}\r{text}\x1b[J", end="", file=self._stream, flush=True)
        self._drawn = len(kept)
