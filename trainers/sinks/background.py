"""A sink that cannot hold a training up, nor end it.

    loop --put, never waits--> queue, QUEUE_MAX long --> one thread --> the sink

A server that answers slowly fills the queue, and what finds it full is left out (and counted). The first error of the
sink is its last call. Both are told by one warning, from the thread of the loop.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from leptonstore.errors import LeptonWarning
from trainers.sinks.sink import Sink

QUEUE_MAX = 10_000  # calls that wait, some hundred bytes each: an hour of them at three a second
END_S = 30.0  # how long a run that has ended waits for what is still queued


class BackgroundSink:
    """`sink`, called by a thread of its own. Its own methods return at once and raise nothing; `end` waits, END_S at most."""

    def __init__(self, sink: Sink, end_s: float = END_S) -> None:
        self._sink, self._end_s = sink, end_s
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE_MAX)
        self._error: Exception | None = None
        self._told = False
        self.left_out = 0
        self._thread = threading.Thread(target=self._run, name=f"lepton-{sink.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """What warnings call it."""
        return self._sink.name

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        """As Sink."""
        self._put(lambda: self._sink.begin(run, facts, step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Sink."""
        self._put(lambda: self._sink.scalars(step, values))

    def end(self, status: str) -> None:
        """As Sink; later calls do nothing."""
        self._put(lambda: self._sink.end(status))
        try:
            self._calls.put(None, timeout=self._end_s)
            self._thread.join(self._end_s)
        except queue.Full:
            pass
        self._tell()
        if self._thread.is_alive():
            self._warn(f"{self.name} did not take the last values within {self._end_s:g} s; the run's own log has them")
        elif self.left_out and self._error is None:
            self._warn(f"{self.name} was too slow: {self.left_out:,} values were left out; the run's own log has them")

    def _put(self, call: Callable[[], None]) -> None:
        if self._error is not None:
            self._tell()
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.left_out += 1

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is None:
                try:
                    call()
                except Exception as error:  # whatever a foreign library raises
                    self._error = error

    def _tell(self) -> None:
        if self._error is not None and not self._told:
            self._told = True
            why = " ".join(str(self._error).split())[:300] or type(self._error).__name__
            self._warn(f"{self.name} gets no more values: {why}; the training goes on, and its own log has them")

    def _warn(self, message: str) -> None:
        warnings.warn(message, LeptonWarning, stacklevel=4)
