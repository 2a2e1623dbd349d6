"""Plans: who will ask for what, and when. A file for each client that registered the order of its keys, locked while the client lives.

    0     magic u64, cursor u64, keys n u64, distinct keys d u64, 0 ...      64 bytes; only the cursor changes
    64    fingerprints of the distinct keys, ascending                       d x u64
    ...   rank of the key << 32 | position, ascending                        n x u64

So the next use of a key from the cursor on is found by two binary searches, for thousands of keys at once, and without a copy of
the plan in each process. The cursor is moved by one store. Distances count requests: a key that is asked for next has distance 0.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import threading
from collections import Counter
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leptonstore import limits
from leptonstore.cache.table import Words

_MAGIC = int.from_bytes(b"LHPLAN01", "little")
_HEADER_BYTES = 64
UNPLANNED = 1 << 40  # distance of what is in no plan, plus the requests since its last use: behind all that is planned
_NEVER = np.int64(1 << 61)


class Plan:
    """This client's own plan. Any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._keys: Words = np.empty(0, np.uint64)
        self._cursor = 0
        self._late: Counter[int] = Counter()  # keys that others overtook; bounded by the window
        self._file = -1
        self._path: Path | None = None
        self._words: Any = None

    def extend(self, keys: Words, restart: bool, lock: AbstractContextManager[object]) -> int:
        """Add keys to the end (or begin anew) and publish, under the host's lock. Returns how many are ahead. Raises OSError (full)."""
        with self._guard:
            ahead = keys if restart else np.concatenate([self._keys[self._cursor :], keys])
            ahead = ahead[: limits.CACHE_PLAN_KEYS_MAX]
            self._publish(ahead, lock)
            self._keys, self._cursor = ahead, 0
            if restart:
                self._late.clear()
            return len(ahead)

    def _publish(self, keys: Words, lock: AbstractContextManager[object]) -> None:
        distinct, ranks = np.unique(keys, return_inverse=True)
        ordered = np.sort(ranks.astype(np.uint64) << np.uint64(32) | np.arange(len(keys), dtype=np.uint64))
        header = np.zeros(_HEADER_BYTES // 8, np.uint64)
        header[:4] = _MAGIC, 0, len(keys), len(distinct)
        data = header.tobytes() + distinct.tobytes() + ordered.tobytes()
        with lock:
            self._replace(data)

    def _replace(self, data: bytes) -> None:
        path = self._folder / f"{secrets.token_hex(8)}.plan"
        temporary = path.with_suffix(".tmp")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.posix_fallocate(file, 0, len(data))
            os.pwrite(file, data, 0)
            words = memoryview(mmap.mmap(file, _HEADER_BYTES)).cast("Q")
            os.rename(temporary, path)
        except BaseException:
            os.close(file)
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._withdraw()
        self._file, self._path, self._words = file, path, words

    def advance(self, key_print: int) -> None:
        """A key was asked for: the cursor follows, also when several threads ask a little out of turn."""
        with self._guard:
            keys, cursor = self._keys, self._cursor
            if cursor < len(keys) and keys[cursor] == key_print:
                self._cursor = cursor + 1
            elif self._late.get(key_print):
                self._late[key_print] -= 1
                return
            else:
                found = np.flatnonzero(keys[cursor : cursor + limits.CACHE_PLAN_WINDOW] == key_print)
                if not len(found):
                    return
                if len(self._late) > limits.CACHE_PLAN_WINDOW:
                    self._late.clear()
                self._late.update(keys[cursor : cursor + int(found[0])].tolist())
                self._cursor = cursor + int(found[0]) + 1
            if self._words is not None:
                self._words[1] = self._cursor

    def _withdraw(self) -> None:
        path, self._path, file, self._file, self._words = self._path, None, self._file, -1, None
        if path is not None:
            with suppress(OSError):
                os.unlink(path)
        if file >= 0:
            os.close(file)

    def close(self) -> None:
        """Nothing is planned any more."""
        with self._guard:
            self._withdraw()

    def after_fork_in_child(self) -> None:
        """The plan stays the parent's: its lock must not outlive it in ours."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._path, self._words = -1, None, None


class _Read:
    """Somebody's plan, mapped."""

    def __init__(self, file: int) -> None:
        """Raises ValueError when it does not parse, OSError."""
        size = os.fstat(file).st_size
        self._map = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        if size < _HEADER_BYTES:
            raise ValueError("too short")
        words = np.frombuffer(self._map, np.uint64, size // 8)
        count, distinct = int(words[2]), int(words[3])
        if (
            words[0] != _MAGIC
            or not distinct <= count <= limits.CACHE_PLAN_KEYS_MAX
            or size != 64 + 8 * (count + distinct)
        ):
            raise ValueError("not a plan")
        self._words = words
        self._prints, self._uses = words[8 : 8 + distinct], words[8 + distinct :]

    def distances(self, prints: Words) -> npt.NDArray[np.int64]:
        """Requests until the next use of each key; `_NEVER` where there is none."""
        if not len(self._prints):
            return np.full(len(prints), _NEVER)
        cursor = self._words[1]
        rank = np.searchsorted(self._prints, prints)
        known = self._prints[np.minimum(rank, len(self._prints) - 1)] == prints
        wide = rank.astype(np.uint64) << np.uint64(32)
        at = np.searchsorted(self._uses, wide | cursor)
        use = self._uses[np.minimum(at, len(self._uses) - 1)]
        known &= (at < len(self._uses)) & (use >> np.uint64(32) == rank.astype(np.uint64))
        ahead = (use & np.uint64(0xFFFFFFFF)).astype(np.int64) - np.int64(cursor)
        return np.where(known, ahead, _NEVER)


class Plans:
    """The plans of all live clients, as the one that evicts or admits sees them. Locked: the host's lock is held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, _Read] = {}

    def refresh(self) -> None:
        """Locked. Take in what was published; remove the plans of clients that have gone."""
        seen: dict[str, _Read] = {}
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(".plan"))
        except OSError:
            names = []
        for name in names[: limits.CACHE_PLANS_MAX]:
            with suppress(OSError, ValueError):
                plan = self._look(name)
                if plan is not None:
                    seen[name] = plan
        self._read = seen

    def _look(self, name: str) -> _Read | None:
        path = self._folder / name
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._read.get(name) or _Read(file)
            os.unlink(path)
            return None
        finally:
            os.close(file)

    def __len__(self) -> int:
        return len(self._read)

    def distances(self, prints: Words, ages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How far away each key's next use is, over all plans; by age, behind all others, where it is in none."""
        nearest = np.full(len(prints), _NEVER)
        for plan in self._read.values():
            np.minimum(nearest, plan.distances(prints), out=nearest)
        return np.where(nearest < _NEVER, nearest, UNPLANNED + ages)
