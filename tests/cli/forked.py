"""Commands in processes of their own whose imports are done: a template imports everything once and forks them.

Such a process has its own pid, signals, streams, exit code, working directory and environment, and its workers are
processes, too, forked in the same way. What is read when Python starts or a library is imported it shares with the
template, so `start` refuses variables that are read then.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

AVAILABLE = sys.platform == "linux"
"""Elsewhere a process that has loaded libraries may not be forked."""

_AT_START = ("DASK_", "LC_", "LANG", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON", "TORCH", "HF_", "TRANSFORMERS_")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def read_at_start(env: Mapping[str, str]) -> set[str]:
    """Variables among ``env`` that a forked process would not heed; ``sitecustomize`` of a PYTHONPATH it does."""
    return {name for name in env if name.startswith(_AT_START) and name != "PYTHONPATH"}


def start(*argv: str, env: Mapping[str, str] | None = None) -> Forked:
    """A command line of ours begun in a forked process."""
    assert not read_at_start(env or {}), env
    return _template().fork(argv, os.environ | _ONE_THREAD | dict(env or {}))


class Forked:
    """What `subprocess.Popen` is to a process that this one started, with text streams."""

    stdin = None

    def __init__(self, pid: int, argv: tuple[str, ...], report: socket.socket, out: int, err: int) -> None:
        self.pid, self.args, self._report = pid, ["hmsa-pipeline", *argv], report
        self.returncode: int | None = None
        self.stdout: IO[str] = open(out)  # noqa: SIM115
        self.stderr: IO[str] = open(err)  # noqa: SIM115

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            said = self._report.recv(64)
            assert said, "the template is gone"
            self.returncode = os.waitstatus_to_exitcode(int(said))
            self._report.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._report], [], [], left)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        said: dict[int, bytes] = {self.stdout.fileno(): b"", self.stderr.fileno(): b""}
        end, open_ones = None if timeout is None else time.monotonic() + timeout, [*said]
        while open_ones:
            ready = select.select(open_ones, [], [], None if end is None else max(0.0, end - time.monotonic()))[0]
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            for stream in ready:
                said[stream] += (read := os.read(stream, 1 << 16))
                if not read:
                    open_ones.remove(stream)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        out, err = (said[stream.fileno()].decode() for stream in (self.stdout, self.stderr))
        self.stdout.close()
        self.stderr.close()
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Template:
    """The process that forks; it ends when this one does."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = Path(__file__).with_name("fork_template.py")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(program), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | _ONE_THREAD,
                cwd="/",
            )
        assert self._control.recv(64) == b"ready"

    def fork(self, argv: tuple[str, ...], env: Mapping[str, str]) -> Forked:
        report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, their_out), (err, their_err) = os.pipe(), os.pipe()
        request: dict[str, Any] = {"argv": argv, "env": dict(env), "cwd": str(Path.cwd())}
        socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno(), their_out, their_err])
        theirs.close()
        os.close(their_out)
        os.close(their_err)
        return Forked(int(report.recv(64)), argv, report, out, err)


@functools.cache
def _template() -> _Template:
    return _Template()
