"""``hmsa-pipeline status``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .shared.options import manifest_command

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from .shared.output import Output


@manifest_command()
def status(manifest: Manifest, say: Output) -> None:
    """Print how far the stores are.

    Complete / total images, bytes on the disk, and when the last one was written.

    Example: hmsa-pipeline status --output runs/bravo
    """
    from ..store.verify import store_status
    from ..text import as_size

    found = store_status(manifest.stores())
    wide = max(len(f"{s.dataset}/{s.model}") for s in found)
    for s in found:
        counts = f"{s.complete:6} / {s.total:<6} {as_size(s.bytes):>9}  {s.written or 'never'}"
        what = s.problem or (counts if s.total else "no store yet")
        say.line(f"{s.dataset + '/' + s.model:{wide}}  {what}")
    say.figures([vars(s) for s in found])
