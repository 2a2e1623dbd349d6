"""A pack on its way to a bucket.

    write -> parts of OBJECT_PART_BYTES -> a thread of the tier's -> multipart upload -> seal: complete
             a pack of one part           -> seal: one conditional PUT

Invariants:
- The object appears whole, with the seal, or not at all.
- All bytes are kept until `abort`: `read` serves them, and the upload needs them. A pack is at most 64 MiB, and a writer that is
  faster than the network is held back by the seals that it waits for.
- One thread at a time hands parts to the upload, in their order; `write` never waits for the network.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged, TierUnavailable
from leptonstore.tiers.object_client import Client


class ObjectPackSink:
    """A PackSink. Any thread."""

    def __init__(
        self, client: Client, path: str, executor: Callable[[], Executor], before_seal: Callable[[], None]
    ) -> None:
        self._client, self._path, self._executor, self._before_seal = client, path, executor, before_seal
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._parts: list[bytearray] = []  # each of OBJECT_PART_BYTES, the last one not full
        self._length = 0
        self._waiting: deque[memoryview] = deque()  # full parts that are not handed to the upload yet
        self._running = False
        self._writer: Any = None
        self._error: Exception | None = None
        self._sealed = False

    def write(self, *parts: Buffer) -> None:
        """Append all of `parts`. Raises what went wrong in the upload so far."""
        with self._lock:
            self._raise_error()
            for part in parts:
                view = memoryview(part).cast("B")
                while len(view):
                    filled = self._length % limits.OBJECT_PART_BYTES
                    if not filled:
                        self._parts.append(bytearray(limits.OBJECT_PART_BYTES))
                    count = min(limits.OBJECT_PART_BYTES - filled, len(view))
                    self._parts[-1][filled : filled + count] = view[:count]
                    self._length += count
                    view = view[count:]
                    if filled + count == limits.OBJECT_PART_BYTES:
                        self._waiting.append(memoryview(self._parts[-1]))
            if self._waiting and not self._running and self._length > limits.OBJECT_PART_BYTES:
                self._running = True
                self._executor().submit(self._upload)

    def _upload(self) -> None:
        """In a thread of the tier's: hand over what waits, in order."""
        while True:
            with self._lock:
                if not self._waiting or self._error is not None:
                    self._running = False
                    self._idle.notify_all()
                    return
                part = self._waiting.popleft()
            try:
                self._give(part)
            except Exception as error:
                with self._lock:
                    self._error = self._typed(error)

    def _give(self, part: memoryview) -> None:
        if self._writer is None:
            self._writer = self._client.open_writer(self._path, limits.OBJECT_PART_BYTES, limits.OBJECT_PARTS_IN_FLIGHT)
        self._client.counters.add("part", bytes_written=len(part))
        self._writer.write(part)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that were written, before the seal or after."""
        with self._lock:
            out, end = bytearray(), min(offset + length, self._length)
            while offset < end:
                part, at = divmod(offset, limits.OBJECT_PART_BYTES)
                count = min(limits.OBJECT_PART_BYTES - at, end - offset)
                out += memoryview(self._parts[part])[at : at + count]
                offset += count
            return bytes(out)

    def seal(self) -> None:
        """Make the object visible. Raises StoreFull, TierUnavailable or NotPermitted; then there is none (see `_complete`)."""
        with self._lock:
            while self._running:
                self._idle.wait()
            self._raise_error()
        self._before_seal()
        last = self._length % limits.OBJECT_PART_BYTES
        try:
            if self._length <= limits.OBJECT_PART_BYTES:
                self._waiting.clear()
                self._put_whole()
            else:
                for part in (*self._waiting, *([memoryview(self._parts[-1])[:last]] if last else ())):
                    self._give(part)
                self._waiting.clear()
                self._complete()
        except Exception as error:
            self._error = self._typed(error)
            raise self._error from None
        self._sealed = True

    def _typed(self, error: Exception) -> Exception:
        typed = self._client.error(error, self._path)
        if isinstance(typed, FileNotFoundError):
            return TierUnavailable(
                f"{self._client.url}/{self._path}: its upload was ended by somebody else: run it again",
                self._client.url,
            )
        return typed

    def _put_whole(self) -> None:
        data = memoryview(self._parts[0])[: self._length] if self._parts else b""
        if not self._client.create(self._path, data) and not self._is_ours():
            raise FormatDamaged(f"{self._client.url}/{self._path} exists already: ids of packs are never reused")

    def _is_ours(self) -> bool:
        """After "exists": only the answer may have been lost. Ids of packs are random, so one of our length is ours."""
        return self._client.size(self._path) == self._length

    def _complete(self) -> None:
        """Complete the upload. When the answer is lost the object may be there: then it is sealed all the same."""
        writer, self._writer = self._writer, None
        try:
            writer.close()
        except Exception as error:
            try:
                done = self._is_ours()
            except Exception:
                raise error from None
            if not done:
                raise

    def abort(self) -> None:
        """Drop what is in memory, and what was uploaded unless it was sealed."""
        if self._process != os.getpid():
            return  # a child made by fork: the upload is the parent's
        with self._lock:
            self._waiting.clear()
            while self._running:
                self._idle.wait()
            writer, self._writer = self._writer, None
            self._parts, self._length = self._parts if self._sealed else [], self._length if self._sealed else 0
        if writer is not None:
            try:
                writer.__exit__(RuntimeError, RuntimeError("aborted"), None)
            except Exception:  # the parts stay with the server until `remove_dead_temporaries` or a lifecycle rule
                self._client.counters.add("failed")
