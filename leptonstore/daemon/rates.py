"""How much a client may ask for: buckets that fill with time, one for each principal and one for each address.

A bucket holds up to `burst` units and gains `per_s` of them each second. A request takes one unit of requests, and its bytes in and out
when they are known. Bytes may put a bucket into debt (the size of an answer is known when it has been made): who is in debt is refused
until time has paid it. So nothing that has begun is cut off, and over any time t a client gets at most burst + per_s * t units and the
last answer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from leptonstore.errors import BadInput, TooBusy

BUCKETS_MAX = (
    4_096  # clients that are remembered: 200 bytes each. The longest unseen is forgotten, which is as if it were new
)
RETRY_AFTER_S_MAX = 60.0  # nobody is told to wait longer; who comes earlier than the debt is paid is told again
RETRY_AFTER_S_MIN = 0.05


@dataclass(frozen=True)
class Rate:
    """`per_s` units a second in the long run, and up to `burst` of them at once. Raises BadInput unless both are positive."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.per_s < float("inf") and 0 < self.burst < float("inf")):
            raise BadInput(f"a rate of {self.per_s:g} a second with a burst of {self.burst:g}: both must be positive")


class Buckets:
    """A bucket for each key. Any thread; `clock` is that of time.monotonic."""

    def __init__(self, rate: Rate | None, clock: Callable[[], float] = time.monotonic, keys_max: int = BUCKETS_MAX):
        """rate: None takes any amount."""
        self._rate, self._clock, self._keys_max = rate, clock, keys_max
        self._guard = threading.Lock()
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> (units, when that was so)

    def wait_s(self, key: str) -> float:
        """Seconds until `key` may take something; 0: now. Takes nothing."""
        if self._rate is None:
            return 0.0
        with self._guard:
            level = self._level(key, self._clock())
        return 0.0 if level > 0 else -level / self._rate.per_s + RETRY_AFTER_S_MIN

    def take(self, key: str, units: float, debt: bool = False) -> float:
        """Take `units` of what `key` has. Returns 0, or the seconds to wait, and then nothing was taken.

        debt: take them in any case.
        """
        if self._rate is None or units <= 0:
            return 0.0
        with self._guard:
            now = self._clock()
            level = self._level(key, now)
            # More than the burst at once can never be there: then a full bucket does, and the rest is debt.
            if not debt and level < min(units, self._rate.burst):
                return (min(units, self._rate.burst) - level) / self._rate.per_s
            self._levels[key] = (level - units, now)
            self._levels.move_to_end(key)
            if len(self._levels) > self._keys_max:
                self._levels.popitem(last=False)
        return 0.0

    def _level(self, key: str, now: float) -> float:
        assert self._rate is not None
        level, since = self._levels.get(key, (self._rate.burst, now))
        return min(self._rate.burst, level + (now - since) * self._rate.per_s)

    def __len__(self) -> int:
        return len(self._levels)


@dataclass(frozen=True)
class RateLimits:
    """What one principal, and one address, may ask for; None: any amount.

    The defaults keep a client that has gone wild from starving others without being felt by one that works: one process here makes
    about 5,000 small requests a second. Bytes are not limited by default: to serve at the speed of the wire is what a daemon is for.
    """

    principal_requests: Rate | None = Rate(20_000, 40_000)
    principal_bytes: Rate | None = None
    address_requests: Rate | None = Rate(40_000, 80_000)
    address_bytes: Rate | None = None
    # Failed authentications of one address. A secret has 256 bits, so this is about noise and load, not about guessing.
    failures: Rate | None = Rate(1, 20)


class Rates:
    """The buckets of a daemon. Any thread."""

    def __init__(self, rate_limits: RateLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        asked = rate_limits or RateLimits()
        self._requests = (Buckets(asked.principal_requests, clock), Buckets(asked.address_requests, clock))
        self._bytes = (Buckets(asked.principal_bytes, clock), Buckets(asked.address_bytes, clock))
        self.failures = Buckets(asked.failures, clock)

    def charge(self, principal: str, address: str, what: str) -> None:
        """Take one request. Raises TooBusy, whose `retry_after_s` says when to come again; `what` names the request."""
        for key, requests, sent, whose in (
            (principal, self._requests[0], self._bytes[0], "this credential"),
            (address, self._requests[1], self._bytes[1], "this address"),
        ):
            wait = sent.wait_s(key)
            if wait:
                raise too_busy(f"{what}: {whose} has had more bytes than it may", wait)
            wait = requests.take(key, 1)
            if wait:
                raise too_busy(f"{what}: {whose} asks too often", wait)

    def spend(self, principal: str, address: str, count: int) -> None:
        """`count` bytes came in or went out. Never raises: the next request is refused."""
        self._bytes[0].take(principal, count, debt=True)
        self._bytes[1].take(address, count, debt=True)


def too_busy(message: str, wait_s: float) -> TooBusy:
    """A refusal that says when to come again."""
    wait = min(max(wait_s, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)
    return TooBusy(f"{message}; ask again in {wait:.2g} s", wait)
