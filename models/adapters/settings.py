"""Settings of an adapter: which network, what it sees of an image, and which of its classes are ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OTHER = "other"
"""Name of what is none of our classes, in a list or table of classes."""

ClassChoice = str | Sequence[str] | Mapping[str, str] | None
"""``auto``, one of `registry.CLASS_TABLES`, a name for each channel, or a table from the network's names or channels
to ours; None: all names match."""


@dataclass(frozen=True)
class View:
    """The part of an image that a network sees at a time: all of it if nothing is given.

    Attributes:
        window: height and width of overlapping windows in pixels.
        stride: rows and columns from one window to the next, at most.
        longest: the image is resized until its longer side has this many pixels.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    longest: int | None = None

    @property
    def overlap(self) -> tuple[int, int]:
        """Least overlap of neighbouring windows, vertical and horizontal, in pixels; a quarter if none is given."""
        assert self.window is not None
        stride = self.stride or (max(1, self.window[0] * 3 // 4), max(1, self.window[1] * 3 // 4))
        return self.window[0] - stride[0], self.window[1] - stride[1]

    def as_json(self) -> object:
        """Describe the view for a store: ``whole``, or what is given."""
        if self.longest is not None:
            return {"longest": self.longest}
        if self.window is None:
            return "whole"
        overlap = self.overlap
        stride = [side - shared for side, shared in zip(self.window, overlap, strict=True)]
        return {"window": list(self.window), "stride": stride}


@dataclass(frozen=True)
class AdapterSettings:
    """A network to read.

    Attributes:
        arch: one of `registry.ADAPTERS`.
        path: its file or folder, absolute.
        names: our class names in train-id order.
        view: None for the network's own.
        classes: see `ClassChoice`.
        mean, std: of the network's pixels, red, green, blue, 0..1, where its files do not say them.
        backbone, layers, norm: name of a network of timm, places of the maps that its head takes, ascending, and
            whether the backbone's final normalisation is applied to them.
        kind: what a network that is a graph puts out, one of `member_output.KINDS`; None for logits, which are
            refused if none is below zero.
        as_library: post-processing is the library's where ours differs from it on purpose.
        trusted: code that a file brings may run; without it, files that are code are refused.
    """

    arch: str
    path: Path
    names: tuple[str, ...]
    view: View | None = None
    classes: ClassChoice = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    backbone: str | None = None
    layers: tuple[int, ...] | None = None
    norm: bool | None = None
    kind: str | None = None
    as_library: bool = False
    trusted: bool = False
