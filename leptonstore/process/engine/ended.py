"""Runs that have ended while tasks of theirs are still at work in this process: these stop, and are waited for.

Daft gives a failed or interrupted plan up, but not the Python that its threads are in. That would go on reading and storing for nobody;
and a thread that is in Python when the interpreter ends takes the whole process down ("FATAL: exception not rethrown", signal 6).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from leptonstore.errors import Stopped

_changed = threading.Condition()
_ended: set[str] = set()  # names of runs of this process: 32 characters each
_working: Counter[str] = Counter()
_thread = threading.local()


@contextmanager
def working(run: str) -> Iterator[None]:
    """Inside, this thread works for a run. Raises Stopped when that has ended."""
    with _changed:
        if run in _ended:
            raise Stopped("the run has ended")
        _working[run] += 1
    before, _thread.run = getattr(_thread, "run", None), run
    try:
        yield
    finally:
        _thread.run = before
        with _changed:
            _working[run] -= 1
            if not _working[run]:
                del _working[run]
            _changed.notify_all()


def check_running() -> None:
    """Between two parts of a task. Raises Stopped when the run that this thread works for has ended."""
    if getattr(_thread, "run", None) in _ended:
        raise Stopped("the run has ended")


def end(run: str) -> None:
    """No task of the run begins from now on; returns when none is at work."""
    with _changed:
        _ended.add(run)
        _changed.wait_for(lambda: run not in _working)
