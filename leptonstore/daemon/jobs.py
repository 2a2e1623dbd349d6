"""The jobs of a daemon: started, listed and stopped; at most one of a kind at a time, among all daemons of a store.

Each runs in a thread, on a Store object of its own, so that nobody who reads or writes waits for its lock, and its failure touches
nobody. What a kind does stands in maintenance/kinds.py.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from leptonstore.daemon.maintenance import alone, bounds
from leptonstore.daemon.maintenance.kinds import kind_of
from leptonstore.daemon.maintenance.work import Kind, Progress, Work
from leptonstore.errors import Conflict, LeptonError, NotFound, Stopped, TooBusy
from leptonstore.store import Store
from leptonstore.tiers.roles import HeldLock

_log = logging.getLogger(__name__)


class JobState(StrEnum):
    """What became of a job."""

    RUNNING = "running"
    STOPPING = "stopping"  # told to stop, and still at its last step
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """A job as it was when it was asked for. Times are seconds since 1970; `ended` is None while it runs.

    result: what its kind tells of it when it is done, else empty. error: a line, when it failed.
    """

    id: str
    kind: str
    options: Mapping[str, Any]
    by: str
    began: float
    state: JobState
    ended: float | None = None
    progress: Progress = field(default_factory=Progress)
    note: str = ""
    error: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For answers."""
        return {**vars(self), "state": self.state.value, "progress": self.progress._asdict()}


class _Running:
    """A job with what it needs to run, and what is left of it afterwards."""

    def __init__(self, kind: Kind, options: dict[str, Any], by: str, began: float) -> None:
        self.id = secrets.token_hex(8)
        self.kind, self.by, self.began = kind, by, began
        self.work = Work(options)
        self.state = JobState.RUNNING
        self.ended: float | None = None
        self.error = ""
        self.result: dict[str, Any] = {}
        self.over = threading.Event()

    def shown(self) -> Job:
        work = self.work
        state = JobState.STOPPING if self.ended is None and work.stopping else self.state
        return Job(
            self.id,
            self.kind.name,
            work.options,
            self.by,
            self.began,
            state,
            self.ended,
            work.progress,
            work.note,
            self.error,
            self.result,
        )


class Jobs:
    """The jobs of one daemon. Any thread. `close` it before the process ends."""

    def __init__(self, open_store: Callable[[], Store], clock: Callable[[], float] = time.time) -> None:
        """open_store: makes a Store object of the daemon's store, which the job closes. clock: seconds since 1970, for people."""
        self._open, self._clock = open_store, clock
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Running] = OrderedDict()  # in the order in which they began
        self._closed = False

    def start(self, kind: str, options: Mapping[str, Any] | None = None, by: str = "") -> Job:
        """Begin a job, and return at once. `by`: who wants it, for people.

        Raises BadInput (no such kind or option), Conflict (one of that kind is at work, here or at another daemon of the store), TooBusy
        (too many jobs, or the daemon is about to end), and what opening the store raises.
        """
        found = kind_of(kind)
        running = _Running(found, found.checked(options or {}), by, self._clock())
        with self._lock:
            self._admit(running)
        store = lock = None
        try:
            store = self._open()
            lock = alone.hold(store, found.name, running.id, by, running.began)
            thread = threading.Thread(
                target=self._run, args=(running, store, lock), name=f"lepton-job-{found.name}", daemon=True
            )
            thread.start()
        except BaseException:
            with self._lock:
                del self._jobs[running.id]
            running.over.set()
            if lock is not None:
                lock.release()
            if store is not None:
                store.close()
            raise
        return running.shown()

    def _admit(self, running: _Running) -> None:
        """Under the lock: note it as running, if it may."""
        if self._closed:
            raise TooBusy("the daemon is about to end: no job is started")
        at_work = [job for job in self._jobs.values() if job.ended is None]
        for job in at_work:
            if job.kind is running.kind:
                raise Conflict(
                    f"a job of kind {job.kind.name!r} is at work already (of {job.by}): let it end, or stop it"
                )
        if len(at_work) >= bounds.JOBS_AT_A_TIME_MAX:
            raise TooBusy(f"{len(at_work)} jobs are at work, which is the most: let one end, or stop one", 60.0)
        ended = [job.id for job in self._jobs.values() if job.ended is not None]
        for id in ended[: max(0, len(ended) - bounds.JOBS_KEPT)]:
            del self._jobs[id]
        self._jobs[running.id] = running

    def _run(self, running: _Running, store: Store, lock: HeldLock) -> None:
        state = JobState.FAILED
        try:
            try:
                running.result = running.kind.run(store, running.work)
                state = JobState.DONE
            finally:
                lock.release()
                store.close()
        except Stopped:
            state = JobState.STOPPED
        except LeptonError as error:
            running.error = str(error)
        except BaseException:  # of a thread nobody would be told
            incident = secrets.token_hex(4)
            _log.exception("job %s (%s) failed: internal error %s", running.id, running.kind.name, incident)
            running.error = f"internal error {incident}: the daemon's log tells more"
        running.state, running.ended = state, self._clock()
        running.over.set()

    def list(self) -> Sequence[Job]:
        """Those that run and the last ones that ended, the newest first."""
        with self._lock:
            found = list(self._jobs.values())
        return [job.shown() for job in reversed(found)]

    def elsewhere(self) -> Sequence[dict[str, Any]]:
        """What other daemons of the store are at: kind, job, by, host, began. They are stopped where they run."""
        with self._lock:
            mine = set(self._jobs)
        with self._open() as store:
            found = alone.at_work(store).values()
        return [
            {key: other.get(key) for key in ("kind", "job", "by", "host", "began")}
            for other in found
            if other["job"] not in mine
        ]

    def get(self, id: str) -> Job:
        """One of them. Raises NotFound."""
        return self._find(id).shown()

    def _find(self, id: str) -> _Running:
        with self._lock:
            job = self._jobs.get(id)
        if job is None:
            raise NotFound(f"there is no job {str(id)[:80]!r} here; `jobs` lists those that there are")
        return job

    def stop(self, id: str) -> Job:
        """Let it stop at its next step, and return at once; of one that has ended, nothing happens. Raises NotFound."""
        job = self._find(id)
        job.work.stop()
        return job.shown()

    def wait(self, id: str, timeout_s: float | None = None) -> Job:
        """Until it has ended, or so long. Raises NotFound."""
        job = self._find(id)
        job.over.wait(timeout_s)
        return job.shown()

    def close(self, timeout_s: float = 30.0) -> bool:
        """Start none any more, stop those that run, and wait for them: whether all have ended."""
        with self._lock:
            self._closed = True
            running = [job for job in self._jobs.values() if job.ended is None]
        for job in running:
            job.work.stop()
        end = time.monotonic() + timeout_s
        return all(job.over.wait(max(0.0, end - time.monotonic())) for job in running)
