"""A pace: at most so many bytes per second, on the average of the last moments."""

from __future__ import annotations

import time
from collections.abc import Callable

from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.work import Work


class Pace:
    """Lets a job wait after each step until its pace allows the next. One thread."""

    def __init__(self, work: Work, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        """bytes_per_s: 0 for as fast as it goes."""
        self._work, self._rate, self._clock = work, bytes_per_s, clock
        self._free_at = clock()  # when what was done so far is paid for

    def spend(self, count: int) -> None:
        """So many bytes were read or written: returns when more may be. Raises Stopped as soon as the job is to stop."""
        if not self._rate:
            self._work.go_on()
            return
        # What was not used before is lost, but for a little: a pause must not be followed by a flood.
        self._free_at = max(self._free_at, self._clock() - bounds.PACE_CREDIT_S) + count / self._rate
        self._work.wait(self._free_at - self._clock())
