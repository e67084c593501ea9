"""``hmsa-pipeline status``."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import HmsaError
from .shared.options import manifest_command
from .shared.output import STANDARD_OUTPUT, end_command

if TYPE_CHECKING:
    from ..config.manifest import Manifest
    from ..store.watch import Look, Progressed, Watcher
    from .shared.output import Output

_SECONDS = 5.0
_BAR = 20


@manifest_command()
def status(
    manifest: Manifest,
    say: Output,
    seconds: Annotated[
        float | None,
        typer.Argument(metavar="SECONDS", help="With --watch: time between two updates; 5 if left out.", min=0.1),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow a run, here or on another machine, until it is complete.")
    ] = False,
) -> None:
    """Print how far the stores are.

    Complete / total images, bytes on the disk, and when the last one was written.

    With --watch: how far each model is, images per second, time left, and what the run waits for; it ends when the
    run is complete. A terminal shows the last update; elsewhere, and with --json, each update is one line.

    Example: hmsa-pipeline status --output runs/bravo --watch
    """
    if not watch and seconds is not None:
        raise HmsaError("SECONDS: changes nothing without --watch; leave it out")
    if watch:
        _watch(manifest, say, _SECONDS if seconds is None else seconds)
        return
    from ..store.status import stores_status
    from ..text import as_size

    found = stores_status(manifest.stores())
    wide = max(len(f"{s.dataset}/{s.model}") for s in found)
    for s in found:
        counts = f"{s.complete:6} / {s.total:<6} {as_size(s.bytes):>9}  {s.written or 'never'}"
        what = s.problem or (counts if s.total else "no store yet")
        say.line(f"{s.dataset + '/' + s.model:{wide}}  {what}")
    say.figures([vars(s) for s in found])


def _watch(manifest: Manifest, say: Output, seconds: float) -> None:
    """Look again and again until the run is complete."""
    from .shared.live import LiveLines

    watcher = _watcher(manifest)
    live = LiveLines(sys.stderr if say.target == STANDARD_OUTPUT else sys.stdout)
    first = True
    while True:
        look = watcher.look()
        live.show(_lines(look), _brief(look))
        say.figures_line(look.as_json(), first=first)
        if look.complete:
            break
        first = False
        time.sleep(seconds)
    end_command(sum(one.failed for one in look.models))


def _watcher(manifest: Manifest) -> Watcher:
    from ..fusion.prediction_files import CONFIDENCE, LABEL, count_photographs
    from ..storage.output_folder import predictions_path
    from ..store.watch import Watcher

    entries = {entry.name: entry for entry in manifest.datasets}

    def count_images(dataset: str) -> int | None:
        return count_photographs(entries[dataset], manifest.output)

    predictions = {name: predictions_path(manifest.output, name) for name in entries}
    return Watcher(manifest.output, manifest.stores(), predictions, (LABEL, CONFIDENCE), count_images)


def _lines(look: Look) -> list[str]:
    """One line per model and one for all, for a terminal."""
    rows = [*look.models, look.total]
    wide = max(len(one.name) for one in rows)
    lines = []
    for one in rows:
        share = min(1.0, one.done / one.total) if one.total else 0.0
        bar = f"{'#' * int(_BAR * share):-<{_BAR}}"
        state = "" if one is look.total else one.state
        lines.append(f"{one.name:{wide}}  {bar} {_counts(one):>13}  {_speed(one):29}  {state}".rstrip())
    end = [f"{'complete' if look.complete else look.time}"]
    return [*lines, *(f"waits: {sentence}" for sentence in look.waits), *end]


def _brief(look: Look) -> str:
    """All in one line."""
    models = ", ".join(f"{one.name} {_counts(one)}" for one in look.models)
    ends = ["complete"] if look.complete else [f"waits: {sentence}" for sentence in look.waits]
    total = " ".join(filter(None, [f"{_counts(look.total)} images,", _speed(look.total)])).rstrip(", ")
    return "; ".join([f"{look.time} {total}", models, *ends])


def _counts(one: Progressed) -> str:
    return f"{one.done}/{'?' if one.total is None else one.total}"


def _speed(one: Progressed) -> str:
    from tqdm import tqdm

    if one.rate is None:
        return ""
    left = "" if one.seconds_left is None else f", {tqdm.format_interval(int(one.seconds_left))} left"
    return f"{one.rate:.2f} images/s{left}"
