"""HotCache: what others use of the cache. Lease: a value that stays where it is while somebody looks at it.

    get          index -> pin -> check -> Lease, or None           no lock, about as long as opening a file takes
    get_or_put   get; else one of the host fetches, and puts         others wait for it
    fetch_many   the same for many that were missed                 fetched together
    put          admit? -> room (evict) -> write -> publish         the host's lock, twice, for microseconds; while evicting, longer

Invariants: a value is published after its bytes are in place; what is read was checked by this process; a cache that cannot be used
(read-only, full, not ours, gone) is a cache that misses, and its user is told once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from leptonstore import limits
from leptonstore.cache import directory, flight, forks
from leptonstore.cache.eviction import Space
from leptonstore.cache.plans import Plan, Plans
from leptonstore.cache.segments import TABLE, Segments, record_header, stored_bytes, write_record
from leptonstore.cache.table import (
    BOOT,
    BUDGET,
    COUNTERS,
    DEAD,
    HORIZON,
    HORIZON_NONE,
    LIVE,
    OPEN,
    PLANS,
    Table,
    Words,
    fingerprint,
    fingerprints,
)
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, NotPermitted

KEY_BYTES = 32


class Lease:
    """A value. `data` is read-only and stays right for as long as it, or any view made from it, is referenced.

    Views keep their segment in memory, at the cost of the cache's budget: copy what is kept for long. Any thread.
    """

    __slots__ = ("data",)

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def release(self) -> None:
        """Let go before the object dies; `data` is empty then. Views that others made stay valid."""
        self.data = memoryview(b"")

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class HotCache:
    """The hot cache in directory `path`, shared with all processes that open the same.

    budget_bytes: of the whole cache, index included, for all processes; whoever opens it last decides. None: as it is.
    ram_only:     refuse a directory that is not in RAM (values of encrypted stores). Raises BadInput.
    on_problem:   is told, once, in one line, why the cache is not used, or not for new values (default: `warnings.warn`).

    Any thread. A child made by fork uses it on; its parent's leases and plan stay the parent's (a lease that the child has a copy of
    pins until the child's copy dies).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        budget_bytes: int | None = None,
        ram_only: bool = False,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        if (
            budget_bytes is not None
            and not limits.CACHE_BUDGET_BYTES_MIN <= budget_bytes <= limits.CACHE_BUDGET_BYTES_MAX
        ):
            raise BadInput(
                f"a hot cache of {budget_bytes} bytes: give between {limits.CACHE_BUDGET_BYTES_MIN} and "
                f"{limits.CACHE_BUDGET_BYTES_MAX}"
            )
        self.path = Path(path).absolute()
        self._on_problem = on_problem or _warn
        self._told = False
        self._table: Table | None = None
        self._lock = directory.HostLock(self.path / "lock")
        self._plan: Plan | None = None
        self._counts = dict.fromkeys(("hits", "misses"), 0)
        self._flush_at = limits.CACHE_COUNTS_FLUSH
        self._retry = 0  # values that go by before a full device, or one full of pinned segments, is tried again
        try:
            directory.prepare(self.path, ram_only)
            with self._lock:
                self._open(budget_bytes)
        except (OSError, NotPermitted) as error:
            self._disable(error)
        forks.register(self)

    def _open(self, budget_bytes: int | None) -> None:
        """Locked. Map the table, after making it where there is none that can be used."""
        path = self.path / TABLE
        for attempt in range(2):  # the second time, the one that we made
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    table = Table(file)
                    if table.sound() and (budget_bytes is None or table.suits(budget_bytes)):
                        break
                    raise ValueError("damaged, or made for another budget")
                finally:
                    os.close(file)
            except (FileNotFoundError, ValueError) as error:
                if attempt or budget_bytes is None:
                    raise FileNotFoundError(2, "there is no hot cache", str(self.path)) from error
                Table.create(path, budget_bytes)
        segments = Segments(self.path, table)
        if table.words[BOOT] != directory.boot_id():
            table.words[OPEN], table.words[BOOT] = 0, directory.boot_id()
        segments.sweep()
        self._segments, self._plans = segments, Plans(self.path)
        self._space = Space(table, segments, self._plans)
        if budget_bytes is not None and table.words[BUDGET] != budget_bytes:
            table.words[BUDGET] = budget_bytes
        self._table = table
        self._space.shrink()

    def _disable(self, error: Exception) -> None:
        self._table = None
        text = f"{error.strerror}" if isinstance(error, OSError) else f"{error}"
        self._tell(f"hot cache {self.path} is not used ({text}): reading goes on without it; name another directory")

    def _tell(self, message: str) -> None:
        if not self._told:
            self._told = True
            self._on_problem(message)

    @property
    def usable(self) -> bool:
        """False: every `get` is a miss, and nothing is kept."""
        return self._table is not None

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Lease | None:
        """The value of `key` (32 bytes), or None."""
        key_print = fingerprint(key)
        if self._plan is not None:
            self._plan.advance(key_print)
        found = self._look(key, key_print)
        self._count("misses" if found is None else "hits")
        return found

    def _look(self, key: bytes, key_print: int) -> Lease | None:
        table = self._table
        if table is None:
            return None
        for _ in range(3):  # a value that is being moved is found at its new place
            places = table.places(key_print)
            for place in places:
                value = self._segments.read(key, place)
                if value is not None:
                    table.touch(place)
                    return Lease(value)
            if not places or places == table.places(key_print):
                return None
        return None

    def _count(self, what: str) -> None:
        self._counts[what] += 1
        if self._counts[what] >= self._flush_at and self._table is not None:
            self._flush_at += limits.CACHE_COUNTS_FLUSH
            if self._lock.try_enter():  # a hit does not wait
                try:
                    self._flush()
                finally:
                    self._lock.__exit__(None, None, None)

    def _flush(self) -> None:
        """Locked. Add this process's counts to those of all."""
        self._flush_at = limits.CACHE_COUNTS_FLUSH
        if self._table is not None:
            for name, count in self._counts.items():
                self._counts[name] -= count
                self._table.words[COUNTERS[name]] += count

    def get_or_put(self, key: bytes, fetch: Callable[[], Buffer]) -> Lease:
        """The value of `key`; when it is not there, what `fetch` returns, which is kept if it is wanted.

        Of all that ask for it at the same time on this host, one fetches. Errors of `fetch` pass through, and another one fetches.
        `fetch` must not wait for a key that another's `fetch` may be waiting in.
        """
        found = self.get(key)
        return self._fetch(key, fetch) if found is None else found

    def _fetch(self, key: bytes, fetch: Callable[[], Buffer]) -> Lease:
        table, file = self._table, self._open_flight()
        if table is None or file is None:
            return _private(fetch())
        key_print = fingerprint(key)
        with flight.flight(
            file, key_print, lambda: self._look(key, key_print), lambda: not table.was_refused(key_print)
        ) as landed:
            if landed is not None:
                return landed
            value = fetch()
            kept = self._put(key, key_print, value)
            # A large value (an arena) is worth another look, so that this process holds it once.
            large = kept and memoryview(value).nbytes > table.segment_bytes // 4
            return (self._look(key, key_print) if large else None) or _private(value)

    def _open_flight(self) -> int | None:
        if self._table is None:
            return None
        try:
            return flight.open_flight(self.path / "flights")
        except OSError as error:
            self._disable(error)
            return None

    def fetch_many(self, keys: Sequence[bytes], fetch: Callable[[Sequence[int]], Iterable[Buffer]]) -> list[Lease]:
        """The values of distinct `keys` that `get` has missed, as `get_or_put` would give each, but fetched together.

        `fetch` is given positions in `keys` and gives their values in that order: once for all that nobody else of the host is fetching
        (CACHE_CLAIMS_MAX at a time), then for each that another fetched in vain. Its errors pass through.
        """
        found: list[Lease | None] = [None] * len(keys)
        for first in range(0, len(keys), limits.CACHE_CLAIMS_MAX):
            self._fetch_claimed(keys, range(len(keys))[first : first + limits.CACHE_CLAIMS_MAX], fetch, found)
        return [
            self._fetch(keys[at], lambda at=at: next(iter(fetch([at])))) if lease is None else lease  # type: ignore[misc]
            for at, lease in enumerate(found)
        ]

    def _fetch_claimed(
        self,
        keys: Sequence[bytes],
        asked: Sequence[int],
        fetch: Callable[[Sequence[int]], Iterable[Buffer]],
        found: list[Lease | None],
    ) -> None:
        file = self._open_flight()
        if file is None:
            for at, value in zip(asked, fetch(asked), strict=True):
                found[at] = _private(value)
            return
        prints = [fingerprint(keys[at]) for at in asked]
        try:
            mine = []
            for number in flight.claim(file, prints):
                landed = self._look(keys[asked[number]], prints[number])  # between the miss and the claim
                found[asked[number]] = landed
                if landed is None:
                    mine.append(number)
                else:
                    flight.land(file, prints[number])
            if not mine:
                return
            chosen = [asked[number] for number in mine]
            for number, at, value in zip(mine, chosen, fetch(chosen), strict=True):
                self._put(keys[at], prints[number], value)
                flight.land(file, prints[number])
                found[at] = _private(value)
        finally:
            forks.close_transient(file)

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: Buffer) -> bool:
        """Keep `value`, whose bytes the caller has verified. False when it is not wanted or there is no room."""
        key_print = fingerprint(key)
        return self._look(key, key_print) is not None or self._put(key, key_print, value)

    def _put(self, key: bytes, key_print: int, value: Buffer) -> bool:
        if self._table is None:
            return False
        try:
            return self._store(key, key_print, value)
        except FileNotFoundError as error:
            self._disable(error)
        except OSError as error:
            self._retry = limits.CACHE_FULL_RETRY_PUTS
            self._tell(
                f"hot cache {self.path} takes no new values ({error.strerror}): free some space there, or lower its budget"
            )
        return False

    def _store(self, key: bytes, key_print: int, value: Buffer) -> bool:
        table = self._table
        assert table is not None
        if self._retry:
            self._retry -= 1
            return False
        header, size = record_header(key, value), stored_bytes(memoryview(value).nbytes)
        with self._lock:
            wanted = self._space.admits(key_print)
            place = self._space.give(size) if wanted else None
            file = None if place is None else self._segments.open_pinned(place[0], os.O_RDWR)
            if place is None or file is None:
                self._retry = 0 if place or not wanted else limits.CACHE_PINNED_RETRY_PUTS
                table.refuse(key_print)
                table.words[COUNTERS["refused"]] += 1
                self._flush()
                return False
        forks.transient.add(file)
        try:
            write_record(file, place[1], header, value)
            with self._lock:
                if not table.is_live(place[0]):  # cleared meanwhile
                    return False
                table.insert(key_print, *place, memoryview(value).nbytes)
                table.words[COUNTERS["puts"]] += 1
                self._flush()
                table.words[COUNTERS["put_bytes"]] += size
        finally:
            forks.close_transient(file)
        return True

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan(self, keys: Iterable[bytes] | np.ndarray, restart: bool = False) -> int:
        """Say which keys this client will `get` next, in this order, after those it said before (restart: instead of them).

        keys: 32 bytes each, or an array of uint8 of shape (n, 32). Returns how many keys are planned ahead now: at most
        CACHE_PLAN_KEYS_MAX; those beyond are not taken. Register the next epoch before this one ends: what is in no plan goes first.
        """
        if isinstance(keys, np.ndarray):
            rows = keys.reshape(-1, KEY_BYTES).view(np.uint8)
        else:
            rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
        if self._table is None:
            return 0
        prints: Words = fingerprints(rows)
        if self._plan is None:
            self._plan = Plan(self.path)
        try:
            ahead = self._plan.extend(prints, restart, self._lock)
            self._table.words[PLANS] += 1  # a lost one is made up for at the next ranking
            return ahead
        except OSError as error:
            self._tell(f"hot cache {self.path} takes no plan ({error.strerror}): it goes by last use")
            return 0

    # -- looking after it ------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts over all processes since the cache was made, and bytes now: linked, pinned (evicted and still looked at), of the index.

        Raises TimeoutError, as `clear` does, when a stopped process holds the cache's lock.
        """
        table = self._table
        if table is None:
            return {}
        with self._lock:
            self._flush()
            linked, pinned = self._segments.reclaim()
            self._plans.refresh()
            return {
                **{name: table.words[at] for name, at in COUNTERS.items()},
                "budget_bytes": table.words[BUDGET],
                "linked_bytes": linked,
                "pinned_bytes": pinned,
                "index_bytes": table.bytes,
                "segment_bytes": table.segment_bytes,
                "segments": sum(state == LIVE for _, state, _ in table.segments()),
                "values": len(table.entries().at),
                "plans": len(self._plans),
            }

    def counts(self) -> dict[str, int]:
        """The counts of `stats`, at once and without waiting for anybody: those of other processes are told in steps."""
        table = self._table
        if table is None:
            return {}
        return {name: int(table.words[at]) + self._counts.get(name, 0) for name, at in COUNTERS.items()}

    def clear(self) -> int:
        """Drop every value; bytes that leases pin are given back when those end. Returns the bytes freed now."""
        table = self._table
        if table is None:
            return 0
        with self._lock:
            before = sum(size for _, _, size in table.segments())
            for ordinal, _, _ in list(table.segments()):
                table.set_state(ordinal, DEAD)
            table.words[HORIZON] = HORIZON_NONE
            table.words[OPEN] = 0
            self._retry = 0
            _, pinned = self._segments.reclaim()
            return before - pinned

    def close(self) -> None:
        """Leave the cache to the others; leases stay valid. May be called twice."""
        table, self._table = self._table, None
        if self._plan is not None:
            self._plan.close()
            self._plan = None
        if table is not None:
            with suppress(TimeoutError), self._lock:
                self._table = table
                self._flush()
            self._table = None
            self._segments.close()
            self._lock.close()

    def __del__(self) -> None:
        if self.__dict__.get("_table") is not None:  # nobody closed it: no counts, as those need the lock
            if self._plan is not None:
                self._plan.close()
            self._lock.close()

    def __enter__(self) -> HotCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- fork ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """No other thread is in the middle of a change."""
        self._lock.mutex.acquire()

    def after_fork_in_parent(self) -> None:
        """Let others change things again."""
        self._lock.mutex.release()

    def after_fork_in_child(self) -> None:
        """The plan stays the parent's, and so do the counts; the lock is a new one."""
        if self._plan is not None:
            self._plan.after_fork_in_child()
            self._plan = None
        self._counts = dict.fromkeys(self._counts, 0)
        self._lock.after_fork_in_child()


def _private(value: Buffer) -> Lease:
    return Lease(memoryview(value).cast("B").toreadonly())


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
