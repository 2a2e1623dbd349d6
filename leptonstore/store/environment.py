"""LMDB environments of indexes: opened once per process, closed over a fork, grown without pulling the map from under a reader.

Invariants:
- One environment per file and process (LMDB forbids a second one); every Index of that place shares it, the last closes it.
- A read transaction holds one of a few locks (stripes), a write transaction holds the writer's lock. Whoever remaps, closes or forks takes
  all of them first: so no transaction is open then. In a forked child the inherited environment has none that it could abort
  in the parent's reader table; it is closed there and reopened on use.
- A read transaction lasts as long as one call of `read`; py-lmdb keeps none for later (`max_spare_txns=0`): the reader slot of a kept
  one would be given back by a child that closes the environment, while the parent goes on using it.
- Files are opened, and moved away when they are damaged, under a lock between processes: nobody pairs an old lock file with new data.

Databases of an index, all small integers little-endian in values and big-endian in keys:

    chunks   digest                 -> place: pack's ordinal u32, offset u64, stored u32, raw u32, kind, codec, flags, plane width u8,
                                       dictionary u32. The place that came first.
    copies   digest, ordinal u32    -> place. Further places of the same digest: few.
    packs    pack id                -> ordinal u32, how far it is u8: 0 its rows are being added, 1 they are in, 2 it has none yet, because
                                       its tier did not answer
    names    ordinal u32            -> pack id. Ordinals are never used again as long as the file lives.
    members  ordinal u32            -> the first 8 bytes of the digest of each of its rows: how a removed pack finds them
    meta     "layout", "applied" (sequence u64 and digest of the log entry up to which this is complete), "next" ordinal u64,
             "away": how many packs have none yet u64
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar, TypeVar

import lmdb

from leptonstore import limits
from leptonstore.errors import StoreFull

_T = TypeVar("_T")
_DATA = "data.mdb"
_CAN_MAKE_ROOM = hasattr(os, "posix_fallocate")  # Linux
_LOOKS, _LOOK_AGAIN_S = 5, 0.005
_FULL_BYTES = 1 << 20  # of free space: less than this, and a failed write is put down to that
# What LMDB says of a file that is not (any longer) what it wrote.
DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
    lmdb.IncompatibleError,
)


class Environment:
    """One open LMDB environment. Methods: any thread; `work` must neither block nor call another method of this.

    databases: their names, each an attribute of an open one; transactions and `get` use the first unless told otherwise.
    """

    databases: ClassVar[tuple[str, ...]] = ("chunks", "copies", "packs", "names", "members", "meta")
    chunks: Any
    copies: Any
    packs: Any
    names: Any
    members: Any
    meta: Any

    def __init__(self, path: str) -> None:
        # Databases are opened here: LMDB allows no other transaction meanwhile (two threads in `open_db` hang).
        self._lmdb = lmdb.open(
            path,
            map_size=limits.INDEX_MAP_BYTES,
            max_dbs=len(self.databases),
            max_readers=limits.INDEX_READERS_MAX,
            readahead=False,
            metasync=False,  # power loss may take the last transaction, which is synced again from the log
            max_spare_txns=0,
        )
        try:
            _require_whole(self._lmdb, path)
            self._lmdb.reader_check()
            for name in self.databases:
                setattr(self, name, self._lmdb.open_db(name.encode()))
            self._first = getattr(self, self.databases[0])
            self.path = path
            self.file = _file_of(path)
            self._fill_up()
        except BaseException:
            self._lmdb.close()
            raise
        self.pack_names: dict[int, str] = {}  # of this file's ordinals; bounded
        self.closed = False
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._writing = threading.Lock()
        self._stripes = tuple(threading.Lock() for _ in range(limits.INDEX_STRIPES))

    # -- transactions --------------------------------------------------------------------------------------------

    def read(self, work: Callable[[Any], _T]) -> _T:
        """`work(txn)` in a read transaction whose default database is the first."""
        for attempt in range(3):
            try:
                # Thread ids are addresses of stacks: the lower bits are all the same.
                with self._stripes[(get_ident() >> 12) % len(self._stripes)]:
                    txn = self._lmdb.begin(self._first)
                    try:
                        return work(txn)
                    finally:
                        txn.abort()
                        del txn  # the slot in the reader table is given back with the object
            except lmdb.MapResizedError:
                self._resize(lambda size: 0)  # another process has grown it
            except lmdb.ReadersFullError:
                if attempt:
                    raise
                self._lmdb.reader_check()  # slots of processes that were killed
        raise lmdb.MapResizedError(f"{self.path} grows faster than it can be read")

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` in the first database: `read`, without its closure."""
        try:
            with self._stripes[(get_ident() >> 12) % len(self._stripes)]:
                txn = self._lmdb.begin(self._first)
                try:
                    value: bytes | None = txn.get(key)
                    return value
                finally:
                    del txn
        except (lmdb.MapResizedError, lmdb.ReadersFullError):
            return self.read(lambda txn: txn.get(key))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys` in the first database, from one read transaction."""

        def work(txn: Any) -> list[bytes | None]:
            get = txn.get
            return [get(key) for key in keys]

        return self.read(work)

    def write(self, work: Callable[[Any], _T]) -> _T:
        """`work(txn)` in a write transaction; done again from its start after the map had to grow. Raises StoreFull."""
        while True:
            with self._writing:
                try:
                    with self._lmdb.begin(write=True) as txn:
                        done = work(txn)
                    self._fill_up()
                    return done
                except lmdb.MapFullError:
                    self._remap(lambda size: size * 2)
                except lmdb.MapResizedError:
                    self._remap(lambda size: 0)
                except lmdb.Error as error:
                    # A write that was cut short because the disk filled up comes as an input/output error.
                    if not isinstance(error, lmdb.DiskError) and shutil.disk_usage(self.path).free >= _FULL_BYTES:
                        raise
                    raise StoreFull(
                        f"no space left for {self.path} ({error}): free some space there, or set XDG_CACHE_HOME to "
                        "a directory on another disk, and run the command again; the store itself is not touched by this"
                    ) from None

    def _fill_up(self) -> None:
        """Make the file as long as LMDB counts it. Pages at its end that a transaction took and gave back are never written: without this,
        a file that was cut short could not be told from such a one. Room is made, nothing written: others may write there meanwhile."""
        if not _CAN_MAKE_ROOM:
            return
        wanted = _bytes_of(self._lmdb)
        with contextlib.suppress(OSError):  # deleted meanwhile, or no room: then the next process starts from empty
            file = os.path.join(self.path, _DATA)
            size = os.path.getsize(file)
            if size >= wanted or self.file != _file_of(self.path):
                return
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(descriptor, size, wanted - size)
            finally:
                os.close(descriptor)

    # -- stopping the world ----------------------------------------------------------------------------------------

    def _resize(self, size_of: Callable[[int], int]) -> None:
        with self._writing:
            self._remap(size_of)

    def _remap(self, size_of: Callable[[int], int]) -> None:
        """Under the writer's lock. A size of 0 is the one that the file has."""
        with self._no_readers():
            self._lmdb.set_mapsize(size_of(self._lmdb.info()["map_size"]))

    @contextlib.contextmanager
    def _no_readers(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for stripe in self._stripes:
                held.enter_context(stripe)
            yield

    def close(self) -> None:
        """Close it when nobody is in it."""
        with self._writing, self._no_readers():
            self.closed = True
            self._lmdb.close()

    def before_fork(self) -> None:
        """Wait until nobody is in it, and keep others out."""
        self._writing.acquire()
        for stripe in self._stripes:
            stripe.acquire()

    def after_fork_in_parent(self) -> None:
        """Let others in again."""
        for stripe in self._stripes:
            stripe.release()
        self._writing.release()

    def after_fork_in_child(self) -> None:
        """The child's only thread comes from `before_fork`: no transaction is open."""
        self.closed = True
        self._lmdb.close()

    def info(self) -> dict[str, Any]:
        """LMDB's figures: map size, last page, readers."""
        return {**self._lmdb.info(), "page_bytes": self._lmdb.stat()["psize"]}


# -- the registry ----------------------------------------------------------------------------------------------------

_E = TypeVar("_E", bound=Environment)
_environments: dict[str, Environment] = {}  # real path -> the process's environment
_lock = threading.Lock()  # taken before any lock of an environment
_flocks: set[int] = set()  # file descriptors that hold a lock between processes


def _require_whole(environment: Any, path: str) -> None:
    """Raise lmdb.CorruptedError for a file that was cut short: a page beyond the end of a mapped file ends the process (SIGBUS), and one of
    zeros, too (an assertion of LMDB's)."""
    for _ in range(_LOOKS if _CAN_MAKE_ROOM else 0):
        size, wanted = os.path.getsize(os.path.join(path, _DATA)), _bytes_of(environment)
        if size >= wanted:
            return
        time.sleep(_LOOK_AGAIN_S)  # another process may be between its write and `_fill_up`
    if _CAN_MAKE_ROOM:
        raise lmdb.CorruptedError(f"{path} has {size} of {wanted} bytes")


def _bytes_of(environment: Any) -> int:
    """Of all pages that the last transaction counts. Reads the first two."""
    return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])


def _file_of(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(os.path.join(path, _DATA))
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def between_processes(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file beside directory `path`; the system gives it back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path.parent / f"{path.name}.{what}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _flocks.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        if fd in _flocks:  # not so in a child that was forked meanwhile
            _flocks.discard(fd)
            os.close(fd)


def open_environment(path: Path, user: object, kind: type[_E] = Environment) -> _E:  # type: ignore[assignment]
    """The process's environment for directory `path`, made when it does not exist. Raises OSError or lmdb.Error.

    `user` shares it until `leave_environment`, or as long as it lives. kind: which databases it has; the same for all users of a path.
    """
    key = os.path.realpath(path)
    with _lock:
        environment = _environments.get(key)
        if environment is not None and environment.file != _file_of(key):
            environment.close()  # somebody replaced or deleted the files: ours are no longer what others see
            environment = None
        if environment is None:
            _close_unused()
            with between_processes(Path(key), "open"):
                os.makedirs(key, exist_ok=True)
                environment = _environments[key] = kind(key)
        assert isinstance(environment, kind)
        environment.users.add(user)
        return environment


def _close_unused() -> None:
    """Those whose users are gone without a word (a store that was dropped and not closed): three descriptors and a mapping each."""
    for key, environment in list(_environments.items()):
        if not environment.users:
            environment.close()
            del _environments[key]


def leave_environment(environment: Environment, user: object) -> None:
    """`user` needs it no longer; the last one closes it."""
    with _lock:
        environment.users.discard(user)
        if not environment.users and not environment.closed:
            environment.close()
            if _environments.get(environment.path) is environment:
                del _environments[environment.path]


def delete_environment(path: Path) -> None:
    """Move its files away and delete them. Other processes that have them open go on with what they have until they look."""
    key = os.path.realpath(path)
    with _lock, between_processes(Path(key), "open"):
        environment = _environments.pop(key, None)
        if environment is not None:
            environment.close()
        gone = f"{key}.gone-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(key, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _before_fork() -> None:
    _lock.acquire()
    for environment in _environments.values():
        environment.before_fork()


def _after_fork_in_parent() -> None:
    for environment in _environments.values():
        environment.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    for environment in _environments.values():
        environment.after_fork_in_child()
    _environments.clear()
    for fd in _flocks:  # the parent's: ours would keep them when it ends
        with contextlib.suppress(OSError):
            os.close(fd)
    _flocks.clear()
    _lock = threading.Lock()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@atexit.register
def _close_all() -> None:
    with _lock:
        for environment in _environments.values():
            environment.close()
        _environments.clear()
