"""The program of `forked`: imports all that a command needs, then forks a process for each command line it is sent.

A command's own workers, which multiprocessing would start as new Pythons, are forked as well: from a process that the
command forks while it has one thread, and which hands them over to it.
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.spawn
import multiprocessing.util
import os
import pkgutil
import select
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path


def import_all() -> None:
    """Whatever a command imports before or while it works; in one thread, or nothing could be forked."""
    import hmsa_pipeline.cli
    import hmsa_pipeline.pipeline
    import torch
    from hmsa_pipeline.models.prepare_inference import prepare_for_inference
    from hmsa_pipeline.models.registry import build

    for module in pkgutil.walk_packages(hmsa_pipeline.pipeline.__path__, "hmsa_pipeline.pipeline."):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    with torch.device("meta"):
        prepare_for_inference(build("hrnet_tiny_ocr_mscale"), None)
    tasks = os.listdir("/proc/self/task")  # noqa: PTH208
    assert len(tasks) == 1, tasks


_customised: set[str] = set()


def customise() -> None:
    """Do what a new Python does with its environment, as far as tests need it."""
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        file = Path(folder) / "sitecustomize.py"
        if folder and folder not in _customised and file.is_file():
            _customised.add(folder)
            exec(compile(file.read_text(), file, "exec"), {"__name__": "sitecustomize", "__file__": str(file)})
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings._setoption(option)  # type: ignore[attr-defined]


_SUBREAPER = 36


def fork_workers() -> tuple[str, ...] | None:
    """Have multiprocessing's next processes forked; returns in them, too, with the program of theirs."""
    asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # whoever is left by its parent is a child of this process
    if not os.fork():
        asking.close()
        return _serve_workers(asked)
    asked.close()
    begin = multiprocessing.util.spawnv_passfds
    one_at_a_time = threading.Lock()  # two threads that start workers would get each other's

    def fork(path: bytes, arguments: list[str | bytes], handles: list[int]) -> int:
        words = [os.fsdecode(word) for word in arguments]
        if "--multiprocessing-fork" not in words:
            return begin(path, arguments, handles)
        request = {"words": words, "handles": handles, "env": dict(os.environ), "cwd": str(Path.cwd())}
        with one_at_a_time:
            socket.send_fds(asking, [json.dumps(request).encode()], handles)
            return int(asking.recv(64))

    multiprocessing.util.spawnv_passfds = fork
    return None


def _serve_workers(asked: socket.socket) -> tuple[str, ...]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        content, handles, *_ = socket.recv_fds(asked, 1 << 20, 64)
        if not content:
            os._exit(0)
        request = json.loads(content)
        heard, told = os.pipe()
        if between := os.fork():
            os.close(told)
            for handle in handles:
                os.close(handle)
            os.waitpid(between, 0)
            asked.send(os.read(heard, 64))
            os.close(heard)
            continue
        if worker := os.fork():
            os.write(told, str(worker).encode())
            os._exit(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        far = [fcntl.fcntl(handle, fcntl.F_DUPFD, 1000) for handle in handles]
        os.closerange(3, 1000)
        for handle, place in zip(far, request["handles"], strict=True):
            os.dup2(handle, place, inheritable=True)
            os.close(handle)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        customise()
        Path("/proc/self/comm").write_text("spawn_main")
        return tuple(request["words"])


def serve(control: socket.socket) -> list[str]:
    """Fork for each request; returns in the children, with the words of their command line."""
    running: dict[int, socket.socket] = {}
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    signal.set_wakeup_fd(woken.fileno())
    while True:
        select.select([control, wake], [], [])
        with contextlib.suppress(BlockingIOError):
            wake.recv(1024)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with running.pop(ended[0]) as report, contextlib.suppress(OSError):
                    report.send(str(ended[1]).encode())
        if not select.select([control], [], [], 0)[0]:
            continue
        content, handles, *_ = socket.recv_fds(control, 1 << 20, 3)
        if not content:  # the tests have ended
            sys.exit()
        (report_fd, out, err), request = handles, json.loads(content)
        report = socket.socket(fileno=report_fd)
        if child := os.fork():
            running[child] = report
            os.close(out)
            os.close(err)
            report.send(str(child).encode())
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (control, wake, woken, report, *running.values()):
            one.close()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        customise()
        return request["argv"]


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    import_all()
    gc.collect()
    gc.freeze()
    connection.send(b"ready")
    words = serve(connection)
    if worker := fork_workers():
        sys.argv = ["-c", *worker[worker.index("--multiprocessing-fork") :]]
        exec(worker[worker.index("-c") + 1])
        sys.exit()
    from hmsa_pipeline import cli

    sys.argv = ["hmsa-pipeline", *words]
    cli.main()
