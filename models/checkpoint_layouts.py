"""Where the weights lie in the files that trainers leave behind, and what stands before their names.

A file may be a state dict, or hold one or several in its entries. Wrappers put a prefix before every key: ``module.``
(`nn.DataParallel`, `torch.optim.swa_utils.AveragedModel`), ``_orig_mod.`` (`torch.compile`), ``model.`` or ``net.``
(a LightningModule). What is looked for is known, the keys of a network, so any prefix is found by matching; nothing
else is guessed, and keys that are neither the network's nor known to be nobody's are given back for the caller to
refuse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, first_few
from .pickled_weights import ENTRIES, Array

COUNTER = "num_batches_tracked"
"""Counter of batches that a norm has seen; evaluation does not need it, and files of old or other tools lack it."""

CLASS_NAMES = "class_names"
"""Entry of a file for the names of its network's classes."""

_DEPTH = 3  # of entries within entries
_AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|average)(_|$)")
# Moments have the names and shapes of the weights that they belong to.
_OPTIMIZER = re.compile(r"(^|_)(optim(izers?|s)?|exp_avg(_sq)?|momentum_(avg|buffer))(_|$)", re.IGNORECASE)
# Wrappers that may stand before any part of a network, and are never its own names.
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What trainers keep beside a network within one state dict: losses, metrics, and how often they have averaged.
_BESIDE = re.compile(
    r"(criteri(on|a|ons)|(\w+_)?loss(es)?|loss_\w+|((train|val|valid|test)_)?metrics?)(\..*)?"
    r"|n_averaged|initted|num_updates|decay|step"
)


@dataclass(frozen=True)
class Weights:
    """A network's weights as they were found in a file.

    Attributes:
        tensors: key -> tensor on the CPU, in the file's order.
        entry: the file's entry that holds them, by dots; empty if the file is the state dict itself.
        source: the same, or the prefix under which they stand where others stand beside them.
        passed_over: other entries that hold weights, or other prefixes within this one.
        averaged: whether they were preferred for being averaged.
        prefixes: what was taken off the keys.
        left_out: keys beside the network's that are nobody's weights here.
        counters: how many ``num_batches_tracked`` the file lacks; they are 0.
        class_names: names of the classes by id, if the file remembers them.
    """

    tensors: dict[str, Tensor]
    entry: str = ""
    source: str = ""
    passed_over: tuple[str, ...] = ()
    averaged: bool = False
    prefixes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    counters: int = 0
    class_names: tuple[str, ...] | None = None

    def note(self) -> str | None:
        """Tell the user in one line how they were found; None for a file as published."""
        said = []
        if self.entry not in ("", "state_dict") or self.passed_over:
            where = f"taken from '{self.source}'"
            if passed_over := [name or "the file itself" for name in self.passed_over]:
                where += f"{', which is averaged' if self.averaged else ''}, not from {first_few(passed_over)}"
            said.append(where)
        if unusual := [prefix for prefix in self.prefixes if prefix != "module."]:
            said.append(f"'{first_few(unusual)}' taken off the keys")
        if self.left_out:
            said.append(f"{len(self.left_out)} left out ({first_few(self.left_out)})")
        if self.counters:
            said.append(f"{self.counters} {COUNTER} are not there, set to 0")
        return f"weights {'; '.join(said)}" if said else None


@dataclass
class _Found:
    """A state dict within a file, held against the keys that are wanted."""

    entry: str
    content: Mapping[str, Any]
    names: dict[str, str]
    """Key in the file -> the same without wrappers inside it."""
    prefix: str = ""
    score: int = 0
    twins: list[str] = field(default_factory=list)
    """Other prefixes under which all that was found stands once more."""

    @property
    def averaged(self) -> bool:
        return _is_averaged(self.prefix) or _is_averaged(self.entry)


def find_weights(path: Path, content: Any, expected: Collection[str] | None, keep: Collection[str] = ()) -> Weights:
    """The weights in what a file holds.

    Where a file holds several sets that fit equally well, the averaged one is taken (``state_dict_ema`` before
    ``state_dict``): it is what trainers that average validate and publish.

    Args:
        path: what errors call the file.
        content: of the file, as `pickled.read_pickled` gives it.
        expected: keys of the network; None takes off no other prefix than ``module.``.
        keep: layers that are not left out, whatever they are called.

    Raises:
        CheckpointError: it holds no weights, or several sets of which none is to be preferred.
    """
    found = [
        _match(path, entry, mapping, expected)
        for entry, mapping in _entries(content, "", _DEPTH)
        if any(isinstance(value, Tensor | Array) for value in mapping.values())
    ]
    if not found:
        raise CheckpointError(f"{path}: holds no state dict, but {_described(content)}; is it a checkpoint?")
    chosen, others = _choose(path, found)
    return replace(_weights(path, chosen, others, expected, keep), class_names=_class_names(content))


def _class_names(content: Any) -> tuple[str, ...] | None:
    names = content.get(CLASS_NAMES) if isinstance(content, dict) else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f"one object of the type {type(content).__name__}"
    odd = next((key for key in content if not isinstance(key, str)), None)
    if odd is not None:
        return f"a mapping whose keys are no names ({odd!r})"
    return f"entries without weights ({first_few(content)})" if content else "nothing at all"


def _entries(content: Any, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(content, dict) or not depth or not all(isinstance(key, str) for key in content):
        return
    yield name, content
    for key, value in content.items():
        if not _OPTIMIZER.search(key):
            yield from _entries(value, f"{name}.{key}" if name else key, depth - 1)


def _match(path: Path, entry: str, content: Mapping[str, Any], expected: Collection[str] | None) -> _Found:
    wanted = frozenset(expected or ())
    names = {
        key: key if key in wanted else _INSIDE.sub("", key)
        for key, value in content.items()
        if isinstance(value, Tensor | Array)
    }
    if len(set(names.values())) < len(names):
        twice = next(name for name, times in Counter(names.values()).items() if times > 1)
        raise CheckpointError(f"{path}: holds {twice} twice, with and without a wrapper; save the one that is meant")
    found = _Found(entry, content, names)
    if expected is None:
        network = [name for name in names.values() if not _is_beside(name)]
        if network and all(name.startswith("module.") for name in network):
            found.prefix = "module."
        found.score = len(names)
        return found
    counts: Counter[str] = Counter()
    for name in names.values():
        if not name.endswith(COUNTER):
            parts = name.split(".")
            counts.update(".".join((*parts[:n], "")) for n in range(len(parts)) if ".".join(parts[n:]) in wanted)
    if not counts:
        # Nothing of it fits: the errors shall name keys without what is surely no part of them.
        found.prefix = "module." if all(name.startswith("module.") for name in names.values()) else ""
        return found
    found.score = max(counts.values())
    best = [prefix for prefix, count in counts.items() if count == found.score]
    averaged = [prefix for prefix in best if _is_averaged(prefix)]
    plain = [prefix for prefix in best if prefix not in averaged]
    preferred = averaged or plain
    if len(preferred) > 1:
        raise CheckpointError(
            f"{path}: holds the network more than once ({first_few(preferred)}); save the one that is meant alone"
        )
    (found.prefix,) = preferred
    found.twins = [prefix for prefix in best if prefix != found.prefix]
    return found


def _choose(path: Path, found: list[_Found]) -> tuple[_Found, list[_Found]]:
    """The set of weights that is meant, and the others that would do as well."""
    best = max(one.score for one in found)
    fitting = [one for one in found if one.score == best]
    if not best:  # the errors shall be about the largest
        fitting.sort(key=lambda one: -len(one.names))
    for some in (
        [one for one in fitting if one.averaged],
        *([one for one in fitting if one.entry.rpartition(".")[2] == usual] for usual in ("", *ENTRIES)),
        fitting,
    ):
        if len(some) > 1 and best:
            raise CheckpointError(
                f"{path}: holds several sets of weights ({first_few([one.entry for one in some])}); "
                "save the one that is meant alone"
            )
        if some:
            return some[0], [one for one in fitting if one is not some[0]] if best else []
    raise AssertionError("there is one that fits best")


def _weights(
    path: Path, found: _Found, others: list[_Found], expected: Collection[str] | None, keep: Collection[str]
) -> Weights:
    tensors: dict[str, Tensor] = {}
    prefixes: dict[str, None] = {}
    left_out: list[str] = []
    for key, value in found.content.items():
        name = found.names.get(key, key)
        short = name.removeprefix(found.prefix)
        kept = short in (expected or ()) or any(short == layer or short.startswith(f"{layer}.") for layer in keep)
        if _is_twin(name, found, expected):
            continue
        tensor = _tensor(path, key, value)
        if tensor is None or (not kept and (_is_beside(short) or _is_beside(name))):
            left_out.append(key)
            continue
        if short in tensors:
            raise CheckpointError(f"{path}: holds {short} twice, with and without '{found.prefix}'")
        tensors[short] = tensor
        if key != short:
            prefixes[key.removesuffix(short) if key.endswith(short) else "_orig_mod."] = None
    if not tensors:
        held = f"only what stands beside a network ({first_few(left_out)})"
        raise CheckpointError(f"{path}: holds no weights, {held}; is it a checkpoint?")
    counters = [key for key in expected or () if key.endswith(f".{COUNTER}")]
    absent = counters if not any(key in tensors for key in counters) else []
    tensors |= {key: torch.zeros((), dtype=torch.int64) for key in absent}
    return Weights(
        tensors,
        entry=found.entry,
        source=found.prefix.rstrip(".") if found.twins else found.entry,
        passed_over=(*(one.entry for one in others), *(twin.rstrip(".") for twin in found.twins)),
        averaged=found.averaged,
        prefixes=tuple(prefixes),
        left_out=tuple(left_out),
        counters=len(absent),
    )


def _is_twin(name: str, found: _Found, expected: Collection[str] | None) -> bool:
    """True if a key belongs to another copy of the network that was passed over."""
    return any(name.startswith(prefix) if prefix else name in (expected or ()) for prefix in found.twins)


def _tensor(path: Path, key: str, value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    try:
        return value.tensor() if isinstance(value, Array) else None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is truncated, damaged or no checkpoint ({key}: {error})") from error


def _is_beside(name: str) -> bool:
    return _BESIDE.fullmatch(name) is not None


def _is_averaged(name: str) -> bool:
    return any(_AVERAGED.search(part) for part in name.split("."))
