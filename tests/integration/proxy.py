"""An HTTP proxy in front of a real S3 server that does what networks and servers do: delays, errors, lost answers, cut bodies.

    with Proxy(server.endpoint) as proxy:
        proxy.fault = lambda method, path, number: "lost" if method == "PUT" and number == 3 else ""

Faults: "lost" (the server has done it, the answer never arrives), "503", "drop" (the connection ends before the server hears of it), "cut"
(half of the body, then the end). The host's name is passed on, so that signatures stay valid.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlparse

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def _serve(self) -> None:
        with self.proxy.counting():
            self._forward()

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.proxy
        fault = proxy.fault(self.command, self.path, next(proxy.numbers))
        proxy.done[fault] += 1
        if proxy.delay_s:
            threading.Event().wait(proxy.delay_s)
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "503":
            self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        upstream = http.client.HTTPConnection(proxy.host, proxy.port, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body or None)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault == "lost":
            self.close_connection = True
            return
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        length = int(answer.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
        self._answer(answer.status, headers, data[: len(data) // 2] if fault == "cut" else data, length)
        self.close_connection = self.close_connection or fault == "cut"

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve


class Proxy:
    """Serves until the end of its `with`; `done` counts the requests by fault."""

    def __init__(self, endpoint: str, delay_s: float = 0.0) -> None:
        parsed = urlparse(endpoint)
        self.host, self.port, self.delay_s = parsed.hostname or "", parsed.port or 80, delay_s
        self.fault: Callable[[str, str, int], str] = lambda method, path, number: ""
        self.numbers, self.done = itertools.count(1), Counter[str]()
        self._lock, self._now, self.most_at_once = threading.Lock(), 0, 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around each request."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def __enter__(self) -> Proxy:
        handler = type("Handler", (_Handler,), {"proxy": self})

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients may go when they like."""

        self._server = Server(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(OSError):
            self._server.shutdown()
        self._thread.join(60)
        self._server.server_close()
