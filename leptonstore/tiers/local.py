"""A directory as a tier and as a store's home.

    config                     the store's settings
    log/00000000000000000001   entries of the log, one file each, created if absent
    snapshots/<sequence>       the log's state at an entry
    keys/<32 hex>              wrapped keys of an encrypted store
    HEAD                       a hint: the last sequence that somebody saw
    packs/<2 hex>/<32 hex>.pack
    damaged/<32 hex>.pack      what `repair` took out of use; kept for people, read by nothing
    writers/<32 hex>           what live writers ask garbage collection to spare; locked by them
    leases/<32 hex>            commits that live readers hold; locked by them
    reserve                    space that garbage collection may use when the disk is full
    tmp/                       files being written

Packs are read with pread through a bounded set of open files; nothing is mapped, so a truncated file is an error and not a
signal.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, NotPermitted, StoreFull
from leptonstore.tiers import durable
from leptonstore.tiers.direct import ALIGN, Appender, ThreadMemory, append_buffers
from leptonstore.tiers.open_files import OpenFile, open_files
from leptonstore.tiers.roles import StoreHome

RESERVE = "reserve"
_PACK = re.compile(r"([0-9a-f]{32})\.pack")


class LocalPackSink:
    """A pack being written under tmp/: in large writes around the page cache, by a thread of the tier's."""

    def __init__(self, path: Path, tmp: Path, executor: Callable[[], Executor]) -> None:
        durable.make_directory(path.parent)
        self._file = durable.NewFile(path, tmp)
        self._reading_fd = self._file.reopen()
        self._appender = Appender(self._file.fd, self._reading_fd, append_buffers, executor)

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`. Raises StoreFull, also of an earlier write."""
        with durable.failures_named(self._file.path):
            self._appender.append(*parts)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written, before the seal or after. Raises StoreFull of an earlier write."""
        with durable.failures_named(self._file.path):
            return self._appender.read(offset, length)

    def seal(self) -> None:
        """Publish the pack. Raises StoreFull, or FormatDamaged when the random id is taken (never in practice)."""
        with durable.failures_named(self._file.path):
            self._file.length = self._appender.finish()
        if not self._file.publish():
            raise FormatDamaged(f"{self._file.path} exists already: ids of packs are never reused")

    def abort(self) -> None:
        """Remove the temporary and close."""
        self._appender.settle()
        self._file.abort()
        if self._reading_fd >= 0:
            os.close(self._reading_fd)
            self._reading_fd = -1


@contextlib.contextmanager
def _readable(place: Path) -> Iterator[None]:
    """A file that this user may not read is not a damaged one."""
    try:
        yield
    except PermissionError as error:
        raise NotPermitted(
            f"this user may not read {place} ({error.strerror}): ask its owner to let your group read it (`chmod -R g+rX`)"
        ) from None


class LocalTier:
    """PackPruner and HomePruner over a directory that exists. Any thread; any number of processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tmp = root / "tmp"
        self._files = open_files(root)
        self._lock, self._memory = threading.Lock(), ThreadMemory()
        self._disk: ThreadPoolExecutor | None = None  # writes packs

    @property
    def url(self) -> str:
        """The directory."""
        return str(self.root)

    def contents(self) -> list[str] | None:
        """Names right below it, None when it does not exist. Raises BadInput when it is a file."""
        try:
            with _readable(self.root):
                return os.listdir(self.root)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise BadInput(f"{self.url} is a file: a store needs a directory") from None

    # -- documents -----------------------------------------------------------------------------------------------

    def read_document(self, name: str, bytes_max: int) -> bytes | None:
        """The document, None when there is none. Raises FormatDamaged when it is longer than `bytes_max`."""
        try:
            with _readable(self.root / name), open(self.root / name, "rb") as file:
                data = file.read(bytes_max + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > bytes_max:
            raise FormatDamaged(f"{self.root / name} has more than {bytes_max} bytes")
        return data

    def documents(self, folder: str) -> list[str]:
        """Names of the documents in `folder`, sorted."""
        try:
            with _readable(self.root / folder):
                return sorted(os.listdir(self.root / folder))
        except FileNotFoundError:
            return []

    def create_document(self, name: str, data: bytes) -> bool:
        """Create if absent, atomically and durably."""
        durable.make_directory(self._tmp)
        durable.make_directory((self.root / name).parent)
        return durable.create_file(self.root / name, data, self._tmp)

    def replace_document(self, name: str, data: bytes) -> None:
        """Create or replace a hint."""
        durable.make_directory(self._tmp)
        durable.make_directory((self.root / name).parent)
        durable.replace_file(self.root / name, data, self._tmp)

    def confirm_documents(self, folder: str) -> None:
        """Make what stands in `folder` durable, whoever created it."""
        if (self.root / folder).is_dir():
            durable.sync_directory(self.root / folder)

    def delete_document(self, name: str) -> None:
        """Remove a document, durably; no error when it is not there."""
        path = self.root / name
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            durable.sync_directory(path.parent)

    # -- packs ---------------------------------------------------------------------------------------------------

    def path_of(self, pack: str) -> Path:
        """Where a pack lies."""
        return self.root / "packs" / pack[:2] / f"{pack}.pack"

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when it is not here."""
        try:
            with _readable(self.path_of(pack)):
                return self.path_of(pack).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only where the pack ends."""
        with self._files.lock:
            file = self._files.get(pack) or self._opened(pack)
        return os.pread(file.fd, length, offset)

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """`read` that leaves the page cache as it is; what is there is taken from there. The calling thread's until its next
        call."""
        with self._files.lock:
            file = self._files.get(pack) or self._opened(pack)
            around = file.around(self.path_of(pack)) if length >= limits.DIRECT_READ_BYTES_MIN else ()
        if not around:
            return os.pread(file.fd, length, offset)
        cached, direct = around
        start = offset - offset % ALIGN
        memory = self._memory.take(offset + length - start)
        with contextlib.suppress(OSError):  # BlockingIOError: it is not in memory; others: nobody can tell
            if os.preadv(cached, [memory[:length]], offset, os.RWF_NOWAIT) == length:
                return memory[:length]
        with contextlib.suppress(OSError):
            if os.preadv(direct, [memory], start) >= offset + length - start:
                return memory[offset - start : offset - start + length]
        return os.pread(file.fd, length, offset)

    def _opened(self, pack: str) -> OpenFile:
        """Under the lock of the open files."""
        with _readable(self.path_of(pack)):
            return self._files.open(pack, self.path_of(pack), self)

    def packs(self) -> Iterator[str]:
        """Ids of all sealed packs, in no order."""
        for folder in self.documents("packs"):
            for name in self.documents(f"packs/{folder}"):
                match = _PACK.fullmatch(name)
                if match:
                    yield match[1]

    def create_pack(self, pack: str) -> LocalPackSink:
        """Begin a pack under a new random id."""
        durable.make_directory(self._tmp)
        return LocalPackSink(self.path_of(pack), self._tmp, self._disk_thread)

    def _disk_thread(self) -> Executor:
        with self._lock:
            if self._disk is None:
                self._disk = ThreadPoolExecutor(1, "lepton-disk")
            return self._disk

    def delete_pack(self, pack: str) -> None:
        """Remove a pack; no error when it is not there. Raises NotPermitted."""
        self.forget_pack(pack)
        with durable.failures_named(self.path_of(pack)):
            self.path_of(pack).unlink(missing_ok=True)

    def forget_pack(self, pack: str) -> None:
        """Read it anew from the next time on: its file was removed, or is another one now. Its space is free only then."""
        self._files.forget(pack)

    def set_aside(self, pack: str) -> Path | None:
        """Move a pack's file to damaged/ and return where it is now; None when it is not there. Raises NotPermitted."""
        self.forget_pack(pack)
        to = self.root / "damaged" / self.path_of(pack).name
        try:
            durable.move_file(self.path_of(pack), to)
        except FileNotFoundError:
            return None
        return to

    # -- locks ---------------------------------------------------------------------------------------------------

    def hold_lock(self, folder: str, data: bytes) -> durable.LockFile:
        """A new locked document in `folder`. Raises StoreFull or NotPermitted."""
        durable.make_directory(self._tmp)
        durable.make_directory(self.root / folder)
        return durable.LockFile(self.root / folder / secrets.token_hex(16), data, self._tmp)

    def live_locks(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """Name -> content of the documents in `folder` whose makers live; those of dead ones are removed."""
        found = {}
        for name in self.documents(folder):
            if durable.remove_if_dead(self.root / folder / name):
                continue
            data = self.read_document(f"{folder}/{name}", bytes_max)
            if data is not None:
                found[name] = data
        return found

    # -- the reserve ---------------------------------------------------------------------------------------------

    def has_reserve(self) -> bool:
        """Whether the reserve is there in full."""
        try:
            return (self.root / RESERVE).stat().st_size >= limits.RESERVE_BYTES
        except FileNotFoundError:
            return False

    def release_reserve(self) -> None:
        """Give the reserved space to what comes next: for a gc on a full disk, which frees more than it takes."""
        with contextlib.suppress(FileNotFoundError), durable.failures_named(self.root / RESERVE):
            os.unlink(self.root / RESERVE)

    def restore_reserve(self) -> bool:
        """Make the reserve unless it is there: whether it is there now. False when there is no space (or permission)."""
        if self.has_reserve():
            return True
        try:
            self.release_reserve()  # one of another size
            durable.make_directory(self._tmp)
            durable.preallocate_file(self.root / RESERVE, limits.RESERVE_BYTES, self._tmp)
        except (StoreFull, NotPermitted, OSError):
            return False
        return True

    def remove_dead_temporaries(self, young_too: bool = False) -> int:
        """Remove what crashed writers left under tmp/. Returns how many files."""
        return durable.remove_dead_temporaries(self._tmp, young_too) if self._tmp.is_dir() else 0

    def after_fork(self) -> None:
        """In a child process: another thread of the parent may have held the lock. Descriptors stay usable."""
        self._lock, self._disk = threading.Lock(), None

    def close(self) -> None:
        """Close what is open; reading again reopens."""
        with self._lock:
            disk, self._disk = self._disk, None
            if disk is not None:
                disk.shutdown()
        self._files.leave(self)


def is_same_place(tier: StoreHome, other: StoreHome) -> bool:
    """Whether both are one place, also when a link leads there."""
    if isinstance(tier, LocalTier) and isinstance(other, LocalTier):
        return tier.root.resolve() == other.root.resolve()
    return tier.url == other.url
