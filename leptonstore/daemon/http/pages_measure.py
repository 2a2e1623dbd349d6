"""Figures that cost a walk of the store: measured by one thread beside the pages, and kept.

No page waits for them. All bytes (store/usage.py) are measured again when the log has moved, but at most once in USAGE_EVERY_S and at most
a twentieth of the time; a version's columns (dataset/stats.py) are measured once, for a version never changes.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.dataset import Dataset, DatasetStats
from leptonstore.dataset.graph import read_commit
from leptonstore.dataset.refs import list_refs
from leptonstore.errors import LeptonError
from leptonstore.format.commit import KINDS
from leptonstore.store import Store
from leptonstore.store.usage import Usage, measure

_log = logging.getLogger("lepton.daemon")


@dataclass(frozen=True)
class Measured:
    """All bytes, as they were at a sequence of the log, and when."""

    usage: Usage
    sequence: int
    time_s: float


class Measures:
    """Of one store. Any thread; a thread of its own measures, from the first question on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._asked: queue.Queue[tuple[str, Dataset | None] | None] = queue.Queue(bounds.STATS_WAITING_MAX)
        self._under_way: set[str] = set()
        self._done = threading.Condition()
        self._thread: threading.Thread | None = None
        self._usage: Measured | None = None
        self._next = 0.0
        self._stats: OrderedDict[str, DatasetStats | None] = OrderedDict()
        self._closed = False

    def usage(self) -> Measured | None:
        """The last measurement; a newer one is begun when it is due. None before the first, and where there is too much to measure."""
        found = self._usage
        if (found is None or found.sequence != self._store.state.sequence) and time.monotonic() >= self._next:
            self._ask("", None)
        return found

    def stats(self, ds: Dataset) -> DatasetStats | None:
        """Of a version, once they are measured; None before (a small one is waited for), and of one that is too large or damaged."""
        for wait_s in (bounds.STATS_WAIT_S, 0.0):
            with self._lock:
                if ds.commit in self._stats:
                    self._stats.move_to_end(ds.commit)
                    return self._stats[ds.commit]
            if len(ds) > bounds.STATS_ROWS_MAX or not wait_s:
                break
            self._ask(ds.commit, ds)
            with self._done:
                self._done.wait_for(lambda: ds.commit not in self._under_way, wait_s)
        return None

    def measuring(self, commit: str = "") -> bool:
        """Whether the figures of a version (or of the store) are on their way."""
        return commit in self._under_way

    def close(self) -> None:
        """No more is measured; what is being measured is not waited for."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(queue.Full):
            self._asked.put_nowait(None)

    def _ask(self, key: str, ds: Dataset | None) -> None:
        with self._lock:
            if key in self._under_way or self._closed:
                return
            try:
                self._asked.put_nowait((key, ds))
            except queue.Full:  # whoever looks again asks again
                return
            self._under_way.add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lepton-dashboard", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed and (asked := self._asked.get()) is not None:
            key, ds = asked
            try:
                self._measure(key, ds)
            except LeptonError as error:
                _log.warning("figures of the dashboard could not be measured: %s", error)
                self._keep(key, None)
            except Exception:
                _log.exception("figures of the dashboard could not be measured")
                self._keep(key, None)
            finally:
                with self._done:
                    self._under_way.discard(key)
                    self._done.notify_all()

    def _measure(self, key: str, ds: Dataset | None) -> None:
        if ds is not None:
            self._keep(key, ds.stats())
            return
        began = time.monotonic()
        if self._rows() <= bounds.USAGE_ROWS_MAX:
            sequence = self._store.state.sequence
            self._usage = Measured(measure(self._store), sequence, time.time())
        self._next = time.monotonic() + max(bounds.USAGE_EVERY_S, 20 * (time.monotonic() - began))

    def _keep(self, key: str, stats: DatasetStats | None) -> None:
        if not key:
            self._next = time.monotonic() + bounds.USAGE_EVERY_S
            return
        with self._lock:
            self._stats[key] = stats
            while len(self._stats) > bounds.STATS_KEPT:
                self._stats.popitem(last=False)

    def _rows(self) -> int:
        """Of the heads of all refs: what a measurement walks, about."""
        heads = {ref.commit for kind in KINDS for ref in list_refs(self._store, kind)}
        return sum(read_commit(self._store, head).rows for head in heads)
