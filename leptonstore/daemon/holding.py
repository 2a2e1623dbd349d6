"""What readers hold on to: leases of versions, the plan of what they will read, and what they last told of themselves.

All of it is bounded and ends by itself: a lease that is not renewed for LEASE_IDLE_S is let go, the least used plan is forgotten first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leptonstore.daemon import bounds
from leptonstore.errors import TooBusy
from leptonstore.store import Store
from leptonstore.store.leases import Lease

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal


@dataclass
class _Held:
    principal: str
    commit: str
    lease: Lease
    renewed: float


class Leases:
    """Versions that clients hold against garbage collection. Any thread."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._guard = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()  # the one renewed longest ago first

    def __len__(self) -> int:
        return len(self._held)

    def take(self, principal: Principal, commit: str, id: str | None = None) -> str:
        """The id of a lease of `commit` (hex). id: one to renew; where it has ended, a new one is taken. Raises RefMissing, TooBusy."""
        self.expire()
        with self._guard:
            held = None if id is None else self._held.get(id)
            if held is not None and id is not None and (held.principal, held.commit) == (principal.id, commit):
                held.renewed = self._clock()
                self._held.move_to_end(id)
                return id
            if len(self._held) >= bounds.LEASES_MAX:
                raise TooBusy(f"{bounds.LEASES_MAX} leases are held already: try again later", 10.0)
            if len(self._held) >= bounds.LEASES_OF_ONE_MAX and self._of(principal) >= bounds.LEASES_OF_ONE_MAX:
                raise TooBusy(f"this credential holds {bounds.LEASES_OF_ONE_MAX} leases already: release some", 10.0)
        lease = self._store.lease(commit)
        made = secrets.token_hex(16)
        with self._guard:
            self._held[made] = _Held(principal.id, commit, lease, self._clock())
        return made

    def _of(self, principal: Principal) -> int:
        return sum(held.principal == principal.id for held in self._held.values())

    def release(self, principal: Principal, id: str) -> None:
        """Let go; one that has ended already is no error."""
        with self._guard:
            held = self._held.get(id)
            if held is None or held.principal != principal.id:
                return
            del self._held[id]
        held.lease.release()

    def expire(self) -> None:
        """Let go of what was not renewed in time."""
        before = self._clock() - bounds.LEASE_IDLE_S
        with self._guard:
            ended = []
            while self._held and next(iter(self._held.values())).renewed <= before:
                ended.append(self._held.popitem(last=False)[1])
        for held in ended:
            held.lease.release()

    def close(self) -> None:
        """Let go of all."""
        with self._guard:
            ended, self._held = list(self._held.values()), OrderedDict()
        for held in ended:
            held.lease.release()
