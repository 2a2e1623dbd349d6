"""When jobs begin by themselves: settings in the store's log, so that every daemon of the store goes by the same ones.

    setting "schedule/<kind>": {"every_hours": number, "idle": bool, "options": {...}}

A job is due when the last one of its kind (maintenance/<kind>, whichever daemon ran it) ended so long ago; with `idle`, it waits until the
daemon has nothing else to do. That clocks of hosts differ makes a job run sooner or later, never twice at once (alone.py), and one that
ended in the future, by this clock, is due.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from leptonstore.daemon.maintenance import bounds, record
from leptonstore.daemon.maintenance.kinds import kind_of
from leptonstore.daemon.memory import give_back
from leptonstore.errors import BadInput, Conflict, LeptonError, TooBusy
from leptonstore.store import Store

_log = logging.getLogger(__name__)
PREFIX = "schedule/"


@dataclass(frozen=True)
class Plan:
    """One kind's schedule. idle: only while the daemon has nothing else to do."""

    kind: str
    every_hours: float
    idle: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the setting says."""
        return {"every_hours": self.every_hours, "idle": self.idle, "options": dict(self.options)}


def plan_of(kind: str, value: object) -> Plan:
    """A schedule from what a setting, or a client, says. Raises BadInput."""
    found = kind_of(kind)
    if not isinstance(value, Mapping) or set(value) - {"every_hours", "idle", "options"}:
        raise BadInput(f"the schedule of {kind!r} must be an object of every_hours, idle and options")
    every, idle, options = value.get("every_hours"), value.get("idle", False), value.get("options", {})
    if isinstance(every, bool) or not isinstance(every, (int, float)):
        raise BadInput(f"the schedule of {kind!r} must say every_hours, a number")
    if not bounds.SCHEDULE_HOURS_MIN <= every <= bounds.SCHEDULE_HOURS_MAX:
        raise BadInput(
            f"every {every} hours: it must be from {bounds.SCHEDULE_HOURS_MIN:g} to {bounds.SCHEDULE_HOURS_MAX:g} hours"
        )
    if not isinstance(idle, bool) or not isinstance(options, Mapping):
        raise BadInput(f"in the schedule of {kind!r}, idle must be true or false, and options an object")
    found.checked(options)
    return Plan(kind, float(every), idle, dict(options))


def setting(plan: Plan) -> dict[str, Any]:
    """What a log entry says to make `plan` the schedule of its kind."""
    return {PREFIX + plan.kind: plan.to_json()}


def no_setting(kind: str) -> dict[str, Any]:
    """What a log entry says to take the schedule of a kind away."""
    return {PREFIX + kind_of(kind).name: None}


def plans(settings: Mapping[str, Any]) -> dict[str, Plan]:
    """Kind -> its schedule. One that a newer version wrote, and that means nothing here, is passed over with a line in the log."""
    found = {}
    for name, value in settings.items():
        if name.startswith(PREFIX):
            try:
                plan = plan_of(name.removeprefix(PREFIX), value)
            except BadInput as error:
                _log.warning("the setting %s is passed over: %s", name, error)
                continue
            found[plan.kind] = plan
    return found


def due_at(plan: Plan, last: Mapping[str, Any] | None, now: float) -> float:
    """When the next job of `plan` is due: seconds since 1970; `now` or earlier: it is."""
    ended = None if last is None else last.get("ended")
    if isinstance(ended, bool) or not isinstance(ended, (int, float)) or ended > now + bounds.CLOCK_SKEW_S:
        return now
    every = plan.every_hours * 3600
    return float(ended) + (min(every, bounds.RETRY_AFTER_S) if last and last.get("state") == "failed" else every)


class Schedule:
    """Starts what is due, in a thread of its own, which also gives back what the allocator keeps. `close` it before the jobs."""

    def __init__(
        self,
        store: Callable[[], Store],
        start: Callable[[str, Mapping[str, Any]], object],
        idle: Callable[[], bool],
        clock: Callable[[], float] = time.time,
        look_s: float = bounds.SCHEDULE_LOOK_S,
    ) -> None:
        """store: one that is up to date. start(kind, options) begins a job, or raises Conflict or TooBusy. clock: seconds since 1970."""
        self._store, self._start, self._idle, self._clock, self._look_s = store, start, idle, clock, look_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lepton-schedule", daemon=True)

    def begin(self) -> None:
        """Look for the first time, and again and again."""
        self._thread.start()

    def look(self) -> list[str]:
        """Start what is due: the kinds that were started. What cannot be started now is tried at the next look."""
        store, started = self._store(), []
        for plan in plans(store.state.settings).values():
            now = self._clock()
            if due_at(plan, record.read(store, plan.kind), now) > now or (plan.idle and not self._idle()):
                continue
            try:
                self._start(plan.kind, plan.options)
            except (Conflict, TooBusy):
                continue  # another daemon is at it, or too much is going on
            started.append(plan.kind)
        return started

    def _run(self) -> None:
        while not self._end.wait(self._look_s):
            try:
                self.look()
            except (LeptonError, OSError) as error:
                _log.warning("the schedule of maintenance could not be looked at: %s", error)
            except Exception:  # a bug here must not end all maintenance
                _log.exception("the schedule of maintenance failed")
            give_back()

    def close(self) -> None:
        """Start nothing any more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
