"""A daemon as the main thing of a process: signals, systemd, and what happens when a part of it ends.

    SIGTERM, SIGINT     drain: not ready -> no new requests -> those under way end -> stopped; exit code 0
    the same again      end at once; exit code 130. What was acknowledged is in the store, whatever ends the process
    SIGHUP              certificates and settings again, where they can change in a running daemon
    a part ends         the whole drains; exit code 1, and one line that names the part

Handlers only put a word into a queue (which Python's SimpleQueue allows inside a handler); the main thread does the work.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
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
    words: queue.SimpleQueue[str] = queue.SimpleQueue()
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if ending.is_set():
            os._exit(EXIT_AT_ONCE)
        ending.set()
        words.put("end")

    def again(number: int, frame: FrameType | None) -> None:
        words.put("reload")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, again)
    try:
        daemon.start(lambda: words.put("failed"))
        settle()
        systemd.notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=serving {daemon.settings.name}")
        on_ready()
        _serve(words, reload)
        systemd.notify("STOPPING=1", "STATUS=draining")
        ending.set()  # from now on a signal means: at once
        daemon.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = 1 if daemon.failure else 0
    if (
        daemon.stuck
    ):  # a thread of gRPC's is inside Python still: the end of the interpreter would wait for it, or crash
        logging.shutdown()
        os._exit(code)
    return code


def _serve(words: queue.SimpleQueue[str], reload: Callable[[], None]) -> None:
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
