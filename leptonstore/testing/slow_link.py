"""A TCP proxy that makes a link longer: what clients send arrives later by a fixed time, what they are answered does not.

    with slow_link("http://127.0.0.1:8333", delay_s=0.05) as endpoint:
        ...                                                     # 50 ms more a request, on each connection

A process of its own (threads of the client's would wait for its interpreter), and bytes are moved by splice(2), in the kernel, so that
it takes next to nothing from what is measured through it. Linux. For tests and benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlparse

PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # Linux, <fcntl.h>; in Python from 3.10 on, not on every build


@contextlib.contextmanager
def slow_link(endpoint: str, delay_s: float) -> Iterator[str]:
    """The endpoint of a proxy before `endpoint` (http://HOST:PORT), until the end of the `with`."""
    target = urlparse(endpoint)
    command = [sys.executable, "-m", __spec__.name, str(target.hostname), str(target.port), str(delay_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()  # it ends with whoever started it, however that ends
        process.wait(30)
        process.stdout.close()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("delay_s", type=float)
    given = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    threading.Thread(target=_accept, args=(listening, (given.host, given.port), given.delay_s), daemon=True).start()
    sys.stdin.read()


def _accept(listening: socket.socket, target: tuple[str, int], delay_s: float) -> None:
    while True:
        client, _ = listening.accept()
        threading.Thread(target=_serve, args=(client, target, delay_s), daemon=True).start()


def _serve(client: socket.socket, target: tuple[str, int], delay_s: float) -> None:
    """One connection."""
    with client, contextlib.suppress(OSError), socket.create_connection(target) as server:
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_splice, args=(server, client), daemon=True)
        back.start()
        _delayed(client, server, delay_s)
        back.join()


def _delayed(source: socket.socket, to: socket.socket, delay_s: float) -> None:
    """Pass on what arrives, each piece `delay_s` after it arrived, however many are under way."""
    arrived: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=64)

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = arrived.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    to.shutdown(socket.SHUT_WR)
                    return
                to.sendall(data)

    threading.Thread(target=send, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := source.recv(PIPE_BYTES):
            arrived.put((time.monotonic() + delay_s, data))
    arrived.put((time.monotonic() + delay_s, b""))


def _splice(source: socket.socket, to: socket.socket) -> None:
    read, write = os.pipe()
    try:
        with contextlib.suppress(OSError):
            fcntl.fcntl(write, F_SETPIPE_SZ, PIPE_BYTES)
        with contextlib.suppress(OSError):
            while moved := os.splice(source.fileno(), write, PIPE_BYTES):
                while moved:
                    moved -= os.splice(read, to.fileno(), moved)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)
    finally:
        os.close(read)
        os.close(write)


if __name__ == "__main__":
    _main()
