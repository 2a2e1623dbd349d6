"""The memo: results that are kept on this host, so that what did not change is not computed again.

    rows           a key for each row -> block, row in it        blocks hold what a chain of operations made of rows (memo_block.py)
    small values   a key -> up to 64 KiB                         statistics of a page, digests of its values

    <the store's cache directory>/memo/index/          LMDB: the databases of `_Places`
                                       blocks/<16 hex>  files that are mapped; never changed

A key is 32 bytes and says all that the result depends on: whoever makes it answers for that. Nothing here is the truth: a block or a
value that is damaged, cut short or gone is absent, and is computed again. Any number of processes read and write; one that is killed leaves
at most a file that nobody lists, which the next eviction removes (its writer's lock tells that it is dead). Bounded: the blocks that were
not used for the longest time go first, whole files at a time.

Of an encrypted store there is none, unless its cache directory is in RAM: values would lie on the disk in the clear.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.cache import directory
from leptonstore.dataset.forked import renew_in_children
from leptonstore.digest import DIGEST_BYTES, digest_of
from leptonstore.errors import BadInput, FormatDamaged, NotPermitted, StoreFull
from leptonstore.process.memo_block import Block, write_block
from leptonstore.process.outcomes import Outcomes
from leptonstore.store import Store
from leptonstore.store.environment import (
    DAMAGE,
    Environment,
    between_processes,
    delete_environment,
    open_environment,
)
from leptonstore.tiers.durable import replace_file

FOLDER = "memo"  # `lepton erase` removes it (dataset/erase.py)
_T = TypeVar("_T")
_PLACE = np.dtype([("block", "V8"), ("row", "<u4")])  # of a row
_ROW = struct.Struct("<I")
_BLOCK = struct.Struct("<QQI")  # of a block: clock of its last use, bytes that are counted for it, rows
_NUMBER = struct.Struct("<Q")
_CHECK_BYTES = 16
_BUDGET, _BYTES, _CLOCK, _YOUNG, _YOUNG_BYTES = b"budget", b"bytes", b"clock", b"young", b"young bytes"


class _Places(Environment):
    """rows: key -> _PLACE. blocks: name 8 -> _BLOCK. small0, small1: key -> check 16 | value; meta says which of the two is the younger."""

    databases = ("rows", "blocks", "small0", "small1", "meta")
    rows: Any
    blocks: Any
    small0: Any
    small1: Any


class Places(NamedTuple):
    """Where the outcomes of some rows are said to be. found: of which rows that is known; of these: a block's name and the row in it."""

    found: NDArray[np.bool_]
    blocks: NDArray[np.void]
    rows: NDArray[np.int64]


class Usage(NamedTuple):
    """What a memo holds. bytes: of files and index, as they are counted against the budget; values: small ones, about."""

    bytes: int
    budget_bytes: int
    blocks: int
    rows: int
    values: int


class Memo:
    """Of one store, on this host. Make one with `Memo.of`. Any thread; after a fork it reopens by itself."""

    def __init__(self, path: Path, ram_only: bool = False) -> None:
        """Raises BadInput (not in RAM where that is asked for), NotPermitted, OSError."""
        directory.prepare(path, ram_only)
        self.path = path
        self._folder = path / "blocks"
        self._places: _Places | None = None
        self._mapped: OrderedDict[bytes, Block] = OrderedDict()
        self._touched: set[bytes] = set()
        self._lock = threading.Lock()
        renew_in_children(self)
        if not self._guarded(lambda places: True, False):
            raise NotPermitted(f"{path} cannot be used to keep results in")

    @classmethod
    def of(cls, store: Store) -> Memo | None:
        """The memo of a store on this host; None where there can be none (see above), or the cache directory cannot be used."""
        path = store.cache_path(FOLDER)
        key = os.path.realpath(path), store.encrypted
        with _memos_lock.held():
            memo = _memos.get(key)
            if memo is None:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    memo = _memos[key] = cls(path, ram_only=store.encrypted)
                except (BadInput, NotPermitted, OSError):
                    return None
            return memo

    # -- small values ----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The small value of a key, None when it is not there."""
        return self.get_many([key])[0]

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a small value; nothing happens where there is no room for it, or it is larger than MEMO_VALUE_BYTES_MAX."""
        self.put_many({key: value})

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """`get` for each of `keys`, from one state of the memo. What was found in the older generation comes into the younger."""

        def read(places: _Places, txn: Any) -> tuple[list[bytes | None], dict[bytes, bytes]]:
            young, old = _generations(places, txn)
            found: list[bytes | None] = []
            ageing: dict[bytes, bytes] = {}
            for key in keys:
                value = _checked(key, txn.get(key, db=young))
                if value is None:
                    value = _checked(key, txn.get(key, db=old))
                    if value is not None:
                        ageing[key] = value
                found.append(value)
            return found, ageing

        none: tuple[list[bytes | None], dict[bytes, bytes]] = ([None] * len(keys), {})
        found, ageing = self._guarded(lambda places: places.read(lambda txn: read(places, txn)), none)
        if ageing:
            self.put_many(ageing)
        return found

    def put_many(self, values: Mapping[bytes, bytes]) -> None:
        """`put` for each, in one transaction: as dear as one."""
        fitting = {key: value for key, value in values.items() if len(value) <= limits.MEMO_VALUE_BYTES_MAX}

        def write(places: _Places, txn: Any) -> None:
            young, old = _generations(places, txn)
            held = _number(places, txn, _YOUNG_BYTES)
            share = int(_number(places, txn, _BUDGET) * limits.MEMO_VALUES_SHARE)
            most = max(limits.MEMO_VALUES_BYTES_MAX, share) // 2
            for key, value in fitting.items():
                size = len(value) + limits.MEMO_ROW_BYTES
                if held + size > most:
                    txn.drop(old, delete=False)
                    young, old, held = old, young, 0
                    _set(places, txn, _YOUNG, 1 - _number(places, txn, _YOUNG))
                if txn.put(key, _check(key, value) + value, db=young):
                    held += size
            _set(places, txn, _YOUNG_BYTES, held)

        if fitting:
            self._guarded(lambda places: places.write(lambda txn: write(places, txn)), None)

    # -- rows ------------------------------------------------------------------------------------------------------

    def places(self, keys: Sequence[bytes]) -> Places:
        """Where the outcomes of rows are said to be."""
        told: list[bytes | None] = self._guarded(lambda places: places.get_many(keys), [None] * len(keys))
        found = np.fromiter((one is not None for one in told), np.bool_, len(told))
        data = b"".join(one for one in told if one is not None)
        if len(data) != _PLACE.itemsize * int(found.sum()):  # somebody else's
            found, data = np.zeros(len(told), np.bool_), b""
        table = np.frombuffer(data, _PLACE)
        return Places(found, table["block"], table["row"].astype(np.int64))

    def outcomes(
        self,
        block: bytes,
        keys: Sequence[bytes],
        rows: Sequence[int] | NDArray[np.int64],
        types: Sequence[pa.DataType | None],
    ) -> Outcomes | None:
        """What a block holds, over its mapped file, if it has `keys` at these rows and columns of these types (None: not wanted).

        None: it is absent.
        """
        mapped = self._mapping(block)
        if mapped is None:
            return None
        try:
            held = mapped.row_keys()
            at = np.asarray(rows, np.int64)
            wanted = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, DIGEST_BYTES)
            if int(at.max()) >= mapped.rows or not bool((held[at] == wanted).all()):
                raise FormatDamaged("a memo block has other keys than its index says")
            return mapped.outcomes(types)
        except FormatDamaged:
            self._forget(block)
            return None

    def _mapping(self, block: bytes) -> Block | None:
        with self._lock:
            known = self._mapped.get(block)
            if known is not None:
                self._mapped.move_to_end(block)
            self._touched.add(block)
            due = len(self._touched) > limits.MEMO_TOUCHES_MAX
        if due:
            self.flush()
        if known is not None:
            return known
        try:
            mapped = Block(self._file(block))
        except (OSError, ValueError, FormatDamaged):
            self._forget(block)
            return None
        with self._lock:
            self._mapped[block] = mapped
            while len(self._mapped) > limits.MEMO_BLOCKS_MAPPED_MAX:
                self._mapped.popitem(last=False)
        return mapped

    def _file(self, block: bytes) -> Path:
        return self._folder / block.hex()

    def put_rows(self, keys: Sequence[bytes], outcomes: Outcomes) -> None:
        """Keep what became of rows, at most ROW_GROUP_ROWS_MAX; nothing happens where there is no room."""
        assert len(keys) == len(outcomes) <= limits.ROW_GROUP_ROWS_MAX
        size = sum(column.nbytes for column in outcomes.columns if column is not None) + outcomes.said.nbytes
        budget = self._held()[1]
        if size > budget // 4 or not self._device_has(size):
            return
        block = secrets.token_bytes(8)
        file = self._file(block)
        fd = -1
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)  # until it is listed: whoever cleans up leaves it alone
            with open(fd, "wb", closefd=False) as out:
                size = write_block(out, b"".join(keys), outcomes)
            if not self._list(block, keys, size):
                file.unlink(missing_ok=True)
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        finally:
            if fd >= 0:
                os.close(fd)

    def _list(self, block: bytes, keys: Sequence[bytes], size: int) -> bool:
        place = [(key, block + _ROW.pack(row)) for row, key in enumerate(keys)]
        counted = size + limits.MEMO_ROW_BYTES * len(keys)

        def write(places: _Places, txn: Any) -> bool:
            for key, value in sorted(place):
                txn.put(key, value, db=places.rows)
            clock = self._touch(places, txn)
            txn.put(block, _BLOCK.pack(clock, counted, len(keys)), db=places.blocks)
            held = _number(places, txn, _BYTES) + counted
            _set(places, txn, _BYTES, held)
            return True

        listed = self._guarded(lambda places: places.write(lambda txn: write(places, txn)), False)
        if listed:
            held, budget = self._held()
            if held > budget:
                self.trim(int(budget * (1 - limits.MEMO_SPARE_SHARE)))
        return listed

    def _touch(self, places: _Places, txn: Any) -> int:
        """Write down which blocks were used; returns the clock."""
        with self._lock:
            touched, self._touched = self._touched, set()
        clock = _number(places, txn, _CLOCK) + 1
        _set(places, txn, _CLOCK, clock)
        for block in sorted(touched):
            known = txn.get(block, db=places.blocks)
            if known is not None:
                txn.put(block, _BLOCK.pack(clock, *_BLOCK.unpack(known)[1:]), db=places.blocks)
        return clock

    def flush(self) -> None:
        """Write down what was used, so that it is not what goes first."""
        if self._touched:
            self._guarded(lambda places: places.write(lambda txn: self._touch(places, txn)), 0)

    # -- room ------------------------------------------------------------------------------------------------------

    def trim(self, bytes_max: int) -> None:
        """Remove what was not used for the longest time, until no more than `bytes_max` are held; and files that nobody lists."""

        def choose(places: _Places, txn: Any) -> list[tuple[bytes, int]]:
            known = [(name, _BLOCK.unpack(value)) for name, value in txn.cursor(db=places.blocks)]
            left, out = _number(places, txn, _BYTES) - bytes_max, []
            for name, (_, counted, _) in sorted(known, key=lambda one: (one[1][0], one[0])):
                if left <= 0:
                    break
                out.append((name, counted))
                left -= counted
            return out

        with between_processes(self.path / "blocks", "trim"):
            none: list[tuple[bytes, int]] = []
            for name, _ in self._guarded(lambda places: places.read(lambda txn: choose(places, txn)), none):
                self._forget(name)
            self._sweep()

    def _forget(self, block: bytes) -> None:
        """Take a block out of the index, then remove its file."""
        with self._lock:
            mapped = self._mapped.pop(block, None)
            self._touched.discard(block)
        keys: Iterable[bytes] = ()
        with contextlib.suppress(OSError, ValueError, FormatDamaged):
            keys = sorted(row.tobytes() for row in (mapped or Block(self._file(block))).row_keys())

        def write(places: _Places, txn: Any) -> None:
            known = txn.get(block, db=places.blocks)
            if known is None:
                return
            for (
                key
            ) in keys:  # of one that is damaged they stay, lead nowhere, and are put again with what is computed again
                if (txn.get(key, db=places.rows) or b"")[:8] == block:
                    txn.delete(key, db=places.rows)
            txn.delete(block, db=places.blocks)
            _set(places, txn, _BYTES, max(0, _number(places, txn, _BYTES) - _BLOCK.unpack(known)[1]))

        self._guarded(lambda places: places.write(lambda txn: write(places, txn)), None)
        with contextlib.suppress(OSError):
            self._file(block).unlink()

    def _sweep(self) -> None:
        """Remove files that are not listed and whose writer is dead."""
        for file in list(self._folder.iterdir()):
            try:
                name = bytes.fromhex(file.name)
            except ValueError:
                continue
            if self._listed(name):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not self._listed(name):  # its writer may have listed it, and let go, meanwhile
                        file.unlink()
                finally:
                    os.close(fd)

    def _listed(self, block: bytes) -> bool:
        return self._guarded(lambda one: one.read(lambda txn: txn.get(block, db=one.blocks) is not None), True)

    def _device_has(self, size: int) -> bool:
        try:
            free = os.statvfs(self.path)
        except OSError:
            return False
        return free.f_bavail * free.f_frsize >= size + limits.MEMO_DISK_FREE_BYTES_MIN

    def _held(self) -> tuple[int, int]:
        """(bytes held, budget)."""

        def read(places: _Places, txn: Any) -> tuple[int, int]:
            return _number(places, txn, _BYTES), _number(places, txn, _BUDGET)

        return self._guarded(lambda places: places.read(lambda txn: read(places, txn)), (0, 0))

    def usage(self) -> Usage:
        """What it holds."""

        def read(places: _Places, txn: Any) -> Usage:
            entries = [txn.stat(one)["entries"] for one in (places.blocks, places.rows, places.small0, places.small1)]
            held = _number(places, txn, _BYTES) + _number(places, txn, _YOUNG_BYTES)
            return Usage(held, _number(places, txn, _BUDGET), entries[0], entries[1], entries[2] + entries[3])

        return self._guarded(lambda places: places.read(lambda txn: read(places, txn)), Usage(0, 0, 0, 0, 0))

    def set_budget(self, bytes_max: int) -> None:
        """Hold at most so many bytes of rows from now on (small values have a bound of their own). 0: keep no rows."""
        with contextlib.suppress(OSError):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path / "budget", str(bytes_max).encode(), self.path)
        self._guarded(lambda places: places.write(lambda txn: _set(places, txn, _BUDGET, bytes_max)), None)
        self.trim(bytes_max)

    def clear(self) -> int:
        """Empty it; returns the bytes that were freed. Its budget stays."""
        usage = self.usage()
        with between_processes(self.path / "blocks", "trim"):
            with self._lock:
                self._mapped.clear()
                self._touched.clear()
            self._reset()
        return usage.bytes

    # -- LMDB ------------------------------------------------------------------------------------------------------

    def _open(self) -> _Places:
        places = self._places
        if places is not None and not places.closed:
            return places
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        places = self._places = open_environment(self.path / "index", self, _Places)
        if not places.read(lambda txn: txn.get(_BUDGET, db=places.meta)):
            budget = self._asked_budget()
            places.write(lambda txn: txn.put(_BUDGET, _NUMBER.pack(budget), db=places.meta, overwrite=False))
        return places

    def _guarded(self, work: Callable[[_Places], _T], otherwise: _T) -> _T:
        """`work`; once more after starting from empty when LMDB finds its file damaged. `otherwise` where that does not help."""
        for _ in range(2):
            try:
                return work(self._open())
            # LMDB has no checksums: a number may be what no writer of ours left, and a transaction is bad after a page that it cannot read.
            except (*DAMAGE, lmdb.BadTxnError, struct.error):
                with contextlib.suppress(OSError, lmdb.Error, StoreFull):
                    self._reset()
            except lmdb.Error:
                # Another thread closed or replaced it while this one was on its way in: look again.
                if self._places is not None and not self._places.closed:
                    return otherwise
            except (OSError, StoreFull):
                return otherwise
        return otherwise

    def _asked_budget(self) -> int:
        """What `set_budget` said last, in a file that outlives the index; else the usual one."""
        with contextlib.suppress(OSError, ValueError):
            asked = int((self.path / "budget").read_bytes()[:20])
            if 0 <= asked < 1 << 63:
                return asked
        return usual_budget_bytes(self.path)

    def _reset(self) -> None:
        self._places = None
        delete_environment(self.path / "index")
        for file in list(self._folder.iterdir()):
            with contextlib.suppress(OSError):
                file.unlink()


def usual_budget_bytes(path: Path) -> int:
    """Of a new memo at `path`. Raises OSError."""
    free = os.statvfs(path)
    share = int(free.f_bavail * free.f_frsize * limits.MEMO_FREE_SHARE)
    return min(max(share, limits.MEMO_BYTES_MIN), limits.MEMO_BYTES_USUAL_MAX)


# -- what is written in LMDB -----------------------------------------------------------------------------------------


def _number(places: _Places, txn: Any, name: bytes) -> int:
    value = txn.get(name, db=places.meta)
    return 0 if value is None else int(_NUMBER.unpack(value)[0])


def _set(places: _Places, txn: Any, name: bytes, value: int) -> None:
    txn.put(name, _NUMBER.pack(value), db=places.meta)


def _generations(places: _Places, txn: Any) -> tuple[Any, Any]:
    """(the younger, the older)."""
    both = places.small0, places.small1
    return both if _number(places, txn, _YOUNG) == 0 else both[::-1]


def _check(key: bytes, value: bytes) -> bytes:
    return digest_of(key + value)[:_CHECK_BYTES]


def _checked(key: bytes, stored: bytes | None) -> bytes | None:
    if stored is None or _check(key, stored[_CHECK_BYTES:]) != stored[:_CHECK_BYTES]:
        return None
    return stored[_CHECK_BYTES:]


# -- one of each in a process ----------------------------------------------------------------------------------------


class _Lock:
    """A lock that a forked child has anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_in_children(self)

    def held(self) -> threading.Lock:
        return self._lock


_memos: dict[tuple[str, bool], Memo] = {}
_memos_lock = _Lock()
