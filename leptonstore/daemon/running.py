"""A daemon as the main thing of a process: signals, systemd, and what happens when a part of it ends.

    SIGTERM, SIGINT     drain: not ready -> no new requests -> those under way end -> stopped; exit code 0
    the same again      end at once; exit code 130. What was acknowledged is in the store, whatever ends the process
    SIGHUP              certificates and settings again, where they can change in a running daemon
    a part ends         the whole drains; exit code 1, and one line that names the part

Handlers only put a word into a queue (which Python's SimpleQueue allows inside a handler); the main thread does the work. It waits for a
byte in a socket, which a signal leaves there whenever and in whatever thread it arrives (signal.set_wakeup_fd). A wait for the queue itself
begins without looking: a signal that came just before, while the main thread let another have the interpreter, was seen with the next one.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

from leptonstore.daemon import systemd
from leptonstore.daemon.daemon import Daemon
from leptonstore.daemon.memory import bound_arenas, settle
from leptonstore.errors import LeptonError

EXIT_AT_ONCE = 130

log = logging.getLogger("lepton.daemon")


def run(daemon: Daemon, on_ready: Callable[[], None], reload: Callable[[], None]) -> int:
    """Start `daemon`, serve until a signal or a failure, and drain. Returns the exit code. Main thread only.

    on_ready: called once, when requests are answered. reload: what SIGHUP does. Raises what `Daemon.start` does.
    """
    bound_arenas()
    words = _Words()
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ending.is_set():
            os._exit(EXIT_AT_ONCE)
        ending.set()
        words.put("end")

    def again(number: int, frame: FrameType | None) -> None:
        words.put("reload")

    handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: again}
    with words.told_by(handlers):
        daemon.start(lambda: words.put("failed"))
        settle()
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=serving {daemon.settings.name}")
        on_ready()
        _serve(words, reload)
        systemd.notify("STOPPING=1", "STATUS=draining")
        ending.set()  # from now on a signal means: at once
        daemon.stop()
    code = 1 if daemon.failure else 0
    if (
        daemon.stuck
    ):  # a thread of gRPC's is inside Python still: the end of the interpreter would wait for it, or crash
        logging.shutdown()
        os._exit(code)
    return code


class _Words:
    """What the main thread waits for. `put`: any thread, and handlers of signals; `get`: the main thread."""

    def __init__(self) -> None:
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._awaited, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def put(self, word: str) -> None:
        self._words.put(word)
        with suppress(OSError):  # full: the main thread wakes anyway; closed: it has ended
            self._waker.send(b"\0")

    def get(self, timeout: float | None) -> str:
        """The next word. Raises queue.Empty after `timeout` seconds."""
        while self._words.empty():
            self._awaited.settimeout(timeout)
            try:
                self._awaited.recv(4096)
            except TimeoutError:
                raise queue.Empty from None
        return self._words.get()

    @contextmanager
    def told_by(self, handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
        """Inside, these handlers answer, and a signal ends a wait. After it nothing does."""
        fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd)
            self._awaited.close()
            self._waker.close()


def _serve(words: _Words, reload: Callable[[], None]) -> None:
    patience = systemd.watchdog_s()
    while True:
        try:
            word = words.get(timeout=patience)
        except queue.Empty:
            systemd.notify("WATCHDOG=1")
            continue
        if word in ("end", "failed"):
            return
        systemd.notify_reloading()
        try:
            reload()
        except LeptonError as error:  # a bad file must not take down what runs
            log.error("not reloaded: %s", error)
        except Exception:
            log.exception("not reloaded")
        systemd.notify("READY=1")
