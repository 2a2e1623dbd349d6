"""Blocks on disk: a file for each, with checks, in a directory of one daemon. Losing any of it costs a request.

    <directory>/lock                       held by the daemon that uses it
    <directory>/tmp/<random>               being written
    <directory>/<2 hex>/<32 hex>-<number>  a block:

    magic "LBK1" | u32 bytes of the block | 16 bytes: check of all before the data | 16 bytes for each page of 64 KiB: its check | data

A check is the beginning of the BLAKE3 of the bytes (of the head: with the block's name). Nothing is synced: after a crash a file is whole,
or is not there, or its checks say so; then it is removed. A read checks the pages that it touches.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.keep import Keep
from leptonstore.digest import Buffer, digest_of
from leptonstore.errors import BadInput

Key = tuple[str, int]  # pack, number of the block
_HEAD = struct.Struct("<4sI16s")
_MAGIC = b"LBK1"
_CHECK_BYTES = 16
_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})")


class BlockFiles:
    """Any thread; one process. What fails on the disk counts as not here."""

    def __init__(self, directory: Path, budget: int) -> None:
        """Adopts what is there. Raises BadInput: another daemon uses it, or it cannot be used."""
        if not bounds.DISK_BYTES_MIN <= budget <= bounds.DISK_BYTES_MAX:
            raise BadInput(f"{budget} bytes of blocks on disk: give {bounds.DISK_BYTES_MIN} to {bounds.DISK_BYTES_MAX}")
        self._directory, self._keep = directory, Keep[Key](budget)
        self._lock = threading.Lock()
        self._writing: set[Key] = set()  # they have a place, and no file yet
        self._full_until = 0.0
        self.damaged = 0  # files that were not what was written
        try:
            (directory / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadInput(
                f"blocks cannot be kept in {directory}: {error.strerror}; choose another directory"
            ) from None
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._held)
            raise BadInput(
                f"another daemon keeps its blocks in {directory}: give each a directory of its own"
            ) from None
        self._adopt()

    def _adopt(self) -> None:
        for name in os.listdir(self._directory / "tmp"):
            with suppress(OSError):
                os.unlink(self._directory / "tmp" / name)
        found: list[tuple[float, Key, int]] = []
        for folder in os.scandir(self._directory):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                match = _NAME.fullmatch(entry.name)
                if match is not None and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    found.append((about.st_mtime, (match[1], int(match[2])), about.st_size))
        for _, key, size in sorted(found):
            for gone in self._keep.add(key, size):
                self._unlink(gone)

    def _path(self, key: Key) -> Path:
        return self._directory / key[0][:2] / f"{key[0]}-{key[1]}"

    def _unlink(self, key: Key) -> None:
        with suppress(OSError):
            self._path(key).unlink()

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._keep and key not in self._writing

    def __len__(self) -> int:
        return len(self._keep)

    @property
    def bytes(self) -> int:
        """Of all files, heads included."""
        return self._keep.bytes

    @property
    def budget(self) -> int:
        """Bytes that it may keep."""
        return self._keep.budget

    def held(self) -> list[Key]:
        """What is here, in no order."""
        with self._lock:
            return self._keep.keys()

    def room_for_copy(self, size: int) -> bool:
        """See Keep."""
        with self._lock:
            return self._keep.room_for_copy(size)

    def read(self, key: Key, start: int, stop: int) -> Buffer | None:
        """Bytes [start, stop) of a block, fewer where it ends; None when it is not here, or damaged."""
        with self._lock:
            if key not in self._keep or key in self._writing:
                return None
            self._keep.touch(key)
        try:
            data = self._checked(key, start, stop)
        except (OSError, ValueError, struct.error):
            self._drop_damaged(key)
            return None
        return data

    def _checked(self, key: Key, start: int, stop: int) -> Buffer:
        page = bounds.PAGE_BYTES
        with open(self._path(key), "rb", buffering=0) as file:
            pages_max = -(-bounds.BLOCK_BYTES // page)
            head = file.read(_HEAD.size + pages_max * _CHECK_BYTES)
            magic, length, check = _HEAD.unpack_from(head)
            pages = -(-length // page)
            data_at = _HEAD.size + pages * _CHECK_BYTES
            checks = head[_HEAD.size : data_at]
            if magic != _MAGIC or pages > pages_max or len(checks) != pages * _CHECK_BYTES:
                raise ValueError("its head is damaged")
            if check != _head_check(key, length, checks):
                raise ValueError("its head does not match its check")
            stop = min(stop, length)
            if start >= stop:
                return b""
            first, last = start // page, (stop - 1) // page
            begin, end = first * page, min(length, (last + 1) * page)
            data = os.pread(file.fileno(), end - begin, data_at + begin)
        if len(data) != end - begin:
            raise ValueError("it is cut short")
        view = memoryview(data)
        for number in range(first, last + 1):
            part = view[number * page - begin : (number + 1) * page - begin]
            if digest_of(part)[:_CHECK_BYTES] != checks[number * _CHECK_BYTES : (number + 1) * _CHECK_BYTES]:
                raise ValueError("a page does not match its check")
        return view[start - begin : stop - begin]

    def _drop_damaged(self, key: Key) -> None:
        with self._lock:
            if key not in self._keep:  # it went meanwhile: nothing is damaged
                return
            self._keep.remove(key)
            self.damaged += 1
        self._unlink(key)

    def put(self, key: Key, data: Buffer, copy: bool = False) -> None:
        """Keep a block, as far as there is room."""
        page, view = bounds.PAGE_BYTES, memoryview(data)
        head_bytes = _HEAD.size + -(-len(view) // page) * _CHECK_BYTES
        with self._lock:
            if time.monotonic() < self._full_until or key in self._keep:
                return
            gone = self._keep.add(key, head_bytes + len(view), copy)
            kept = key not in gone
            if kept:
                self._writing.add(key)
        for other in gone:
            if other != key:
                self._unlink(other)
        if not kept:
            return
        checks = b"".join(digest_of(view[at : at + page])[:_CHECK_BYTES] for at in range(0, len(view), page))
        head = _HEAD.pack(_MAGIC, len(view), _head_check(key, len(view), checks)) + checks
        written = self._write(key, head, view)
        with self._lock:
            self._writing.discard(key)
            stays = written and key in self._keep  # another one may have driven it out meanwhile
            if not written:
                self._keep.remove(key)
        if written and not stays:
            self._unlink(key)

    def _write(self, key: Key, head: Buffer, data: memoryview) -> bool:
        """Whether the file is there."""
        temporary = self._directory / "tmp" / secrets.token_hex(8)
        try:
            space = os.statvfs(self._directory)
            if space.f_bavail * space.f_frsize < bounds.DISK_FREE_BYTES_MIN + len(data):
                raise OSError(errno.ENOSPC, "little space is left")
            with open(temporary, "xb", buffering=0) as file:
                if os.writev(file.fileno(), [head, data]) != len(head) + len(data):
                    raise OSError(errno.ENOSPC, "cut short")
            path = self._path(key)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(temporary, path)
        except OSError:  # full, read-only or broken: it costs the cache, for a while
            self._full_until = time.monotonic() + bounds.DISK_FULL_PAUSE_S
            with suppress(OSError):
                temporary.unlink()
            return False
        return True

    def forget(self, wanted: Callable[[Key], bool]) -> None:
        """Remove those for which `wanted` says so."""
        for key in self.held():
            if wanted(key):
                with self._lock:
                    self._keep.remove(key)
                self._unlink(key)

    def close(self) -> None:
        """Let another daemon use the directory. What is in it stays."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _head_check(key: Key, length: int, checks: bytes) -> bytes:
    return digest_of(f"{key[0]}-{key[1]}-{length}-".encode() + checks)[:_CHECK_BYTES]
