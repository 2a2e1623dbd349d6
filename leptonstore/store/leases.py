"""Who is alive: readers hold commits, writers ask for packs to be spared. Both are files that their process keeps locked.

    leases/<id>    a framed document of kind "lease" with {"commit", "pid", "host"}: garbage collection treats the commit as a root
    writers/<id>   "=<epoch>", in which the work began; "+<pack>" and "-<pack>" lines: packs of unpublished work, and packs that it
                   counts on

A lease is part of the protocol: it is made first, then the log is read again, then the commit must still be one that the refs protect;
garbage collection reads leases after the log, so it cannot miss a lease whose reader saw the ref. A writer's claims are advice:
they keep a long import from losing its work, but nothing is unsafe without them (a fence is what makes it safe).
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType

from leptonstore import limits
from leptonstore.errors import FormatDamaged, LeptonError
from leptonstore.store.log import Documents
from leptonstore.tiers.roles import HeldLock, LockHome

LEASES, WRITERS = "leases", "writers"


class Lease:
    """A commit that a live reader holds. Use it as a context manager, release it, or let it be collected."""

    def __init__(self, home: LockHome, documents: Documents, commit: str) -> None:
        body = {"commit": commit, "pid": os.getpid(), "host": socket.gethostname()}
        data = documents.encode("lease", body)
        self.commit = commit
        self._lock = home.hold_lock(LEASES, data)
        self._finalizer: weakref.finalize[..., Lease] = weakref.finalize(self, _release, self._lock, os.getpid())

    def release(self) -> None:
        """Let go of the commit. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def _release(lock: HeldLock, pid: int) -> None:
    if os.getpid() == pid:  # a child made by fork must not end the parent's lease
        lock.release()


def leased_commits(home: LockHome, documents: Documents) -> set[str]:
    """The commits that live readers hold. Raises FormatDamaged for a lease that does not say which."""
    return set(readers(home, documents))


def readers(home: LockHome, documents: Documents) -> dict[str, str]:
    """Commit -> a live reader that holds it, for people. Raises FormatDamaged."""
    out = {}
    for name, data in home.live_locks(LEASES, limits.LEASE_BYTES_MAX).items():
        body = documents.parse(data, "lease", f"lease {name}")
        if not isinstance(body.get("commit"), str):
            raise FormatDamaged(f"lease {name} names no commit: remove {LEASES}/{name} when its reader has ended")
        out[body["commit"]] = f"process {body.get('pid')} on {body.get('host')}"
    return out


class Claims:
    """The packs that a live writer asks to be spared. Never fails: without it, work may have to be done again. Any thread."""

    def __init__(self, home: LockHome, epoch: Callable[[], int] = lambda: 0) -> None:
        """epoch: that of the work for which packs are claimed."""
        self._home, self._epoch = home, epoch
        self._guard = threading.Lock()
        self._lock: HeldLock | None = None
        self._claimed: set[str] = set()

    @property
    def name(self) -> str:
        """Of the document; empty when nothing is claimed."""
        return "" if self._lock is None else self._lock.name

    @property
    def any(self) -> bool:
        """Whether something is claimed, also where that could not be shown."""
        return bool(self._claimed)

    @property
    def packs(self) -> frozenset[str]:
        """What is claimed."""
        with self._guard:
            return frozenset(self._claimed)

    def claim(self, pack: str) -> None:
        """Ask for `pack` to be spared, before it is sealed or relied on."""
        with self._guard:
            if pack not in self._claimed:
                self._claimed.add(pack)
                self._write(f"+{pack}\n".encode())

    def drop(self, packs: Iterable[str]) -> None:
        """These need no sparing any more: a ref reaches them, or nothing will."""
        with self._guard:
            gone = self._claimed.intersection(packs)
            self._claimed -= gone
            if not self._claimed:
                self._release()
            elif gone:
                self._write("".join(f"-{pack}\n" for pack in sorted(gone)).encode())

    def _write(self, data: bytes) -> None:
        with suppress(LeptonError, OSError):
            if self._lock is None:
                self._lock = self._home.hold_lock(WRITERS, f"={self._epoch()}\n".encode() + data)
            else:
                self._lock.append(data)

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def close(self) -> None:
        """Nothing is asked for any more."""
        with self._guard:
            self._claimed.clear()
            self._release()

    def after_fork(self) -> None:
        """In a child process: the parent's claims stay the parent's."""
        if self._lock is not None:
            self._lock.forget()
        self.__init__(self._home, self._epoch)  # type: ignore[misc]


def claimed_packs(home: LockHome) -> set[str]:
    """The packs that live writers ask to be spared. What does not parse asks for nothing."""
    out = set()
    for data in home.live_locks(WRITERS, limits.WRITER_CLAIMS_BYTES_MAX).values():
        mine: set[str] = set()
        for line in data.decode("ascii", "replace").splitlines():
            (mine.add if line[:1] == "+" else mine.discard)(line[1:])
        out |= mine
    return out


def writers(home: LockHome) -> dict[str, int]:
    """Name -> epoch of the work of each live writer that has something unpublished."""
    out = {}
    for name, data in home.live_locks(WRITERS, limits.WRITER_CLAIMS_BYTES_MAX).items():
        first = data[:32].decode("ascii", "replace").partition("\n")[0]
        out[name] = int(first[1:]) if first[:1] == "=" and first[1:].isdigit() else 0
    return out
