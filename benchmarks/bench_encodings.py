"""Ways to write logits: how much smaller they become, and how fast they go in and out, on one thread.

    hmsa-pipeline dump --manifest my.yaml --limit 1
    python benchmarks/bench_encodings.py runs/my/logits/bravo_ACDC/cityscapes.zarr ...

Takes the first complete image of every array of each store and encodes it strip by strip, as stores do. The baseline
is what research forks write, `np.savez_compressed` of the whole image. Prints a line for each way: times smaller than
raw float16, and MB of raw float16 in and out for each second of a core, the best of three rounds.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from hmsa_pipeline.pipeline.store.fixed_point import decode, encode
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from hmsa_pipeline.pipeline.store.zarr_backend import ENCODINGS, strip_rows
from numcodecs import Blosc, blosc
from numcodecs.pcodec import PCodec
from pcodec import standalone

Way = tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]


def blosced(name: str, level: int, shuffle: int) -> Way:
    """Blosc, as Zarr uses it."""
    codec = Blosc(name, level, shuffle)
    return codec.encode, lambda packed: np.frombuffer(codec.decode(packed), np.float16)


def compact() -> Way:
    """Encoding ``compact``."""
    codec = Blosc("zstd", 3, Blosc.BITSHUFFLE)
    return (
        lambda strip: (codec.encode(encode(strip)), strip.shape),
        lambda packed: decode(np.frombuffer(codec.decode(packed[0]), np.uint16).reshape(packed[1])),
    )


def pcodec(codec: PCodec) -> Way:
    """pcodec, as stores read it."""

    def out(packed: tuple[bytes, int]) -> np.ndarray:
        room = np.empty(packed[1], np.float16)
        standalone.simple_decompress_into(packed[0], room)
        return room

    return lambda strip: (codec.encode(strip), strip.size), out


def fixed_point_and_pcodec() -> Way:
    """Steps of 1/64 as int16, as `numcodecs.fixedscaleoffset` makes them, and pcodec."""
    codec = PCodec(8, mode_spec="classic", delta_spec="try_consecutive", delta_encoding_order=2)

    def out(packed: bytes) -> np.ndarray:
        steps = torch.from_numpy(np.asarray(codec.decode(packed)))
        return steps.float().div_(64).half().numpy()

    return lambda strip: codec.encode(torch.from_numpy(strip).float().mul_(64).round_().to(torch.int16).numpy()), out


def savez() -> Way:
    """The baseline."""

    def out(packed: bytes) -> np.ndarray:
        return np.load(io.BytesIO(packed))["x"]

    def into(strip: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.savez_compressed(file, x=strip)
        return file.getvalue()

    return into, out


WAYS: dict[str, Way] = {
    "savez_compressed": savez(),
    "blosc lz4 shuffle (lossless)": blosced("lz4", 5, Blosc.SHUFFLE),
    "blosc lz4 bitshuffle": blosced("lz4", 5, Blosc.BITSHUFFLE),
    "blosc zstd 1 shuffle": blosced("zstd", 1, Blosc.SHUFFLE),
    "blosc zstd 1 bitshuffle": blosced("zstd", 1, Blosc.BITSHUFFLE),
    "blosc zstd 5 shuffle": blosced("zstd", 5, Blosc.SHUFFLE),
    "pcodec 8, its own choice": pcodec(PCodec(8)),
    "pcodec 8 (small)": pcodec(ENCODINGS["small"].compressor),
    "fixed point 1/64, pcodec 8": fixed_point_and_pcodec(),
    "compact": compact(),
}


def strips(path: Path) -> list[np.ndarray]:
    """Those of the first complete image of each size."""
    store = LogitStore.open(path)
    found, seen = [], set()
    for index, (entry, ok) in enumerate(zip(store.images, store.complete(), strict=True)):
        if ok and entry.array not in seen:
            seen.add(entry.array)
            logits = store.read(index)
            rows = strip_rows(*logits.shape)
            found += [np.ascontiguousarray(logits[:, y : y + rows]) for y in range(0, logits.shape[1], rows)]
    return found


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    blosc.set_nthreads(1)
    pieces = [strip for path in options.stores for strip in strips(path)]
    raw = sum(piece.nbytes for piece in pieces)
    print(machine())
    print(f"{len(pieces)} strips of {len(options.stores)} stores, {raw / 1e6:.0f} MB")
    for name, (into, out) in WAYS.items():
        best = [float("inf"), float("inf")]
        packed: list[Any] = []
        for _ in range(1 if name == "savez_compressed" else 3):
            begun = time.process_time()
            packed = [into(piece) for piece in pieces]
            between = time.process_time()
            for one in packed:
                out(one)
            ended = time.process_time()
            best = [min(best[0], between - begun), min(best[1], ended - between)]
        size = sum(len(one[0] if isinstance(one, tuple) else one) for one in packed)
        print(f"{name:30} {raw / size:5.2f}x smaller, {raw / best[0] / 1e6:6.0f} in, {raw / best[1] / 1e6:6.0f} out")


if __name__ == "__main__":
    main()
