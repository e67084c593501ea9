"""A small object store over HTTP that can misbehave as some S3 servers do, which no server does when asked to."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, bytes]


class OddServer(ThreadingHTTPServer):
    """Keeps objects in memory; looks at no keys.

    Attributes:
        objects: ``/bucket/key`` -> content.
        asked: the requests so far, as ``PUT /bucket/key``.
        conditions: what it does with ``If-None-Match``: ``heed``, ``ignore`` or ``refuse`` (501).
        before: called with each request; what it returns is the answer instead of the usual one.
        after: called with each request that was carried out; what it returns is the answer instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.conditions = "heed"
        self.before: Callable[[str], Answer | None] = lambda request: None
        self.after: Callable[[str], Answer | None] = lambda request: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes, fresh: bool) -> Answer:
        """Carry a request out; 0 as the status means that the connection is cut without an answer."""
        self.asked.append(f"{method} {path}")
        if instead := self.before(self.asked[-1]):
            return instead
        done = self._carried_out(method, path, query, body, fresh)
        return self.after(self.asked[-1]) or done

    def _carried_out(self, method: str, path: str, query: dict[str, list[str]], body: bytes, fresh: bool) -> Answer:
        if method == "PUT":
            if fresh and self.conditions == "refuse":
                return 501, b"<Error><Code>NotImplemented</Code></Error>"
            if fresh and self.conditions == "heed" and path in self.objects:
                return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
            self.objects[path] = body
            return 200, b""
        if method == "POST":  # removes many at once
            keys = re.findall(r"<Key>([^<]+)</Key>", body.decode())
            for key in keys:
                self.objects.pop(f"{path}/{key}", None)
            removed = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return 200, f"<DeleteResult>{removed}</DeleteResult>".encode()
        if "list-type" in query:
            return 200, self._page(path, query.get("prefix", [""])[0])
        found = self.objects.get(path)
        return (404, b"<Error><Code>NoSuchKey</Code></Error>") if found is None else (200, found)

    def _page(self, bucket: str, prefix: str) -> bytes:
        keys = sorted(name.removeprefix(f"{bucket}/") for name in self.objects)
        rows = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[f'{bucket}/{key}'])}</Size><ETag>x</ETag>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddServer

    def _do(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fresh = self.headers.get("If-None-Match") == "*"
        status, said = self.server.answer(self.command, unquote(parts.path), parse_qs(parts.query), body, fresh)
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header("ETag", hashlib.md5(said or body).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_HEAD = do_PUT = do_POST = _do  # noqa: N815  the names that BaseHTTPRequestHandler looks for

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def odd_server(**environment: str) -> Iterator[OddServer]:
    """Run a server while the block runs, with what leads to it in the environment, and ``environment``."""
    with OddServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        found = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        with mock.patch.dict("os.environ", {**found, "NO_PROXY": "127.0.0.1", **environment}):
            yield server
        server.shutdown()
