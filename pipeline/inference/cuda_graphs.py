"""CUDA graphs: the forward pass of one image size, captured once and replayed.

A pass at three scales launches several thousand kernels, and a GPU is done with many of them before the CPU has
launched the next. A graph launches all of them at once. It holds the addresses of weights, input and output, so that
none of them may move while it lives.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..runtime.device import first_line, is_out_of_memory

Work = Callable[[Tensor], Tensor]
Capture = Callable[[Work, Tensor], Work]

MAX_GRAPHS = 8
"""Upper bound of the image sizes of one network that have a graph at the same time."""


class GraphForward:
    """Runs ``work``; from the second image of a size on by replaying a graph of it.

    The first image of a size runs without a graph: it may be the only one. The second is computed, captured and
    replayed, and the graph is kept if the replay gives the same bits. If anything goes wrong, all images run without
    graphs from then on; if the memory is too small for a graph, images of its size do.

    Args:
        work: images (1, 3, H, W) on the device to a tensor there; its weights stay where they are until `clear`.
        note: called with a line for the user, at most once for each reason.
        capture: makes a graph; see `capture_graph`.
        most: number of graphs that are kept; the one that was not used for longest is dropped first.
    """

    _alive: ClassVar[weakref.WeakSet[GraphForward]] = weakref.WeakSet()

    def __init__(
        self,
        work: Work,
        note: Callable[[str], None],
        *,
        capture: Capture | None = None,
        most: int = MAX_GRAPHS,
    ) -> None:
        self._work, self._note, self._most = work, note, most
        self._capture = capture or capture_graph
        self._graphs: OrderedDict[tuple[int, ...], Work] = OrderedDict()
        self._seen: set[tuple[int, ...]] = set()
        self._without: set[tuple[int, ...]] = set()
        self._broken = False
        GraphForward._alive.add(self)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return ``work(pixels)``, which the caller may keep, for ``pixels`` (1, 3, H, W) on the device."""
        size = tuple(pixels.shape)
        if graph := self._graphs.get(size):
            self._graphs.move_to_end(size)
            return graph(pixels)
        if self._broken or size in self._without or size not in self._seen:
            self._seen.add(size)
            return self._work(pixels)
        expected = self._work(pixels)
        if graph := self._captured(size, pixels, expected):
            while len(self._graphs) >= self._most:
                oldest, _ = self._graphs.popitem(last=False)
                self._seen.discard(oldest)
            self._graphs[size] = graph
        return expected

    def clear(self) -> bool:
        """Drop all graphs, because weights move or the memory is needed; return whether there were any."""
        had = bool(self._graphs)
        self._graphs.clear()
        self._seen.clear()
        return had

    def _captured(self, size: tuple[int, ...], pixels: Tensor, expected: Tensor) -> Work | None:
        try:
            graph = self._capture(self._work, pixels)
            same = _same_bits(graph(pixels), expected)
        except Exception as error:  # CUDA, or a network from another package, may raise anything
            # What failed in a capture is often only the context of what the end of the capture raises.
            if any(is_out_of_memory(one) for one in _chain(error)):
                self._without.add(size)
                self._note(
                    f"cuda_graphs: no memory for a graph of {size[-2]}x{size[-1]}; such images run without one"
                )
            else:
                self._give_up(f"{type(error).__name__}: {first_line(error)}")
            return None
        if not same:
            self._give_up("a replay gave other logits than the pass that was captured")
            return None
        return graph

    def _give_up(self, why: str) -> None:
        self._broken = True
        self._graphs.clear()
        self._note(f"cuda_graphs: cannot be used ({why}); images run without them")


def release_graphs() -> bool:
    """Drop the graphs of all networks of this process, for their memory; return whether there were any."""
    cleared = [forward.clear() for forward in list(GraphForward._alive)]
    return any(cleared)


# Graphs of one device share their memory: they run one after another, and what one leaves is copied before the next.
_live: weakref.WeakKeyDictionary[Any, torch.device] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def capture_graph(work: Work, pixels: Tensor) -> Work:
    """Capture a CUDA graph of ``work``, which ran at the size of ``pixels`` (1, 3, H, W) before.

    Returns:
        a function that copies its argument into the graph's input, replays the graph and returns a copy of the
        output, all on the current stream.

    Raises:
        RuntimeError: something in ``work`` cannot be captured, or the memory is too small.
    """
    device = pixels.device
    with _lock:  # A pool whose graphs are all gone cannot be captured into again; without one the graph gets its own.
        pool = next((graph.pool() for graph, place in list(_live.items()) if place == device), None)
    static = pixels.clone(memory_format=torch.preserve_format)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    # Other threads pin memory and wait for events meanwhile, which a capture in the default mode would not survive.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        output = work(static)
    torch.cuda.current_stream(device).wait_stream(stream)
    with _lock:
        _live[graph] = device

    def replay(images: Tensor) -> Tensor:
        static.copy_(images)
        graph.replay()
        return output.clone()

    return replay


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same bits: NaN equals NaN, and 0 is not -0."""
    bits = _BITS[b.element_size()]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(bits), b.view(bits))


def _chain(error: BaseException | None) -> list[Exception]:
    found: list[Exception] = []
    while isinstance(error, Exception) and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
