"""The table from a network's classes to our own, and how its output is changed by it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ...errors import ManifestError, first_few, nearest
from ..member_output import FLOOR, share_of_others
from ..registry import CLASS_TABLES
from .settings import OTHER, ClassChoice

SHIPPED = Path(__file__).with_name("class_tables")
_NO_NAME = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class ClassTable:
    """The channels of a network that become each of our classes.

    Attributes:
        sources: for each of our classes the channels whose probabilities are added; none if the network does not
            know it.
        names: for each channel its name, or its number.
    """

    sources: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    @property
    def used(self) -> list[int]:
        """Channels that are needed, ascending."""
        return sorted({channel for channels in self.sources for channel in channels})

    @property
    def one_to_one(self) -> bool:
        """True if each of our classes has one channel of its own."""
        return all(len(channels) == 1 for channels in self.sources)

    def take(self, values: Tensor) -> Tensor:
        """Take from (N, K, h, w) the channels that are needed: of our classes in order if they are `one_to_one`."""
        wanted = [channels[0] for channels in self.sources] if self.one_to_one else self.used
        return values if wanted == list(range(values.shape[1])) else values[:, wanted]

    def combine(self, taken: Tensor, kind: str) -> Tensor:
        """Turn what `take` gave, at its final size, into our classes (N, C, H, W).

        Probabilities of several channels are added. A class without a channel gets the smallest probability that is
        kept. Probabilities of channels that are none of our classes are lost, and the rest is divided by its sum.

        Args:
            taken: (N, k, H, W) float32.
            kind: ``logits``, or ``scores`` that are not yet divided by their sum.
        """
        if self.one_to_one:
            return taken
        place = {channel: number for number, channel in enumerate(self.used)}
        parts: list[Tensor | None] = []
        for channels in self.sources:
            own = taken[:, [place[channel] for channel in channels]]
            parts.append((own.logsumexp(1) if kind == "logits" else own.sum(1)) if channels else None)
        floor = torch.zeros_like(taken[:, 0])
        if kind == "logits":
            floor = torch.stack([part for part in parts if part is not None]).logsumexp(0) + torch.tensor(FLOOR).log()
        return torch.stack([floor if part is None else part for part in parts], dim=1)

    def other_share(self, values: Tensor, kind: str) -> Tensor | None:
        """Compute the probability of all channels that are none of our classes, (N, 1, h, w); None without any.

        Args:
            values: (N, K, h, w) of any floating dtype.
            kind: as for `combine`.
        """
        if len(self.used) == len(self.names):
            return None
        return share_of_others(values, kind, self.used)

    def apply(self, logits: Tensor) -> Tensor:
        """Turn the network's logits (N, K, H, W) into those of our classes (N, C, H, W) float32."""
        return self.combine(self.take(logits).float(), "logits")

    def as_json(self, ours: Sequence[str]) -> dict[str, Any]:
        """Describe the table for a store: our classes with the network's, and those that became no class."""
        named = {
            name: [self.names[channel] for channel in channels]
            for name, channels in zip(ours, self.sources, strict=True)
        }
        used = set(self.used)
        return {"classes": named, OTHER: [name for channel, name in enumerate(self.names) if channel not in used]}

    def note(self, ours: Sequence[str]) -> str | None:
        """Say which of our classes the network does not know, and how many of its own are not used."""
        without = [name for name, channels in zip(ours, self.sources, strict=True) if not channels]
        left = len(self.names) - len(self.used)
        parts = [f"it knows no {first_few(without, 19)}"] if without else []
        parts += [f"{left} of its {len(self.names)} classes are none of ours"] if left else []
        return "; ".join(parts) or None


def channels_of(choice: ClassChoice) -> int | None:
    """Count the channels of a network that a choice speaks of; None if it does not say."""
    if isinstance(choice, str):
        return len(shipped_table(choice)) if choice in CLASS_TABLES else None
    return None if choice is None or isinstance(choice, Mapping) else len(choice)


def class_table(
    where: str, count: int, labels: Mapping[int, str] | None, choice: ClassChoice, ours: Sequence[str]
) -> ClassTable:
    """Find which channels become which classes.

    Args:
        where: begins the error.
        count: channels of the network.
        labels: channel -> name, as the network's files say; None if they say nothing.
        choice: of the manifest.
        ours: our class names in train-id order.

    Raises:
        ManifestError: names are missing or unknown.
    """
    if labels is not None and any(_NO_NAME.fullmatch(name) for name in labels.values()):
        labels = None
    names = tuple(str(channel) if labels is None else labels.get(channel, str(channel)) for channel in range(count))
    known = {_plain(name): number for number, name in enumerate(ours)}
    if choice is None or choice == "auto":
        chosen = _by_name(where, names, labels, known, ours, strict=choice is None)
    elif isinstance(choice, str):
        chosen, names = _by_shipped_table(where, names, labels, known, choice)
    elif isinstance(choice, Mapping):
        chosen = _by_table(where, names, labels, known, choice)
    else:
        if len(choice) != count:
            raise ManifestError(
                f"{where}: 'classes' names {len(choice)} classes, the network has {count}; name each of them, "
                f"'{OTHER}' for one that is none of ours"
            )
        chosen = {channel: _ours(where, name, known) for channel, name in enumerate(choice)}
        names = tuple(choice) if labels is None else names
    sources = [tuple(c for c, number in sorted(chosen.items()) if number == n) for n in range(len(ours))]
    if not any(sources):
        raise ManifestError(
            f"{where}: none of its classes is one of ours; say which is which with 'classes: {{...}}'"
        )
    return ClassTable(tuple(sources), names)


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().lower()))


def _ours(where: str, name: str, known: Mapping[str, int]) -> int | None:
    if _plain(name) == OTHER:
        return None
    if _plain(name) not in known:
        raise ManifestError(
            f"{where}: 'classes' names '{name}', which is none of our classes; {nearest(name, known)}"
        )
    return known[_plain(name)]


def _by_name(
    where: str,
    names: Sequence[str],
    labels: Mapping[int, str] | None,
    known: Mapping[str, int],
    ours: Sequence[str],
    *,
    strict: bool,
) -> dict[int, int | None]:
    if labels is None:
        raise ManifestError(
            f"{where}: its {len(names)} classes have no names; name them in their order with 'classes: [...]'"
        )
    chosen = {channel: known.get(_plain(name)) for channel, name in enumerate(names)}
    missing = [name for number, name in enumerate(ours) if number not in chosen.values()]
    if missing and strict:
        raise ManifestError(
            f"{where}: {len(missing)} of our classes are none of its {len(names)} (first: {first_few(missing, 3)}); "
            "give a table, 'classes: {its name: our name, ...}', or 'classes: auto' to do without them"
        )
    return chosen


def _by_table(
    where: str,
    names: Sequence[str],
    labels: Mapping[int, str] | None,
    known: Mapping[str, int],
    choice: Mapping[str, str],
) -> dict[int, int | None]:
    channels = {} if labels is None else {_plain(name): channel for channel, name in enumerate(names)}
    chosen: dict[int, int | None] = {}
    for source, name in choice.items():
        if _plain(source) in channels:
            channel = channels[_plain(source)]
        elif source.isdecimal() and int(source) < len(names):
            channel = int(source)
        else:
            fix = "its classes have no names" if labels is None else nearest(source, names)
            raise ManifestError(
                f"{where}: 'classes' names '{source}', which the network does not know ({fix}); use its names, or "
                f"channel numbers from '0' to '{len(names) - 1}'"
            )
        chosen[channel] = _ours(where, name, known)
    return chosen


def shipped_table(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Read a table that comes with the package: for each channel one of our classes, or `OTHER`, and its names.

    ManifestError if there is none of this name.
    """
    if name not in CLASS_TABLES:
        raise ManifestError(f"there is no table of classes '{name}'; {nearest(name, CLASS_TABLES)}")
    rows = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))["classes"]
    return [(row[0], tuple(row[1:])) for row in rows]


def _by_shipped_table(
    where: str, names: tuple[str, ...], labels: Mapping[int, str] | None, known: Mapping[str, int], choice: str
) -> tuple[dict[int, int | None], tuple[str, ...]]:
    rows = shipped_table(choice)
    if len(rows) != len(names):
        raise ManifestError(
            f"{where}: 'classes: {choice}' is of {len(rows)} classes, the network has {len(names)}; give a table of "
            "your own, 'classes: {its name: our name, ...}'"
        )
    chosen = {channel: known.get(_plain(ours)) for channel, (ours, _) in enumerate(rows)}
    if labels is None:
        return chosen, tuple(own[0] for _, own in rows)
    for channel, (_, own) in enumerate(rows):
        # Files of one network call it "road, route", of another "road".
        same = {_plain(one) for one in names[channel].split(",")} & {_plain(one) for one in own}
        if chosen[channel] is not None and not same:
            raise ManifestError(
                f"{where}: channel {channel} is '{names[channel]}', in the table {choice} it is '{own[0]}'; give a "
                "table of your own, 'classes: {its name: our name, ...}'"
            )
    return chosen, names
