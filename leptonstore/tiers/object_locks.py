"""Documents of live processes on an object store, where nothing is locked: their makers renew them, and the server's clock judges.

    maker    PUT writers/<id>, and again every LOCK_RENEW_S (one thread for all locks of a tier, started by the first)
    reader   PUT clock/<id>: its modification time is "now" on the server; a document that is LOCK_DEAD_S older has a dead maker

No clock of ours is asked for a time of day: this host's may be wrong. A maker that could not reach the server for LOCK_DEAD_S is taken
for dead, and its document is made again when it can: what it protected may be gone by then, which a store survives (a fence tells).
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from datetime import datetime

from leptonstore import limits
from leptonstore.errors import FormatDamaged, LeptonError
from leptonstore.tiers.object_client import Client, Entry

CLOCK = "clock"


class ObjectLock:
    """A HeldLock. Any thread."""

    def __init__(self, keeper: Keeper, folder: str, data: bytes) -> None:
        self.name = secrets.token_hex(16)
        self._path = f"{folder}/{self.name}"
        self._keeper, self._data, self._dirty, self._held = keeper, data, False, True
        self._lock = threading.Lock()  # held during requests: a late renewal must not bring back what was released
        keeper.client.put(self._path, data)
        keeper.add(self)

    def append(self, data: bytes) -> None:
        """Add to the document, soon: several additions are written together, and before the next pack is sealed."""
        self._data += data
        self._dirty = True
        self._keeper.wake()

    def renew(self, only_dirty: bool = False) -> None:
        """Write the document again. Errors are left to the next time."""
        with self._lock:
            if not self._held or (only_dirty and not self._dirty):
                return
            self._dirty = False
            try:
                self._keeper.client.put(self._path, self._data)
            except (LeptonError, OSError):
                self._dirty = True

    def release(self) -> None:
        """Take the document away."""
        with self._lock:
            if not self._held:
                return
            self._held = False
            self._keeper.drop(self)
            try:
                self._keeper.client.delete(self._path)
            except (LeptonError, OSError):
                return  # nobody renews it: it ends by itself

    def forget(self) -> None:
        """Renew it no more and leave it: in a child process, whose parent holds it."""
        self._held = False
        self._keeper.forget(self)


class Keeper:
    """Renews the locks of one tier. Any thread."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.after_fork()

    def after_fork(self) -> None:
        """In a child process: what the parent holds is the parent's."""
        self._guard = threading.Lock()
        self._locks: set[ObjectLock] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, folder: str, data: bytes) -> ObjectLock:
        """See LockHome.hold_lock."""
        return ObjectLock(self, folder, data)

    def add(self, lock: ObjectLock) -> None:
        """Renew it from now on."""
        with self._guard:
            self._locks.add(lock)
            if self._thread is None:
                arguments = (weakref.ref(self), self._wake)
                self._thread = threading.Thread(target=_keep, args=arguments, name="lepton-locks", daemon=True)
                self._thread.start()

    def drop(self, lock: ObjectLock) -> None:
        """Renew it no more."""
        with self._guard:
            self._locks.discard(lock)

    def forget(self, lock: ObjectLock) -> None:
        """As `drop`, in a child process, where another thread of the parent may have held `_guard`."""
        self._locks.discard(lock)

    def wake(self) -> None:
        """Something was added to a lock."""
        self._wake.set()

    def renew_all(self, only_dirty: bool = False) -> None:
        """Write the locks again, or those of which the server has not got everything."""
        with self._guard:
            locks = list(self._locks)
        for lock in locks:
            lock.renew(only_dirty)

    # -- judging -------------------------------------------------------------------------------------------------

    def server_time(self) -> datetime:
        """What the server's clock says now."""
        path = f"{CLOCK}/{secrets.token_hex(16)}"
        self.client.put(path, b"")
        try:
            return self.client.entry(path).modified
        finally:
            self.client.delete(path)

    def live(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """See LockHome.live_locks."""
        entries, _ = self.client.list_folder(folder)
        if not entries:
            return {}
        now, found = self.server_time(), {}
        for entry in entries:
            if is_dead(entry, now):
                self.client.delete(entry.path)
                continue
            if entry.size > bytes_max:
                raise FormatDamaged(f"{self.client.url}/{entry.path} has more than {bytes_max} bytes")
            try:
                found[entry.path.rpartition("/")[2]] = self.client.get(entry.path)
            except FileNotFoundError:
                continue  # released meanwhile
        return found


def is_dead(entry: Entry, now: datetime) -> bool:
    """Whether nobody renewed it for too long, both times being the server's."""
    return (now - entry.modified).total_seconds() > limits.LOCK_DEAD_S


def _keep(keeper_of: weakref.ref[Keeper], wake: threading.Event) -> None:
    """The thread: ends with the tier."""
    renewed = time.monotonic()
    while True:
        wake.wait(max(0.0, renewed + limits.LOCK_RENEW_S - time.monotonic()))
        wake.clear()
        keeper = keeper_of()
        if keeper is None:
            return
        due = time.monotonic() - renewed >= limits.LOCK_RENEW_S
        if due:
            renewed = time.monotonic()
        keeper.renew_all(only_dirty=not due)
        del keeper
