"""The jobs of a daemon: started, listed and stopped; at most one of a kind at a time, among all daemons of a store.

Each runs in a thread, on a Store object of its own, so that nobody who reads or writes waits for its lock, and its failure touches
nobody. What a kind does stands in maintenance/kinds.py.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from leptonstore.daemon.maintenance import alone, bounds, record
from leptonstore.daemon.maintenance.kinds import KINDS, kind_of
from leptonstore.daemon.maintenance.schedule import Schedule, due_at, plans
from leptonstore.daemon.maintenance.work import Kind, Progress, Work
from leptonstore.daemon.memory import give_back
from leptonstore.errors import Conflict, LeptonError, NotFound, Stopped, TooBusy
from leptonstore.store import Store
from leptonstore.store.wire.errors import known_class
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

    result: what its kind tells of it when it is done, else empty. error: a line, when it failed; error_class: the name of its class in
    leptonstore.errors ("LeptonError" for a bug).
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
    error_class: str = ""
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
        self.error = self.error_class = ""
        self.result: dict[str, Any] = {}
        self.over = threading.Event()

    def finish(self, state: JobState, error: LeptonError | None, result: dict[str, Any], ended: float) -> None:
        if error is not None:
            self.error, self.error_class = str(error), known_class(error).__name__
        self.result = result
        self.state, self.ended = state, ended

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
            self.error_class,
            self.result,
        )


class Jobs:
    """The jobs of one daemon. Any thread. `close` it before the process ends."""

    def __init__(self, open_store: Callable[[], Store], clock: Callable[[], float] = time.time) -> None:
        """open_store: makes a Store object of the daemon's store, which the job closes. clock: seconds since 1970, for people."""
        self._open, self._clock = open_store, clock
        self._schedule: Schedule | None = None
        self._opening = threading.Lock()
        self._reader: Store | None = None
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

    def begin_schedule(self, idle: Callable[[], bool], look_s: float = bounds.SCHEDULE_LOOK_S) -> None:
        """From now on, start what the store's schedule says (maintenance/schedule.py). idle: whether the daemon has nothing else to do."""
        self._schedule = Schedule(
            self._looked_at, lambda kind, options: self.start(kind, options, "schedule"), idle, self._clock, look_s
        )
        self._schedule.begin()

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
        try:
            with store:
                running.finish(*self._outcome(running, store), self._clock())
                # Before the lock goes: who takes it then knows that this one has been.
                record.write(store, running.kind.name, {**running.shown().to_json(), "host": socket.gethostname()})
                lock.release()
        finally:
            give_back()
            running.over.set()

    def _outcome(self, running: _Running, store: Store) -> tuple[JobState, LeptonError | None, dict[str, Any]]:
        try:
            return JobState.DONE, None, running.kind.run(store, running.work)
        except Stopped:
            return JobState.STOPPED, None, {}
        except LeptonError as error:
            return JobState.FAILED, error, {}
        except BaseException:  # of a thread nobody would be told
            incident = secrets.token_hex(4)
            _log.exception("job %s (%s) failed: internal error %s", running.id, running.kind.name, incident)
            return JobState.FAILED, LeptonError(f"internal error {incident}: the daemon's log tells more"), {}

    def list(self) -> Sequence[Job]:
        """Those that run and the last ones that ended, the newest first."""
        with self._lock:
            found = list(self._jobs.values())
        return [job.shown() for job in reversed(found)]

    def kinds(self) -> Sequence[dict[str, Any]]:
        """Every kind: name, what it does, its options with their defaults, its `schedule` (None: none), when it is `due`, and the `last`
        job of any daemon of the store (None: not known), as Job.to_json and `host`."""
        store = self._looked_at()
        scheduled, now = plans(store.state.settings), self._clock()
        found = []
        for kind in KINDS.values():
            last, plan = record.read(store, kind.name), scheduled.get(kind.name)
            told = {
                "name": kind.name,
                "what": kind.what,
                "options": {name: {"default": one.default, "what": one.what} for name, one in kind.options.items()},
                "schedule": None if plan is None else plan.to_json(),
                "due": None if plan is None else due_at(plan, last, now),
                "last": last,
            }
            found.append(told)
        return found

    def _looked_at(self) -> Store:
        """A Store object for what is only looked up; up to date."""
        with self._lock:
            if self._closed:
                raise TooBusy("the daemon is about to end")
        with self._opening:
            if self._reader is None:
                self._reader = self._open()
        self._reader.refresh()
        return self._reader

    def elsewhere(self) -> Sequence[dict[str, Any]]:
        """What other daemons of the store are at: kind, job, by, host, began. They are stopped where they run."""
        with self._lock:
            mine = set(self._jobs)
        found = alone.at_work(self._looked_at()).values()
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
        if self._schedule is not None:
            self._schedule.close()
        with self._lock:
            self._closed = True
            running = [job for job in self._jobs.values() if job.ended is None]
        for job in running:
            job.work.stop()
        end = time.monotonic() + timeout_s
        ended = all(job.over.wait(max(0.0, end - time.monotonic())) for job in running)
        with self._opening:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        return ended
