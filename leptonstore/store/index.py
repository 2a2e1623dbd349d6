"""The index: digest -> place in a pack. A cache in LMDB, never the truth.

It lies in the user's cache directory ($XDG_CACHE_HOME/lepton/<store id>/<hash of the store's place>), is filled from pack footers,
and remembers the log entry up to which it is complete. Deleting it costs the time of the next open and nothing else; anything
odd about it (another chain of entries, damage, another layout) makes it start from empty.

    environment.py    LMDB: one environment per process, forks, growth; what each database holds
    index_rows.py     footers as arrays, sorted runs and their merge
    index_changes.py  packs in and out, in transactions that can be repeated
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb
import numpy as np

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES, Digest, digest_of
from leptonstore.format.pack import FooterRow
from leptonstore.store import index_changes as changes
from leptonstore.store import index_rows
from leptonstore.store.environment import (
    DAMAGE,
    Environment,
    between_processes,
    delete_environment,
    leave_environment,
    open_environment,
)
from leptonstore.store.index_rows import PLACE, Rows
from leptonstore.store.log import LogState
from leptonstore.tiers.durable import full_disk_named

_T = TypeVar("_T")
ReadRows = Callable[[str], "Iterable[FooterRow] | Rows | None"]


def cache_home() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache (XDG Base Directory Specification)."""
    value = os.environ.get("XDG_CACHE_HOME", "")
    return Path(value) if value.startswith("/") else Path.home() / ".cache"


def cache_folder(store_id: bytes, url: str, cache_dir: Path | None = None) -> Path:
    """What this user's cache directory holds of the store at `url`; may not exist yet. cache_dir: instead of that directory."""
    home = cache_dir if cache_dir is not None else cache_home() / "lepton"
    return home / store_id.hex() / digest_of(url.encode())[:8].hex()


class Place(NamedTuple):
    """A record's row and the pack (hex id) that holds it."""

    pack: str
    row: FooterRow


class Item(NamedTuple):
    """A place, without what is needed to read it. `bytes`: what the chunk takes in the pack (`FooterRow.share`)."""

    digest: Digest
    pack: str
    bytes: int


class Index:
    """One store's index. Any thread; other processes may read and write the same one. After a fork it reopens by itself."""

    def __init__(self, store_id: bytes, url: str, cache_dir: Path | None = None) -> None:
        self.path = cache_folder(store_id, os.path.realpath(url), cache_dir)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._environment: Environment | None = None
        self.rebuilt = False  # whether this process started it from empty

    # -- LMDB ----------------------------------------------------------------------------------------------------

    def _open(self) -> Environment:
        environment = self._environment
        if environment is not None and not environment.closed:
            return environment
        try:
            environment = open_environment(self.path, self)
        except (OSError, lmdb.ReadonlyError, lmdb.DiskError, lmdb.LockError):
            if self._temporary is None:  # no usable cache directory: work without one
                self._temporary = tempfile.TemporaryDirectory(prefix="lepton-index-")
                self.path = Path(self._temporary.name) / "index"
            environment = open_environment(self.path, self)
        self._environment = environment
        return environment

    def _guarded(self, work: Callable[[Environment], _T]) -> _T:
        """Run `work`; when LMDB finds its file damaged, start from empty and run it once more."""
        for _ in range(2):
            try:
                return work(self._open())
            except DAMAGE:
                self._delete()
            except lmdb.Error:
                # Another thread closed or replaced it while this one was on its way in: look again.
                if self._environment is not None and not self._environment.closed:
                    raise
        return work(self._open())

    def _delete(self) -> None:
        self._environment = None
        delete_environment(self.path)
        self.rebuilt = True

    # -- filling -------------------------------------------------------------------------------------------------

    def applied(self) -> tuple[int, bytes] | None:
        """(sequence, digest of that entry) up to which this is complete; None when it is empty or of another layout."""
        return self._guarded(changes.applied)

    def sync(
        self,
        state: LogState,
        entry_digest: Callable[[int], bytes | None],
        read_rows: ReadRows,
        with_away: bool = False,
    ) -> None:
        """Make this complete up to `state`, or leave it when it is ahead (another process has seen more of the same log).

        `entry_digest` tells the digest of a log entry (to notice that this belongs to another history). `read_rows` gives a
        pack's records, as footer rows or as an array of them, or None: its tier does not answer, it is "away"; it is called from
        several threads. with_away: packs that were away are tried again. Neither is called when there is nothing to do.

        One process at a time fills an index; the others wait, and find it filled. What is killed on the way is taken up by the next
        call. Raises StoreFull, and what the callbacks raise.
        """
        if self.applied() == (state.sequence, state.head) and not (with_away and self.away()):
            return
        with self._filling():
            self._guarded(lambda environment: self._sync(state, entry_digest, read_rows, with_away))

    def away(self) -> list[str]:
        """Packs that are known without their rows: their tier did not answer. In next to no time when there are none."""
        return self._guarded(changes.away)

    @contextlib.contextmanager
    def _filling(self) -> Iterator[None]:
        """Be the one process and thread that changes the index."""
        self._open()  # settles the path
        with full_disk_named(self.path), between_processes(self.path, "sync"):
            self._environment = None  # the files may have been replaced since it was opened: look again
            self._open()
            yield

    def _sync(
        self, state: LogState, entry_digest: Callable[[int], bytes | None], read_rows: ReadRows, with_away: bool
    ) -> None:
        if changes.other_layout(self._open()):
            self._delete()
        environment = self._open()
        applied = changes.applied(environment)
        if applied == (state.sequence, state.head) and not (with_away and changes.away(environment)):
            return
        if applied is not None and applied[0] and entry_digest(applied[0]) != applied[1]:
            applied = None
        if applied is None:
            environment.write(lambda txn: changes.clear(environment, txn))
            self.rebuilt = True
        elif applied[0] > state.sequence:
            return
        gone, new = changes.difference(environment, state.packs, with_away)
        if gone:
            changes.remove_packs(environment, gone)
        try:
            self._add(environment, new, read_rows, state)
        except OverflowError:
            self._delete()
            self._add(self._open(), list(state.packs), read_rows, state)

    def _add(self, environment: Environment, packs: list[str], read_rows: ReadRows, state: LogState | None) -> None:
        """Add whole packs, and then mark `state`."""
        away: set[str] = set()
        with index_rows.Runs(Path(environment.path)) as runs:
            batches = _batches(_read_ahead(packs, read_rows, away))
            batch = next(batches, [])
            following = next(batches, None)
            if following is None and sum(len(entries) for _, entries in batch) <= limits.INDEX_COMMIT_ROWS:
                environment.write(lambda txn: _add_small(environment, txn, batch, packs, away, state))
                return
            for some in itertools.chain((batch,), () if following is None else (following,), batches):
                environment.write(lambda txn, some=some: changes.register(environment, txn, some))  # type: ignore[misc]
                runs.add(_joined(some))
            for part in runs.merged():
                changes.insert_sorted(environment, part)
            environment.write(lambda txn: _finish(environment, txn, packs, away, state))

    def add(self, pack: str, rows: Iterable[FooterRow] | Rows) -> None:
        """Add a pack's records. An older place of the same digest stays the one that `get` tells."""
        with self._filling():
            self._guarded(lambda environment: self._add(environment, [pack], lambda _: rows, None))

    def mark(self, state: LogState) -> None:
        """Remember that everything up to `state` is in."""
        with self._filling():
            self._write(lambda environment, txn: changes.mark(environment, txn, state.sequence, state.head))

    def clear(self) -> None:
        """Make it empty; the next `sync` fills it from every footer."""
        with self._filling():
            self._write(changes.clear)

    def _write(self, work: Callable[[Environment, Any], None]) -> None:
        self._guarded(lambda environment: environment.write(lambda txn: work(environment, txn)))

    # -- looking up ----------------------------------------------------------------------------------------------

    def has(self, digest: Digest) -> bool:
        """Whether a pack that is known has the chunk."""
        return self._get(digest) is not None

    def _get(self, digest: Digest) -> bytes | None:
        environment = self._environment
        if environment is None or environment.closed:
            return self._guarded(lambda environment: environment.get(digest))
        try:
            return environment.get(digest)
        except lmdb.Error:
            return self._guarded(lambda environment: environment.get(digest))

    def get(self, digest: Digest) -> Place | None:
        """Where the chunk is, None when no pack that is known has it."""
        for _ in range(3):
            value = self._get(digest)
            if value is None:
                break
            ordinal, *fields = PLACE.unpack(value)
            pack = self._name_of(ordinal)
            if pack is not None:
                return Place(pack, FooterRow(digest, *fields))
            # The pack was removed between the two look-ups: the digest may have moved to another one.
        return None

    def _name_of(self, ordinal: int) -> str | None:
        environment = self._environment
        if environment is not None and (name := environment.pack_names.get(ordinal)) is not None:
            return name
        return self._guarded(lambda environment: changes.name_of(environment, ordinal))

    def get_many(self, digests: Sequence[Digest]) -> list[Place | None]:
        """`get` for each of `digests`, in about half the time; INDEX_GET_BATCH of them see one state of the index."""
        places: list[Place | None] = []
        with _no_collection():
            for start in range(0, len(digests), limits.INDEX_GET_BATCH):
                places += self._places(digests[start : start + limits.INDEX_GET_BATCH])
        return places

    def _places(self, digests: Sequence[Digest]) -> list[Place | None]:
        # In the index's order: half of the time of a random look-up is waiting for memory.
        at: list[int] = np.argsort(np.frombuffer(b"".join(digests), ">u8")[:: DIGEST_BYTES // 8]).tolist()
        keys = [digests[place] for place in at]
        values = self._guarded(lambda environment: environment.get_many(keys))
        if None in values:
            found = [value is not None for value in values]
            at, keys = list(itertools.compress(at, found)), list(itertools.compress(keys, found))
        stored = PLACE.iter_unpack(b"".join(filter(None, values)))
        places: list[Place | None] = [None] * len(digests)
        new, names = tuple.__new__, self._open().pack_names
        for place, digest, fields in zip(at, keys, stored, strict=True):
            ordinal, offset, length, raw, kind, codec, flags, width, dictionary = fields
            pack = names.get(ordinal) or self._name_of(ordinal)
            if pack is None:
                places[place] = self.get(digest)  # its pack was removed meanwhile
            else:
                # Past the constructors of named tuples: they cost as much as the look-up.
                row = new(FooterRow, (digest, offset, length, raw, kind, codec, flags, width, dictionary))
                places[place] = new(Place, (pack, row))
        return places

    def places(self, digest: Digest) -> list[Place]:
        """Every place of the chunk, that of `get` first, then in the order in which packs came."""

        def work(environment: Environment) -> list[bytes]:
            def read(txn: Any) -> list[bytes]:
                first = txn.get(digest)
                cursor = txn.cursor(db=environment.copies)
                found = [] if first is None else [first]
                more = cursor.set_range(digest)
                while more and cursor.key().startswith(digest):
                    found.append(cursor.value())
                    more = cursor.next()
                return found

            return environment.read(read)

        places = []
        for ordinal, *fields in map(PLACE.unpack, self._guarded(work)):
            pack = self._name_of(ordinal)
            if pack is not None:
                places.append(Place(pack, FooterRow(digest, *fields)))
        return places

    # -- going through it ----------------------------------------------------------------------------------------

    def items(self, after: Digest = b"") -> Iterator[Item]:
        """The place of every digest greater than `after` that `get` would tell, sorted by digest.

        Memory is bounded, and no transaction stays open between batches: what is there from the first to the last item is
        told once, what changes meanwhile may or may not be.
        """
        return self._stream(lambda environment: environment.chunks, after)

    def copies(self) -> Iterator[Item]:
        """Further places of digests that `items` tells already, sorted by digest. Like `items` otherwise."""
        return self._stream(lambda environment: environment.copies, b"")

    def _stream(self, database: Callable[[Environment], Any], after: bytes) -> Iterator[Item]:
        unpack = PLACE.unpack
        names: dict[int, str | None] = {}
        while True:
            rows = self._guarded(lambda environment, after=after: _some(environment, database(environment), after))  # type: ignore[misc]
            if not rows:
                return
            names = {ordinal: names.get(ordinal) for ordinal in {unpack(value)[0] for _, value in rows}}
            for ordinal, name in names.items():
                names[ordinal] = name or self._name_of(ordinal)
            for key, value in rows:
                ordinal, *fields = unpack(value)
                pack, digest = names[ordinal], key[:DIGEST_BYTES]
                if pack is not None:
                    yield Item(digest, pack, FooterRow(digest, *fields).share)
            after = rows[-1][0]

    def close(self) -> None:
        """Let go of it in this object; the last one of the process closes the files."""
        environment, self._environment = self._environment, None
        if environment is not None:
            leave_environment(environment, self)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.cleanup()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while many tuples are made that cannot be garbage: it would take longer than the look-ups."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- filling, step by step -------------------------------------------------------------------------------------------------


def _some(environment: Environment, database: Any, after: bytes) -> list[tuple[bytes, bytes]]:
    return next(changes.stream(environment, database, limits.INDEX_ITEMS_BATCH, after), [])


def _read_ahead(packs: list[str], read_rows: ReadRows, away: set[str]) -> Iterator[tuple[str, Rows]]:
    """Each pack's rows as entries without an ordinal; footers are read by several threads, a few packs ahead.

    A pack that is away has none, and is added to `away`.
    """

    def read(pack: str) -> Rows:
        rows = read_rows(pack)
        if rows is None:
            away.add(pack)
        return index_rows.entries_of(index_rows.array_of(() if rows is None else rows), 0)

    if len(packs) <= 2:
        yield from ((pack, read(pack)) for pack in packs)
        return
    pool = ThreadPoolExecutor(limits.INDEX_FOOTER_THREADS, "lepton-index")
    waiting: deque[tuple[str, Future[Rows]]] = deque()
    try:
        for pack in packs:
            waiting.append((pack, pool.submit(read, pack)))
            if len(waiting) >= 2 * limits.INDEX_FOOTER_THREADS:
                done, rows = waiting.popleft()
                yield done, rows.result()
        while waiting:
            done, rows = waiting.popleft()
            yield done, rows.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(packs: Iterator[tuple[str, Rows]]) -> Iterator[list[tuple[str, Rows]]]:
    """Whole packs, about INDEX_BATCH_ROWS rows at a time."""
    batch: list[tuple[str, Rows]] = []
    rows = 0
    for pack, entries in packs:
        batch.append((pack, entries))
        rows += len(entries)
        if rows >= limits.INDEX_BATCH_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _joined(batch: list[tuple[str, Rows]]) -> Rows:
    joined: Rows = np.concatenate([entries for _, entries in batch])
    return joined


def _add_small(
    environment: Environment,
    txn: Any,
    batch: list[tuple[str, Rows]],
    packs: list[str],
    away: set[str],
    state: LogState | None,
) -> None:
    """What one publish adds, in one transaction: it costs one fsync."""
    if batch:
        changes.register(environment, txn, batch)
        changes.insert(environment, txn, index_rows.sort_entries(_joined(batch)))
    _finish(environment, txn, packs, away, state)


def _finish(environment: Environment, txn: Any, packs: list[str], away: set[str], state: LogState | None) -> None:
    changes.complete(environment, txn, packs, away)
    if state is not None:
        changes.mark(environment, txn, state.sequence, state.head)
