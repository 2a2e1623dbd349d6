"""Objects of a bucket outside of the store, by range: see tiers/external.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.tiers.external import Stamp, Wanted
from leptonstore.tiers.object_client import Client
from leptonstore.tiers.ranges import Run, runs_of


class BucketObjects:
    """Objects below a prefix of a bucket."""

    def __init__(self, client: Client) -> None:
        self.url, self._client = client.url, client
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._lock = threading.Lock()

    def stamp(self, path: str) -> Stamp:
        """As ExternalReader."""
        entry = self._client.entry(path)
        return Stamp(entry.size, f"etag {entry.etag}" if entry.etag else f"modified {entry.modified.isoformat()}")

    def read_many(self, wanted: Sequence[Wanted]) -> Iterator[Buffer | OSError]:
        """As ExternalReader."""
        runs = [part for run in runs_of(wanted) for part in _parts(run, wanted)]
        pool = self._threads()
        begun = [pool.submit(self._client.get_range, run.pack, run.offset, run.end - run.offset) for run in runs]
        return _as_they_come(wanted, runs, begun)

    def _threads(self) -> ThreadPoolExecutor:
        if self._process != os.getpid():  # a child of a fork has no threads of its parent's
            self._lock, self._pool, self._process = threading.Lock(), None, os.getpid()
            self._client.after_fork()
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(limits.OBJECT_THREADS, "lepton-external")
            return self._pool


def _parts(run: Run, wanted: Sequence[Wanted]) -> Iterator[Run]:
    """A long run as several requests, so that they run at a time: each ends with a range, and has about a window's bytes."""
    part: Run | None = None
    for number in run.members:
        _, offset, length = wanted[number]
        if part is None or (offset >= part.end and offset + length - part.offset > limits.WINDOW_BYTES):
            if part is not None:
                yield part
            part = Run(run.pack, offset, offset + length)
        part.end = max(part.end, offset + length)
        part.members.append(number)
    if part is not None:
        yield part


def _as_they_come(
    wanted: Sequence[Wanted], runs: Sequence[Run], begun: list[Future[Buffer]]
) -> Iterator[Buffer | OSError]:
    run_of = {number: at for at, run in enumerate(runs) for number in run.members}
    left = [len(run.members) for run in runs]
    answers: list[Future[Buffer] | None] = [*begun]
    try:
        for number, (_, offset, length) in enumerate(wanted):
            at = run_of[number]
            answer = answers[at]
            assert answer is not None
            try:
                start = offset - runs[at].offset
                yield memoryview(answer.result())[start : start + length]
            except OSError as error:
                yield error
            left[at] -= 1
            if not left[at]:
                answers[at] = None  # its memory goes now
    finally:
        for answer in begun:
            answer.cancel()
