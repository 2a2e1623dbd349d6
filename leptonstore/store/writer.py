"""What this process has put and not yet published: encoded by all cores, appended to packs, sealed in the background.

    put -> digest -> known? -> encode (a pool of threads, outside the lock) -> append to the open pack -> seal

Invariants:
- A digest is encoded once, however many threads put it: the first claims it.
- From `put` on a value can be read back in this process: from memory, from the open pack, from the sealed one.
- At most IN_FLIGHT_BYTES_MAX plain bytes wait to be encoded; beyond that, whoever puts encodes, too.
- After a failure (a full disk) everything unpublished is forgotten: nothing of it can be half there.

Locks: `_lock` guards every field; it is never held while something is hashed, compressed or synced.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from leptonstore import codec, limits
from leptonstore.codec import Encoded
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import Conflict
from leptonstore.store import reader
from leptonstore.store.builder import PackBuilder
from leptonstore.store.config import StoreConfig
from leptonstore.store.log import PackRecord
from leptonstore.tiers.local import LocalTier


class Writer:
    """The unpublished part of one Store. All methods: any thread."""

    def __init__(self, tier: LocalTier, config: StoreConfig, publish_packs: Callable[[], None]) -> None:
        """`publish_packs` is called, without the lock and from any thread, when sealed packs wait to be published."""
        self._tier, self._config, self._publish_packs = tier, config, publish_packs
        self._reset()
        self.new_bytes = 0  # stored bytes of the records that were added

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._claimed: dict[Digest, tuple[int, Buffer]] = {}  # kind and plain bytes on their way to a pack
        self._in_flight = 0  # bytes of them
        self._builders: dict[int, PackBuilder] = {}
        self._sealing: dict[PackBuilder, Future[PackRecord]] = {}
        self._sealed: dict[PackBuilder, PackRecord] = {}  # durable, but no log entry lists them yet
        # Packs that unpublished work counts on -> the round (from one `finish` to the next) that counted on them last.
        self._relied: dict[str, int] = {}
        self._round = 0
        self._error: BaseException | None = None
        self._pool: ThreadPoolExecutor | None = None

    # -- looking -------------------------------------------------------------------------------------------------

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:
            return digest in self._claimed or self._holder(digest) is not None

    def _holder(self, digest: Digest) -> PackBuilder | None:
        for builder in (*self._builders.values(), *self._sealing, *self._sealed):
            if digest in builder.rows:
                return builder
        return None

    def record(self, digest: Digest) -> tuple[int, bytes] | None:
        """(kind, plain bytes) of an unpublished record, None when it is not here."""
        with self._lock:
            claimed = self._claimed.get(digest)
            if claimed is not None:
                return claimed[0], bytes(claimed[1])
            builder = self._holder(digest)
            data = builder.read(builder.rows[digest]) if builder is not None else b""
        return None if builder is None else reader.decode_record(data, digest, builder.id)

    def rely_on(self, pack: str) -> None:
        """Unpublished work counts on a record of this published pack."""
        with self._lock:
            self._relied[pack] = self._round

    @property
    def relied(self) -> set[str]:
        """The published packs that unpublished work counts on."""
        with self._lock:
            return set(self._relied)

    # -- adding --------------------------------------------------------------------------------------------------

    def add(self, digest: Digest, kind: int, plain: Buffer, content: int, here: bool = False) -> None:
        """Keep a record that the store does not have. `plain` must not change until the next `finish`.

        here: encode in the calling thread (one of a pool of the caller's). Raises StoreFull, now or at a later call.
        """
        with self._lock:
            self._raise_error()
            if digest in self._claimed or self._holder(digest) is not None:
                return
            self._claimed[digest] = (kind, plain)
            here = here or self._in_flight + len(plain) > limits.IN_FLIGHT_BYTES_MAX
            self._in_flight += len(plain)
            if not here and self._pool is None:
                self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lepton-write")
            pool = self._pool
        if here or pool is None:
            self._encode(digest, kind, plain, content)
            with self._lock:
                self._raise_error()
        else:
            pool.submit(self._encode, digest, kind, plain, content)

    def _encode(self, digest: Digest, kind: int, plain: Buffer, content: int) -> None:
        """Runs in any thread; an error is kept for the next caller."""
        error: BaseException | None = None
        full: PackBuilder | None = None
        try:
            encoded = codec.encode(plain, self._config.zstd_level)
            crc = zlib.crc32(encoded.payload)
            with self._lock:
                if self._error is None:
                    full = self._append(digest, kind, encoded, crc, content)
        except BaseException as caught:
            error = caught
        with self._lock:
            self._claimed.pop(digest, None)
            self._in_flight -= len(plain)
            self._error = self._error or error
            if not self._claimed:
                self._idle.notify_all()
        if full is not None:
            self._seal(full)
            try:
                self._publish_packs()
            except BaseException as caught:
                with self._lock:
                    self._error = self._error or caught

    def _append(self, digest: Digest, kind: int, encoded: Encoded, crc: int, content: int) -> PackBuilder | None:
        """Under the lock. Returns a pack that is full and must be sealed."""
        full = None
        builder = self._builders.get(content)
        if builder is not None and not builder.fits(len(encoded.payload)):
            full = self._builders.pop(content)
            self._sealing[full] = Future()
            builder = None
        if builder is None:
            builder = self._builders[content] = PackBuilder(self._tier, self._config.store_id, content)
        self.new_bytes += builder.add(digest, kind, encoded, crc)
        return full

    def _seal(self, builder: PackBuilder) -> None:
        """Make a pack durable; outside the lock. An error is kept for the next caller."""
        error: BaseException | None = None
        record: PackRecord | None = None
        try:
            record = builder.seal()
        except BaseException as caught:
            error = caught
        with self._lock:
            done = self._sealing.pop(builder, None)
            if record is not None and done is not None:
                self._sealed[builder] = record
            else:
                builder.abort()
            self._error = self._error or error
            self._idle.notify_all()

    # -- finishing -----------------------------------------------------------------------------------------------

    def finish(self) -> int:
        """Wait until everything that was added is in a durable pack; returns the round that ends with this.

        Raises StoreFull; then all of it is forgotten.
        """
        with self._lock:
            while self._claimed:
                self._idle.wait()
            builders = list(self._builders.values()) if self._error is None else []
            for builder in builders:
                self._sealing[builder] = Future()
            if builders:
                self._builders.clear()
        for builder in builders:
            self._seal(builder)
        with self._lock:
            while self._sealing:
                self._idle.wait()
            self._raise_error()
            self._round += 1
            return self._round - 1

    @property
    def pending(self) -> bool:
        """Whether anything waits to be published."""
        with self._lock:
            return bool(self._claimed or self._builders or self._sealing or self._sealed or self._error)

    def sealed(self) -> dict[str, PackRecord]:
        """The packs that are durable and that no log entry lists yet."""
        with self._lock:
            return {builder.id: record for builder, record in self._sealed.items()}

    def published(self, packs: set[str], round: int | None) -> None:
        """A log entry lists `packs` now, and everything that was put in `round` (of `finish`) or before."""
        with self._lock:
            gone = [builder for builder in self._sealed if builder.id in packs]
            for builder in gone:
                del self._sealed[builder]
            if round is not None:
                self._relied = {pack: last for pack, last in self._relied.items() if last > round}
        for builder in gone:
            builder.abort()  # the pack is read through the tier from now on

    def _raise_error(self) -> None:
        """Under the lock: raise what a background thread met, and forget everything unpublished."""
        if self._error is None:
            return
        error, self._error = self._error, None
        while self._claimed:
            self._idle.wait()
        self._drop()
        raise error

    def _drop(self) -> None:
        for builder in (*self._builders.values(), *self._sealing, *self._sealed):
            with suppress(OSError):
                builder.abort()
        self._builders, self._sealing, self._sealed = {}, {}, {}
        self._relied.clear()

    def close(self) -> None:
        """Forget what was not published."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._claimed.clear()
            self._drop()

    def after_fork(self) -> None:
        """In a child process: the parent's unpublished packs and threads are not ours."""
        self._reset()


def require_packs(relied: set[str], packs: set[str]) -> None:
    """Raise Conflict when packs that unpublished work counts on have gone."""
    gone = relied - packs
    if gone:
        raise Conflict(f"{len(gone)} packs that this work relies on were removed while it ran: run it again")
