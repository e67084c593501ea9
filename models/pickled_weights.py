"""Reading what `torch.save` wrote without running anything that the file asks for.

`torch.load(weights_only=True)` makes tensors and plain containers, and refuses every other name. The few names that
stand beside weights in files of ordinary trainers are mapped to classes of this module, which hold what they are
given and do nothing: not even NumPy's own constructors are called with what a file says.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

ENTRIES = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params")
"""Names under which trainers save a network, the usual ones first."""
_NUMERIC = re.compile(r"b1|[iu][1248]|f[248]")


class _DType:
    """Takes the place of `numpy.dtype`."""

    def __init__(self, code: object = "", *_: object) -> None:
        self._code, self._order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self._order = str(state[1])

    def numeric(self) -> np.dtype[Any] | None:
        """The type that it stands for; None if that is no real number of a usual size."""
        if not _NUMERIC.fullmatch(self._code) or self._order not in ("<", ">", "=", "|"):
            return None
        return np.dtype(self._order + self._code)


class Array:
    """Takes the place of `numpy.ndarray`, whose values are looked at only when they are wanted."""

    def __init__(self, *_: object) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def tensor(self) -> Tensor | None:
        """Its values on the CPU, in memory of their own; None if they are no real numbers.

        Raises:
            ValueError, TypeError: shape and bytes do not belong together.
        """
        _, shape, dtype, fortran, raw = self._state
        kind = dtype.numeric() if isinstance(dtype, _DType) else None
        if kind is None or not isinstance(raw, bytes | str):
            return None
        if not isinstance(shape, tuple) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError(f"no shape: {shape}")  # NumPy would work a negative one out
        content = raw if isinstance(raw, bytes) else raw.encode("latin1")
        values = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(values.astype(kind.newbyteorder("="), order="C", copy=True))


class Opaque:
    """Takes the place of an object that is nobody's weights, such as the arguments of a command line."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """Takes the place of the constructor of NumPy's scalars."""
    kind = dtype.numeric() if isinstance(dtype, _DType) else None
    if kind is None or not isinstance(raw, bytes):
        return Opaque()
    return np.frombuffer(raw, kind, count=1)[0]


# NumPy 1 and 2 know their constructors by other names, and so do Pythons their paths.
_ALLOWED: list[Any] = [
    (_DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((Opaque, name) for name in ("argparse.Namespace", "types.SimpleNamespace")),
    *(
        (Opaque, f"{module}.{kind}{system}Path")
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
]


def is_zip(path: Path) -> bool:
    """True if a file has the zip format that torch writes since 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_pickled(path: Path, *, mmap: bool) -> Any:
    """Read a file of `torch.save`, tensors on the CPU; NumPy arrays as `Array`.

    With ``mmap`` tensors are views of the file, which the format from before torch 1.6 does not allow.

    Raises:
        CheckpointError: the file is no such file, or asks for a name that is not allowed.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says about pickle protocols ends in the error below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that may be anything make torch raise almost anything
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: is a TorchScript program, not weights; save them alone where it was made: "
                "torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        name = _refused_name(error, path) if isinstance(error, pickle.UnpicklingError) else None
        if name is None:
            raise CheckpointError(f"{path}: is truncated, damaged or no checkpoint") from error
        raise CheckpointError(
            f"{path}: refused, it asks for '{name}', which weights do not need; save its state_dict alone, where you "
            "trust who made it: "
            f"""torch.save(torch.load("{path.name}", weights_only=False){_access(path)}, "weights.pth")"""
        ) from error


def _refused_name(error: pickle.UnpicklingError, path: Path) -> str | None:
    """Name of the object that a pickle asked for and was refused; None if it failed for another reason."""
    named = re.search(r"(?:GLOBAL |via `add_safe_globals`,? but got <class ')([\w.]+)", str(error))
    if named:
        return named[1]
    # torch gives up on pickle protocol 4 and later before it has seen a name.
    try:
        with _pickles(path) as file:
            return _first_foreign_name(file)
    except Exception:  # the pickles end without one, or zipfile makes of damage what it likes
        return None


@contextlib.contextmanager
def _pickles(path: Path) -> Iterator[IO[bytes]]:
    """The stream of pickles in a file of either format."""
    if not is_zip(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(pickled) as file:
            yield file


def _access(path: Path) -> str:
    """Python that gets from what a file holds to its state dict, by the texts in its pickles, which are not run."""
    texts: list[str] = []
    # Numbers follow the pickles of the old format, and are no opcodes.
    with contextlib.suppress(Exception), _pickles(path) as file:
        while True:
            texts += [text for _, text, _ in pickletools.genops(file) if isinstance(text, str)]
    if "_modules" not in texts:
        return f'["{next((name for name in ENTRIES if name in texts), ENTRIES[0])}"]'
    # A network itself; after this text stand the names of its parts, and "module" is a word of the old format.
    before = {*texts[: texts.index("_modules")]} - {"module"}
    return "".join(f'["{name}"]' for name in ENTRIES if name in before) + ".state_dict()"


def _first_foreign_name(file: IO[bytes]) -> str:
    """The first name that a stream of pickles imports from elsewhere than torch, NumPy and collections.

    The opcodes are listed, not run. A name stands in its opcode, or in the two strings before it, which
    may have been put into the memo and got from there. Raises where it finds none.
    """
    while True:
        pushed: list[str] = []
        memo: dict[Any, str] = {}
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "MEMOIZE":
                memo[len(memo)] = pushed[-1]
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = pushed[-1]
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                pushed.append(memo[argument])
            else:
                pushed.append(argument if isinstance(argument, str) else "")
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = argument.split(" ", 1) if argument else pushed[-3:-1]
                if module.partition(".")[0] not in ("torch", "numpy", "collections"):
                    return f"{module}.{name}"
