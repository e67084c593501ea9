"""Settings of the command line, such as ``--set``, that replace those of a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import yaml

from ...errors import ManifestError, describe_value
from .yaml_document import Document

_BY_FLAG = {"output": "--output", "data.root": "--root", "data.cache": "--cache", "init.checkpoint": "--init"}
_SHOWN = 80  # characters of what --set was given


@dataclass(frozen=True)
class SetOption:
    """One ``--set KEY=VALUE``."""

    shown: str  # as given, shortened for messages
    place: tuple[str, ...]  # the key's steps, such as ("augmentation", "flip")
    value: Any  # in YAML's types; never a mapping

    @classmethod
    def parse(cls, text: str) -> SetOption:
        """Read ``a.b=value``; ManifestError if it is something else."""
        shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
        place, equals, written = text.partition("=")
        steps = tuple(place.strip().split("."))
        if not equals or not all(steps):
            raise ManifestError(f"--set {shown}: write KEY=VALUE, such as augmentation.flip=0.0")
        if flag := _BY_FLAG.get(place.strip()):
            raise ManifestError(f"--set {shown}: use {flag}, whose paths start where you are")
        try:
            value = yaml.safe_load(written)
        except (yaml.YAMLError, ValueError, RecursionError):  # PyYAML lets the latter two through
            raise ManifestError(
                f"--set {shown}: {describe_value(written)} is no value in YAML; put text in quotes"
            ) from None
        if isinstance(value, dict):
            raise ManifestError(f"--set {shown}: one value is needed, not a mapping; set its keys one by one")
        if not (value is None or isinstance(value, (str, int, float, list))):
            raise ManifestError(
                f"--set {shown}: a number, a text, a list, true, false or null is needed; put text in quotes"
            )
        return cls(shown, steps, value)

    def over(self, document: Document) -> Document:
        """Put this value, null too, into the document; ManifestError if a step of its place is no section."""
        place: list[str | int] = []
        tree = self._put(document.tree, place)
        return replace(document, tree=tree, overridden=document.overridden | {tuple(place)})

    def _put(self, level: Any, place: list[str | int]) -> Any:
        """Copy what stands at ``place``, with this value in it; ``place`` grows to where that is."""
        depth = len(place)
        if depth == len(self.place):
            return self.value
        step, section = self.place[depth], ".".join(self.place[:depth])
        if isinstance(level, list):
            if not step.isdecimal() or int(step) >= len(level):
                last = f", {section}.0 to {section}.{len(level) - 1}" if level else ""
                raise ManifestError(
                    f"--set {self.shown}: {section} is a list of {len(level)}; name an entry by its number{last}"
                )
            place.append(int(step))
            return [self._put(one, place) if i == int(step) else one for i, one in enumerate(level)]
        if level is not None and not isinstance(level, dict):
            raise ManifestError(
                f"--set {self.shown}: {section} is {describe_value(level)}, no section; write {section}=VALUE"
            )
        place.append(step)
        found = level or {}
        return {**found, step: self._put(found.get(step), place)}
