"""The index: digest -> place in a pack. A cache in LMDB, never the truth.

It lies in the user's cache directory ($XDG_CACHE_HOME/lepton/<store id>/<hash of the store's place>), is filled from pack footers,
and remembers the log entry up to which it is complete. Deleting it costs the time of the next open and nothing else; anything
odd about it (another chain of entries, damage, a newer layout) makes it start from empty.

LMDB rules kept here: one environment per path and process (a second open is refused, and one inherited by fork seems
to work but is not ours), closed in the child and reopened lazily; short transactions; the map grows when it is full.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from leptonstore import limits
from leptonstore.digest import Digest, digest_of
from leptonstore.format.pack import FooterRow
from leptonstore.store.log import LogState

LAYOUT = b"1"
_PLACE = struct.Struct("<16sQQQBBBBI")
_APPLIED = struct.Struct("<Q32s")
_T = TypeVar("_T")

# Real path -> (environment, and its databases: chunks, packs, meta).
_environments: dict[str, tuple[Any, Any, Any, Any]] = {}
_lock = threading.Lock()


def cache_home() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache (XDG Base Directory Specification)."""
    value = os.environ.get("XDG_CACHE_HOME", "")
    return Path(value) if value.startswith("/") else Path.home() / ".cache"


def _close_inherited() -> None:
    """After a fork, in the child: the parent's environments must not be used, so each is closed and reopened on use."""
    global _lock
    _lock = threading.Lock()
    for environment, *_ in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _environment(path: Path) -> tuple[Any, Any, Any, Any]:
    """The process's one environment for `path`, opened when needed, and its databases.

    Those are opened here, under the lock: LMDB allows no other transaction meanwhile (two threads in `open_db` hang).
    """
    key = os.path.realpath(path)
    with _lock:
        if key not in _environments:
            path.mkdir(parents=True, exist_ok=True)
            environment = lmdb.open(
                key,
                map_size=limits.INDEX_MAP_BYTES,
                max_dbs=4,
                max_readers=limits.INDEX_READERS_MAX,
                readahead=False,
            )
            environment.reader_check()
            names = (b"chunks", b"packs", b"meta")
            _environments[key] = (environment, *(environment.open_db(name) for name in names))
        return _environments[key]


def _forget(path: Path) -> None:
    with _lock:
        entry = _environments.pop(os.path.realpath(path), None)
        if entry:
            entry[0].close()


@atexit.register
def _close_all() -> None:
    for environment, *_ in _environments.values():
        environment.close()
    _environments.clear()


class Place(NamedTuple):
    """A record's row and the pack (hex id) that holds it."""

    pack: str
    row: FooterRow


class Index:
    """One store's index. Any thread; other processes may read and write the same one."""

    def __init__(self, store_id: bytes, url: str, cache_dir: Path | None = None) -> None:
        home = cache_dir if cache_dir is not None else cache_home() / "lepton"
        self.path = home / store_id.hex() / digest_of(os.path.realpath(url).encode())[:8].hex()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.rebuilt = False  # whether this process started it from empty

    # -- LMDB ----------------------------------------------------------------------------------------------------

    def _databases(self) -> tuple[Any, Any, Any, Any]:
        try:
            return _environment(self.path)
        except (OSError, lmdb.ReadonlyError, lmdb.DiskError):
            if self._temporary is None:  # no usable cache directory: work without one
                self._temporary = tempfile.TemporaryDirectory(prefix="lepton-index-")
                self.path = Path(self._temporary.name)
            return _environment(self.path)

    def _start_over(self) -> None:
        _forget(self.path)
        shutil.rmtree(self.path, ignore_errors=True)
        self.rebuilt = True

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Run `work`; when LMDB finds itself damaged, start from empty and run it once more."""
        for attempt in range(3):
            try:
                return work()
            except lmdb.MapFullError:
                environment, *_ = self._databases()
                environment.set_mapsize(environment.info()["map_size"] * 2)
            except lmdb.MapResizedError:
                self._databases()[0].set_mapsize(0)
            except lmdb.Error:
                if attempt == 2:
                    raise
                self._start_over()
        return work()

    # -- content -------------------------------------------------------------------------------------------------

    def applied(self) -> tuple[int, bytes] | None:
        """(sequence, digest of that entry) up to which this is complete; None when it is empty or of another layout."""

        def work() -> tuple[int, bytes] | None:
            environment, _, _, meta = self._databases()
            with environment.begin(db=meta) as txn:
                value = txn.get(b"applied")
                if value is None or txn.get(b"layout") != LAYOUT or len(value) != _APPLIED.size:
                    return None
                return _APPLIED.unpack(value)

        return self._guarded(work)

    def sync(
        self,
        state: LogState,
        entry_digest: Callable[[int], bytes | None],
        read_rows: Callable[[str], Iterable[FooterRow]],
    ) -> None:
        """Make this complete up to `state`.

        `entry_digest` tells the digest of a log entry (to notice that this belongs to another history), `read_rows`
        the records of a pack. Both may do I/O; neither is called when there is nothing to do.
        """
        applied = self.applied()
        if applied == (state.sequence, state.head):
            return
        if applied is None or applied[0] > state.sequence or (applied[0] and entry_digest(applied[0]) != applied[1]):
            self._start_over()
        known = set(self._known_packs())
        if known - set(state.packs):
            # A digest keeps one place only: where a pack has gone, another copy may exist that is not in here.
            self._start_over()
            known = set()
        for pack in state.packs:
            if pack not in known:
                self.add(pack, list(read_rows(pack)))
        self.mark(state)

    def _known_packs(self) -> list[str]:
        def work() -> list[str]:
            environment, _, packs, _ = self._databases()
            with environment.begin(db=packs) as txn:
                return [key.hex() for key in txn.cursor().iternext(keys=True, values=False)]

        return self._guarded(work)

    def add(self, pack: str, rows: list[FooterRow]) -> None:
        """Add a pack's records. An older place of the same digest stays."""
        items = [(row.digest, _PLACE.pack(bytes.fromhex(pack), *row[1:])) for row in rows]

        def work() -> None:
            environment, chunks, packs, _ = self._databases()
            with environment.begin(write=True) as txn:
                txn.cursor(db=chunks).putmulti(items, overwrite=False)
                txn.put(bytes.fromhex(pack), b"", db=packs)

        self._guarded(work)

    def mark(self, state: LogState) -> None:
        """Remember that everything up to `state` is in."""

        def work() -> None:
            environment, _, _, meta = self._databases()
            with environment.begin(db=meta, write=True) as txn:
                txn.put(b"layout", LAYOUT)
                txn.put(b"applied", _APPLIED.pack(state.sequence, state.head))

        self._guarded(work)

    def get(self, digest: Digest) -> Place | None:
        """Where the chunk is, None when no pack that is known has it."""

        def work() -> bytes | None:
            environment, chunks, _, _ = self._databases()
            with environment.begin(db=chunks) as txn:
                value: bytes | None = txn.get(digest)
                return value

        value = self._guarded(work)
        if value is None:
            return None
        pack, *fields = _PLACE.unpack(value)
        return Place(pack.hex(), FooterRow(digest, *fields))

    def items(self) -> Iterator[tuple[Digest, str]]:
        """(digest, pack) of everything, sorted by digest."""
        environment, chunks, _, _ = self._databases()
        with environment.begin(db=chunks) as txn:
            for key, value in txn.cursor():
                yield key, _PLACE.unpack(value)[0].hex()

    def close(self) -> None:
        """Let go of it in this process."""
        _forget(self.path)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.cleanup()
