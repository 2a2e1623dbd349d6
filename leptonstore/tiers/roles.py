"""The roles that a tier may play. Each caller asks for the one that it uses; a read-only tier never stubs a write.

Common to all: methods may be called from any thread. A name is a relative path of [a-z0-9/_-] that the caller has checked. A tier knows
bytes and names only; it never interprets what it keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from leptonstore.digest import Buffer


class PackSink(Protocol):
    """A pack being written. Nothing of it is visible before `seal`; dropping it leaves nothing but a temporary."""

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`. Raises StoreFull."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written, before the seal or after."""

    def seal(self) -> None:
        """Make the pack visible, whole and durable. Raises StoreFull; then the pack does not exist."""

    def abort(self) -> None:
        """Forget what was written. May be called after anything, also twice."""


@runtime_checkable
class PackReader(Protocol):
    """Reads packs."""

    @property
    def url(self) -> str:
        """How people name this tier."""

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when it is not here."""

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only where the pack ends. Raises FileNotFoundError or OSError."""

    def packs(self) -> Iterator[str]:
        """Ids of all sealed packs, in no order."""


@runtime_checkable
class PackStreamer(PackReader, Protocol):
    """Reads packs, also for those who go through much data once."""

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """`read` of bytes that nobody is expected to read again soon: they may go around caches.

        The result is the calling thread's until its next call.
        """


@runtime_checkable
class PackWriter(PackReader, Protocol):
    """Adds packs; never changes one."""

    def create_pack(self, pack: str) -> PackSink:
        """Begin a pack under a new random id."""


@runtime_checkable
class PackPruner(PackWriter, Protocol):
    """Removes packs."""

    def delete_pack(self, pack: str) -> None:
        """Remove a pack; no error when it is not there."""


@runtime_checkable
class FreeSpace(Protocol):
    """Keeps the bytes of packs that were deleted until others take their place, and can zero them."""

    def wipe_free(self) -> int:
        """Zero everything that is in no pack, durably; returns the bytes of what was not zero."""

    def free_not_zero(self) -> int:
        """Bytes of what is in no pack and is not zero: an upper bound."""


@runtime_checkable
class HomeReader(Protocol):
    """Reads the small documents of a store's home: config, log entries, snapshots, hint."""

    def read_document(self, name: str, bytes_max: int) -> bytes | None:
        """The document, None when there is none. Raises FormatDamaged when it is longer than `bytes_max`."""

    def documents(self, folder: str) -> list[str]:
        """Names of the documents in `folder`, sorted, without the folder."""


@runtime_checkable
class HomeWriter(HomeReader, Protocol):
    """Adds documents. `create_document` is the one primitive that writers agree by."""

    def create_document(self, name: str, data: bytes) -> bool:
        """Create if absent, atomically and durably: True, or False when the name exists. Raises StoreFull."""

    def replace_document(self, name: str, data: bytes) -> None:
        """Create or replace, atomically; need not survive power loss (hints only)."""

    def confirm_documents(self, folder: str) -> None:
        """Make what stands in `folder` durable: its creator may have died, or be still, between creating and syncing it."""


@runtime_checkable
class HomePruner(HomeWriter, Protocol):
    """Removes documents that may go: wrapped keys, old snapshots. Never an entry of the log."""

    def delete_document(self, name: str) -> None:
        """Remove a document, durably; no error when it is not there."""


class HeldLock(Protocol):
    """A document that says: its maker lives. It ends with `release`, or with the process."""

    name: str

    def append(self, data: bytes) -> None:
        """Add to the document: a reader sees a beginning of what was written. Need not survive power loss."""

    def release(self) -> None:
        """Take the document away. May be called twice."""

    def forget(self) -> None:
        """In a child process: let go of what the parent holds."""


@runtime_checkable
class LockHome(HomeReader, Protocol):
    """Tells documents of live processes from those of dead ones, without a clock of any of them."""

    def hold_lock(self, folder: str, data: bytes) -> HeldLock:
        """A new document in `folder`, under a random name, that is live as soon as others can see it."""

    def live_locks(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """Name -> content of the documents in `folder` whose makers live. Those of dead ones are removed."""


@runtime_checkable
class StoreHome(PackPruner, PackStreamer, HomePruner, LockHome, Protocol):
    """What a store needs of the tier that it lives on."""

    def contents(self) -> list[str] | None:
        """Names right below it (of many: some), None when there is nothing there. Raises BadInput where no store can be."""

    def set_aside(self, pack: str) -> Path | str | None:
        """Take a damaged pack out of use and keep its bytes; where they are now, None when it is not there."""

    def has_reserve(self) -> bool:
        """Whether gc could append to the log on a full tier."""

    def release_reserve(self) -> None:
        """Give the reserved space to what comes next."""

    def restore_reserve(self) -> bool:
        """Make the reserve unless it is there: whether it is there now."""

    def remove_dead_temporaries(self, young_too: bool = False) -> int:
        """Remove what crashed processes left half-written. Returns how many files or objects.

        young_too: also what is so young that it could be that of a process which is about to show that it lives.
        """

    def after_fork(self) -> None:
        """In a child process: forget what only the parent may use."""

    def close(self) -> None:
        """Let go of files and threads; using it again brings them back."""


@runtime_checkable
class ManyReader(PackReader, Protocol):
    """Reads several ranges better than one by one: where a request costs more than its bytes."""

    def read_many(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Buffer]:
        """What `read` returns for each (pack, offset, length), in their order. Raises as `read`, on the way too."""


@runtime_checkable
class Distrusting(PackReader, Protocol):
    """Keeps copies of what it reads, or is sent copies by others, of which one may be damaged."""

    def distrust(self, pack: str) -> bool:
        """What was read of this pack is damaged: read it where it is kept, from now on. False when it was read there."""
