"""The proxy that benchmarks measure a long link with: bytes arrive as they were sent, and no request before its time."""

from __future__ import annotations

import http.client
import http.server
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlparse

import pytest

from leptonstore.testing.slow_link import slow_link

DELAY_S = 0.03


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with slow_link(f"http://127.0.0.1:{server.server_address[1]}", DELAY_S) as through:
        yield through
    server.shutdown()
    thread.join()
    server.server_close()


def test_bodies_of_any_size_come_back_and_every_request_takes_its_time(endpoint: str) -> None:
    def talk(seed: int) -> None:
        rng = random.Random(seed)
        connection = http.client.HTTPConnection(urlparse(endpoint).netloc)
        for size in (0, 1, 100, 70_000, 3_000_000):
            data, begin = rng.randbytes(size), time.monotonic()
            connection.request("PUT", "/", data)
            assert connection.getresponse().read() == data
            assert time.monotonic() - begin >= DELAY_S
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(talk, range(4)))


def test_an_endpoint_where_nobody_listens_closes_the_connection() -> None:
    with slow_link("http://127.0.0.1:1", 0.0) as through:
        connection = http.client.HTTPConnection(urlparse(through).netloc)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            connection.request("GET", "/")
            connection.getresponse()
        connection.close()
