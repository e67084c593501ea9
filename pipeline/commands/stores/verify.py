"""``hmsa-pipeline verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..shared.options import manifest_command
from ..shared.output import end_command, print_error

if TYPE_CHECKING:
    from ...config.manifest import Manifest
    from ..shared.output import Output


@manifest_command()
def verify(
    manifest: Manifest,
    say: Output,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damaged shards aside, so that they are made again.")
    ] = False,
) -> None:
    """Read every stored image and list what is damaged.

    Checksums must hold and values be finite; a read error of the disk is no damage.

    Example: hmsa-pipeline verify --repair && hmsa-pipeline dump
    """
    from ...store.verify import verify as read_all
    from ...text import plural

    found = read_all(manifest.output, manifest.stores(), repair=repair)
    for result in found:
        name = f"{result.dataset}/{result.model}"
        if result.problem:
            print_error(f"unreadable: {name}: {result.problem}")
        for image, reason in result.damaged.items():
            print_error(f"damaged: {name}: {image}: {reason}")
        for image, reason in result.unreadable.items():
            print_error(f"unreadable: {name}: {image}: {reason}")
    damaged, unreadable = sum(len(r.damaged) for r in found), sum(len(r.unreadable) for r in found)
    problems = sum(r.problem is not None for r in found)
    moved = sum(r.moved for r in found)
    say.figures([vars(r) for r in found])
    sound = plural(sum(r.sound for r in found), "image is", "images are")
    line = f"{sound} sound, {damaged} damaged, {unreadable} unreadable"
    if problems:
        line += f", {plural(problems, 'store')} cannot be read"
    say.line(f"{line}; {moved} moved aside" if repair else line)
    end_command(damaged - moved + unreadable + problems)
