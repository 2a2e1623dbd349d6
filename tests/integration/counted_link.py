"""A TCP proxy before a server, which counts what the server sends: by threads of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlparse


class Counted:
    """`endpoint` is what clients use; `sent`: bytes from the server to them, headers included."""

    def __init__(self, endpoint: str) -> None:
        target = urlparse(endpoint)
        self._target = (str(target.hostname), int(target.port or 80))
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, to: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 18):
                if counted:
                    with self._lock:
                        self.sent += len(data)
                to.sendall(data)
        for one in (source, to):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no new connection."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextmanager
def counted(endpoint: str) -> Iterator[Counted]:
    """Until the end of the `with`."""
    link = Counted(endpoint)
    try:
        yield link
    finally:
        link.close()
