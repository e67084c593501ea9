"""What the tests of the command line compute again and again, computed once per process: networks, logits and plots.

They are functions of what they are given, and all of that is part of the key, down to each byte of the checkpoint and
each pixel: a network that is built or computes otherwise is another entry, or is wrong at its first call. Networks
themselves are held against golden data in tests/models, and in test_own_processes.py against processes of their own,
which remember nothing.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hmsa_pipeline.datasets.class_set import ClassSet
from hmsa_pipeline.files import write_bytes
from hmsa_pipeline.models import checkpoint, registry
from hmsa_pipeline.models.hmsa import HMSA
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.dataset_tools import check
from hmsa_pipeline.pipeline.inference import predictor
from hmsa_pipeline.pipeline.inference.predictor import Predictor
from hmsa_pipeline.pipeline.report import plots
from torch import Tensor, nn

SMALL = 8 * 2**20
"""Bytes of the largest checkpoint that is remembered."""


class Memory:
    """The latest ``size`` results of functions."""

    def __init__(self, size: int) -> None:
        self._size, self._known = size, OrderedDict[Any, Any]()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for ``key``, made now if it is not known."""
        if key not in self._known:
            self._known[key] = make()
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        return self._known[key]


def own(tree: Any) -> Any:
    """A copy of nested mappings and lists of tensors that nobody else can change."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        made = copy.copy(tree)
        made.update({key: own(value) for key, value in tree.items()})
        return made
    return [own(value) for value in tree] if type(tree) is list else copy.copy(tree)


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= SMALL else None


PLOTS = (
    (check, "draw_class_chart"),
    *((plots, name) for name in ("iou_bars", "reliability_diagram", "curves", "dots_by_dataset")),
    *((plots, name) for name in ("class_reliability", "risk_coverage_curves", "confusion_matrix")),
    *((plots, name) for name in ("confidence_histogram", "dispute_matrix")),
)
"""Functions of a path and of what is drawn there."""


def _drawn_once(draw: Callable[..., None], pictures: Memory) -> Callable[..., None]:
    @functools.wraps(draw)  # so that a pool of processes takes it for the function that it stands for
    def call(path: Path, *given: Any, **options: Any) -> None:
        made = False

        def make() -> bytes:
            nonlocal made
            draw(path, *given, **options)
            made = True
            return path.read_bytes()

        content = pictures.get((draw.__name__, pickle.dumps((given, options))), make)
        if not made:
            write_bytes(path, content)

    return call


_files, _networks, _logits, _pictures = Memory(60), Memory(30), Memory(1000), Memory(300)


@contextmanager
def remembered() -> Iterator[None]:
    """Files of weights, networks with their weights and their logits are kept for the next who wants the same."""
    read, load, compute = checkpoint.read_pickled, predictor.load_network, Predictor.predict_scales

    def read_once(path: Path, *, mmap: bool) -> Any:
        content = _content(path) if mmap else None
        if content is None:
            return read(path, mmap=mmap)
        return own(_files.get(hashlib.sha256(content).digest(), lambda: own(read(path, mmap=True))))

    def load_once(member: Member, classes: ClassSet) -> Any:
        path = member.checkpoint_path()
        content = _content(path) if member.arch in registry.ARCHITECTURES else None
        if content is None:
            return load(member, classes)
        kind = (member.arch, registry.SIZES.get(member.arch), classes, member.classes)
        key = (*kind, path.suffix, hashlib.sha256(content).digest())
        return copy.deepcopy(_networks.get(repr(key), lambda: load(member, classes)))

    def compute_once(self: Predictor, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if type(self.model) is not HMSA or pixels.device.type != "cpu" or self.member.sample is not None:
            return compute(self, pixels, gather)
        if not hasattr(self, "weights_digest"):
            self.weights_digest = digest(self.model)  # type: ignore[attr-defined]
        options = (self.weights_digest, self.member.arch, repr(self._options), str(gather))  # type: ignore[attr-defined]
        image = hashlib.sha256(pixels.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()
        key = (options, tuple(pixels.shape), pixels.stride(), pixels.dtype, torch.get_num_threads(), image)
        return _logits.get(repr(key), lambda: compute(self, pixels, gather).clone()).clone()

    with ExitStack() as patches:
        for owner, name, once in (
            (checkpoint, "read_pickled", read_once),
            (predictor, "load_network", load_once),
            (Predictor, "predict_scales", compute_once),
            *((module, name, _drawn_once(getattr(module, name), _pictures)) for module, name in PLOTS),
        ):
            patches.enter_context(mock.patch.object(owner, name, once))
        yield
