"""Loaders' plans: blocks that will be read soon are fetched before somebody waits for them.

    a plan (blocks in the order in which they will be read) -> those not here: own ones from the bucket, others by their owners
    -> as many as fit into AHEAD_SHARE of the cache and nobody has read yet -> the next ones as those are read

A plan ends with its reader: a new one takes its place, `gone` says so, or nothing was heard of it for PLAN_IDLE_S.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.sharing import Sharing
from leptonstore.daemon.cluster.wire import Part
from leptonstore.digest import Buffer
from leptonstore.errors import TierUnavailable

_LOOK_S = 1.0  # without news, how often the thread looks for readers that went


@dataclass
class _Plan:
    coming: deque[Key] = field(default_factory=deque)
    ahead: dict[Key, float] = field(default_factory=dict)  # begun when, and not read yet
    heard: float = field(default_factory=time.monotonic)


class Plans:
    """Any thread. One thread of its own fetches; it ends with `close`."""

    def __init__(self, sharing: Sharing, tell: Callable[[str, list[Part]], None], budget: int) -> None:
        """tell(address, parts): that member is to fetch them (Peers.ahead). budget: bytes of the block cache."""
        self._sharing, self._tell = sharing, tell
        self._ahead_max = max(2, int(budget * bounds.AHEAD_SHARE) // bounds.BLOCK_BYTES)
        self._changed = threading.Condition()
        self._plans: dict[str, _Plan] = {}
        self._closing = False
        self._thread: threading.Thread | None = None
        sharing.read_by_plan = self.read

    def set(self, reader: str, keys: Iterable[Key]) -> None:
        """What `reader` will read, in order; its former plan ends. Nothing: it reads no more."""
        with self._changed:
            self._plans.pop(reader, None)
        self.more(reader, keys)

    def more(self, reader: str, keys: Iterable[Key]) -> None:
        """What `reader` will read after what it told before. Beyond PLAN_BLOCKS_MAX it is forgotten: a plan is a hint."""
        distinct = dict.fromkeys(keys)
        if not distinct:
            return
        with self._changed:
            if self._closing:
                return
            plan = self._plans.get(reader)
            if plan is None:
                if len(self._plans) >= bounds.PLANS_MAX:
                    return
                plan = self._plans[reader] = _Plan()
            plan.heard = time.monotonic()
            for key in distinct:
                if len(plan.coming) >= bounds.PLAN_BLOCKS_MAX:
                    break
                plan.coming.append(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lepton-ahead", daemon=True)
                self._thread.start()
            self._changed.notify()

    def gone(self, reader: str) -> None:
        """It reads no more: what is under way arrives, nothing else is fetched for it."""
        with self._changed:
            self._plans.pop(reader, None)

    def read(self, key: Key) -> None:
        """Somebody reads this block."""
        if not self._plans:  # looked at without the lock: every read comes here
            return
        with self._changed:
            for plan in self._plans.values():
                if key in plan.ahead:
                    del plan.ahead[key]
                    plan.heard = time.monotonic()
                    self._changed.notify()

    @property
    def readers(self) -> int:
        """Plans that are followed."""
        return len(self._plans)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closing:
                    return
                taken = self._take()
                if not taken:
                    self._changed.wait(_LOOK_S)
                    continue
            self._fetch(taken)

    def _take(self) -> list[Key]:
        """Under the lock. The next blocks that may be begun: of each reader in turn, a stretch at a time."""
        now = time.monotonic()
        for reader in [name for name, plan in self._plans.items() if now - plan.heard > bounds.PLAN_IDLE_S]:
            del self._plans[reader]
        active = [plan for plan in self._plans.values() if plan.coming]
        share = max(1, self._ahead_max // len(active)) if active else 0
        taken: list[Key] = []
        for plan in active:
            if len(plan.ahead) >= share:  # its reader may have been faster, or have changed its mind
                old = now - bounds.AHEAD_S
                plan.ahead = {key: begun for key, begun in plan.ahead.items() if begun > old}
            begun = 0
            while plan.coming and begun < bounds.STRETCH_BLOCKS and len(plan.ahead) < share:
                key = plan.coming.popleft()
                if key not in plan.ahead and key not in self._sharing.blocks:
                    plan.ahead[key] = now
                    taken.append(key)
                    begun += 1
        return taken

    def _fetch(self, keys: list[Key]) -> None:
        sharing, others = self._sharing, defaultdict[str, list[Part]](list)
        own: list[Key] = []
        for key in dict.fromkeys(keys):
            if key in sharing.blocks:
                continue
            owner = sharing.members.ring.owner(*key)
            if owner is sharing.members.me:
                own.append(key)
            else:
                others[owner.address].append(Part(*key, 0, bounds.BLOCK_BYTES))
        for address, parts in others.items():
            with suppress(TierUnavailable):  # whoever reads them will find out, and ask elsewhere
                self._tell(address, parts)
        self._wait(sharing.flights.begin(own).values())

    def _wait(self, flying: Iterable[Future[Buffer]]) -> None:
        """Requests that somebody waits for come first: no more than these few are under way for plans."""
        for future in flying:
            with suppress(Exception):  # told to whoever reads it
                future.exception(bounds.PEER_REQUEST_S)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closing = True
            self._plans.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(2 * bounds.PEER_REQUEST_S)
