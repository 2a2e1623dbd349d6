"""The home of a store, with packs read through the cluster: what a daemon opens its Store objects over.

    packs       read by blocks: sharing.py. What frames them (header, footer, trailer) is read as it is, where it is: every daemon fills an
                index, and two blocks of each pack would be too much for that
    log/        entries never change: those that were read are kept
    all else    as the home has it, now: documents, listings, sizes, writing, locks

A child process made by fork reads the home alone: Flight and its threads do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.recent import Recent
from leptonstore.daemon.cluster.sharing import Sharing
from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged
from leptonstore.format import pack as lpk
from leptonstore.tiers.roles import HeldLock, PackSink, StoreHome


class Known:
    """What was read of a store's home and never changes; bounded. Any thread; shared by all Store objects of a daemon."""

    def __init__(self) -> None:
        self.sizes: Recent[str, int] = Recent(bounds.PACKS_REMEMBERED)  # pack -> bytes
        self.heads: Recent[str, bytes] = Recent(bounds.PACKS_REMEMBERED)  # pack -> its header
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def entry(self, name: str) -> bytes | None:
        """An entry of the log, when it is kept."""
        with self._lock:
            found = self._entries.get(name)
            if found is not None:
                self._entries.move_to_end(name)
            return found

    def add_entry(self, name: str, data: bytes) -> None:
        """Keep it."""
        with self._lock:
            self._bytes += len(data) - len(self._entries.pop(name, b""))
            self._entries[name] = data
            while self._bytes > bounds.LOG_ENTRIES_BYTES or len(self._entries) > bounds.LOG_ENTRIES_KEPT:
                self._bytes -= len(self._entries.popitem(last=False)[1])

    def forget(self, pack: str) -> None:
        """It is gone, or to be looked at anew."""
        self.sizes.forget(pack)
        self.heads.forget(pack)


class CooperativeTier:
    """StoreHome over `inner`. Any thread. Closing it closes `inner`, not the cluster."""

    def __init__(self, inner: StoreHome, sharing: Sharing, known: Known) -> None:
        self._inner, self._sharing, self._known = inner, sharing, known
        self._gone: Recent[str, bool] = Recent(bounds.PACKS_GONE_REMEMBERED)  # packs that were deleted here
        self._process = os.getpid()

    @property
    def url(self) -> str:
        """That of the home."""
        return self._inner.url

    @property
    def inner(self) -> StoreHome:
        """The home itself: for those who look for damage in it."""
        return self._inner

    # -- packs ---------------------------------------------------------------------------------------------------

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """See PackReader."""
        return bytes(self.read_once(pack, offset, length))

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """See PackStreamer."""
        if not length:
            return b""
        if self._process != os.getpid():
            return self._inner.read_once(pack, offset, length)
        return next(iter(self.read_many([(pack, offset, length)])))

    def read_many(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Buffer]:
        """See ManyReader. The first requests are under way when this returns."""
        if self._process != os.getpid():
            return (self._inner.read_once(*one) for one in wanted)
        for pack in {pack for pack, _, _ in wanted}:
            if pack in self._gone:
                raise FileNotFoundError(2, "no such pack", f"{self.url}: {pack}")
        if all(self._is_frame(*one) for one in wanted):
            return iter([resolve() for resolve in [self._frame(*one) for one in wanted]])
        return self._sharing.read_many(wanted)

    def _is_frame(self, pack: str, offset: int, length: int) -> bool:
        """Whether a range is a pack's header, or its footer, trailer, or end, whose size was asked for before."""
        if not offset and length == lpk.HEADER_BYTES:
            return True
        size = self._known.sizes.get(pack)
        return size is not None and size - offset - length in (0, lpk.TRAILER_BYTES) and offset > 0

    def _frame(self, pack: str, offset: int, length: int) -> Callable[[], Buffer]:
        known = self._known.heads.get(pack) if not offset else None
        if known is not None:
            return lambda: known
        data = self._sharing.flights.direct(pack, offset, length)

        def resolve() -> Buffer:
            found = data.result()
            if not offset:
                self._known.heads.set(pack, bytes(found))
            return found

        return resolve

    def distrust(self, pack: str) -> bool:
        """See Distrusting."""
        return self._process == os.getpid() and self._sharing.distrust(pack)

    def pack_bytes(self, pack: str) -> int | None:
        """See PackReader: asked of the home each time."""
        size = self._inner.pack_bytes(pack)
        if size is not None:
            self._known.sizes.set(pack, size)
        return size

    def packs(self) -> Iterator[str]:
        """See PackReader."""
        return self._inner.packs()

    def create_pack(self, pack: str) -> PackSink:
        """See PackWriter."""
        return self._inner.create_pack(pack)

    def delete_pack(self, pack: str) -> None:
        """See PackPruner. Other members forget it when they see the log (`Cluster.keep_only`)."""
        self._forget(pack)
        self._inner.delete_pack(pack)

    def forget_pack(self, pack: str) -> None:
        """What is kept of it is to be looked at anew: the log lists it no more, or it may have been replaced."""
        self._known.forget(pack)
        if self._process == os.getpid():
            self._sharing.forget(lambda other: other == pack)

    def set_aside(self, pack: str) -> Path | str | None:
        """See StoreHome."""
        self._forget(pack)
        return self._inner.set_aside(pack)

    def _forget(self, pack: str) -> None:
        self._gone.set(pack, True)
        self.forget_pack(pack)

    # -- documents -----------------------------------------------------------------------------------------------

    def read_document(self, name: str, bytes_max: int) -> bytes | None:
        """See HomeReader."""
        if not name.startswith("log/"):
            return self._inner.read_document(name, bytes_max)
        data = self._known.entry(name)
        if data is None:
            data = self._inner.read_document(name, bytes_max)
            if data is not None:
                self._known.add_entry(name, data)
        elif len(data) > bytes_max:
            raise FormatDamaged(f"{self.url}/{name} has more than {bytes_max} bytes")
        return data

    def documents(self, folder: str) -> list[str]:
        """See HomeReader."""
        return self._inner.documents(folder)

    def create_document(self, name: str, data: bytes) -> bool:
        """See HomeWriter."""
        return self._inner.create_document(name, data)

    def replace_document(self, name: str, data: bytes) -> None:
        """See HomeWriter."""
        self._inner.replace_document(name, data)

    def confirm_documents(self, folder: str) -> None:
        """See HomeWriter."""
        self._inner.confirm_documents(folder)

    def delete_document(self, name: str) -> None:
        """See HomePruner."""
        self._inner.delete_document(name)

    def hold_lock(self, folder: str, data: bytes) -> HeldLock:
        """See LockHome."""
        return self._inner.hold_lock(folder, data)

    def live_locks(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """See LockHome."""
        return self._inner.live_locks(folder, bytes_max)

    # -- housekeeping --------------------------------------------------------------------------------------------

    def contents(self) -> list[str] | None:
        """See StoreHome."""
        return self._inner.contents()

    def has_reserve(self) -> bool:
        """See StoreHome."""
        return self._inner.has_reserve()

    def release_reserve(self) -> None:
        """See StoreHome."""
        self._inner.release_reserve()

    def restore_reserve(self) -> bool:
        """See StoreHome."""
        return self._inner.restore_reserve()

    def remove_dead_temporaries(self, young_too: bool = False) -> int:
        """See StoreHome."""
        return self._inner.remove_dead_temporaries(young_too)

    def after_fork(self) -> None:
        """See StoreHome."""
        self._inner.after_fork()

    def close(self) -> None:
        """See StoreHome."""
        self._inner.close()
