"""The blocks that are here: in memory, on disk, or both.

a new block -> memory -> what has to leave it -> disk, if there is one -> gone
"""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Callable

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import BlockFiles, Key
from leptonstore.daemon.cluster.keep import Keep
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput

_MAPPED_FROM = 64 * 1024


class Blocks:
    """Any thread. What `read` returns stays valid when the block goes."""

    def __init__(self, ram_bytes: int, files: BlockFiles | None = None) -> None:
        """ram_bytes: of blocks in memory; may be 0 where there are files."""
        if ram_bytes < bounds.RAM_BYTES_MIN and (ram_bytes or files is None):
            raise BadInput(f"{ram_bytes} bytes of memory for blocks: give {bounds.RAM_BYTES_MIN} or more")
        self._lock = threading.Lock()
        self._keep = Keep[Key](ram_bytes)
        self._held: dict[Key, memoryview] = {}
        self.files = files
        # Whose a block is when it leaves memory: members may have come and gone since it came.
        self.owned: Callable[[Key], bool] = lambda key: True
        self.counts: Counter[str] = Counter()  # ram, disk, missed: reads

    def __contains__(self, key: Key) -> bool:
        return key in self._held or (self.files is not None and key in self.files)

    @property
    def bytes(self) -> int:
        """Of what is held, in memory and on disk."""
        return self._keep.bytes + (0 if self.files is None else self.files.bytes)

    @property
    def budget(self) -> int:
        """Bytes that may be held."""
        return self._keep.budget + (0 if self.files is None else self.files.budget)

    def read(self, key: Key, start: int = 0, stop: int = bounds.BLOCK_BYTES) -> Buffer | None:
        """Bytes [start, stop) of a block, fewer where it ends; None when it is not here."""
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._keep.touch(key)
                self.counts["ram"] += 1
        if held is not None:
            return held[start:stop]
        found = None if self.files is None else self.files.read(key, start, stop)
        with self._lock:
            self.counts["missed" if found is None else "disk"] += 1
        return found

    def put(self, key: Key, data: Buffer, copy: bool = False) -> None:
        """Keep a block, as far as there is room. copy: another member owns it."""
        if not self._keep.budget:
            if self.files is not None:
                self.files.put(key, data, copy)
            return
        if key in self:
            return
        held = _own_memory(data)
        with self._lock:
            if key in self._held:
                return
            self._held[key] = held
            gone = [(other, self._held.pop(other)) for other in self._keep.add(key, len(held), copy)]
        if self.files is not None:
            for other, view in gone:
                self.files.put(other, view, not self.owned(other))

    def room_for_copy(self, size: int) -> bool:
        """Whether a copy of another's block would find room that is free, or is meant for copies."""
        with self._lock:
            room = self._keep.budget > 0 and self._keep.room_for_copy(size)
        return room or (self.files is not None and self.files.room_for_copy(size))

    def forget(self, wanted: Callable[[Key], bool]) -> None:
        """Remove those for which `wanted` says so."""
        with self._lock:
            for key in [key for key in self._held if wanted(key)]:
                del self._held[key]
                self._keep.remove(key)
        if self.files is not None:
            self.files.forget(wanted)

    def packs(self) -> set[str]:
        """Those of which there are blocks here."""
        with self._lock:
            found = {pack for pack, _ in self._held}
        return found if self.files is None else found | {pack for pack, _ in self.files.held()}

    def close(self) -> None:
        """Give memory back, and the directory to the next daemon."""
        with self._lock:
            self._held.clear()
            self._keep = Keep[Key](self._keep.budget)
        if self.files is not None:
            self.files.close()


def _own_memory(data: Buffer) -> memoryview:
    """A copy of `data` whose pages go back to the system when nobody looks at them any more.

    `data` may be a part of a whole answer, which it would hold; and blocks in the allocator's heap leave holes that count, too.
    """
    size = len(data)
    if size < _MAPPED_FROM:
        return memoryview(bytes(data))
    memory = mmap.mmap(-1, size)
    memory[:] = data
    return memoryview(memory).toreadonly()
