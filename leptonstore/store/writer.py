"""What this process has put and not yet published: encoded by all cores, appended to packs, sealed in the background.

    put -> digest -> known? -> [shelf] -> encode (a pool of threads, outside the lock) -> append to the open pack -> seal

Small records wait on a shelf, one for data and one for metadata, until there is a batch of them: those under 4 KiB share records, and
those of data may share a dictionary (store/dictionaries.py).

Invariants:
- A digest is encoded once, however many threads put it: the first claims it.
- From `put` on a value can be read back in this process: from memory, from the open pack, from the sealed one.
- At most IN_FLIGHT_BYTES_MAX plain bytes wait to be encoded; beyond that, whoever puts encodes, too: what has waited longest, so that
  packs hold values in about the order in which they were put, and who reads in that order reads from one end to the other.
- A pack is claimed (store/leases.py) before anybody can see it, and until a ref reaches what it was made for.
- After a failure (a full disk) everything unpublished is forgotten: nothing of it can be half there.

Locks: `_lock` guards every field; it is never held while something is hashed, compressed or synced.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from leptonstore import codec, limits
from leptonstore.codec import Dictionary, Encoded
from leptonstore.crypto import StoreKeys
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import CommitExpired
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.builder import PackBuilder
from leptonstore.store.config import StoreConfig
from leptonstore.store.dictionaries import DictionaryPolicy, Record, Shelf, Unit, units_of
from leptonstore.store.leases import Claims
from leptonstore.store.log import PackRecord
from leptonstore.tiers.roles import LockHome, PackPruner

Ready = list[tuple[Unit, Encoded, int]]  # units with their payloads and the payloads' CRC-32


class Writer:
    """The unpublished part of one Store. All methods: any thread."""

    def __init__(
        self,
        tier: PackPruner,
        home: LockHome,
        config: StoreConfig,
        publish_packs: Callable[[], None],
        keys: StoreKeys | None = None,
    ) -> None:
        """`publish_packs` is called, without the lock and from any thread, when sealed packs wait to be published."""
        self._tier, self._config, self._publish_packs, self._keys = tier, config, publish_packs, keys
        self.epoch = 0  # of the store, in which what is unpublished was put
        self._claims = Claims(home, lambda: self.epoch)
        self._reset()
        self.new_bytes = 0  # stored bytes of the records that were added

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._claimed: dict[Digest, tuple[int, Buffer]] = {}  # kind and plain bytes on their way to a pack
        self._in_flight = 0  # bytes of them
        # Batches to encode, their content, and what they become where that is known.
        self._waiting: deque[tuple[Sequence[Record], int, Ready | None]] = deque()
        self._shelves = {content: Shelf() for content in (lpk.CONTENT_DATA, lpk.CONTENT_META)}
        self._dictionaries = DictionaryPolicy(self._config.zstd_level)
        self._builders: dict[int, PackBuilder] = {}
        self._sealing: dict[PackBuilder, Future[PackRecord]] = {}
        self._sealed: dict[PackBuilder, PackRecord] = {}  # durable, but no log entry lists them yet
        self._sealed_in: dict[str, int] = {}  # pack -> the round in which it was sealed, until it is published
        self._dropped: set[str] = set()  # were sealed, and are forgotten: their files are nobody's
        self._stale: list[PackBuilder] = []  # condemned before they were listed: being copied into new packs
        # Published packs that work counts on -> the round (from one `finish` to the next) that counted on them last. Kept for
        # good: what one thread publishes says nothing about the unpublished work of another.
        self._relied: dict[str, int] = {}
        self._round = 0
        self._error: BaseException | None = None
        self._pool: ThreadPoolExecutor | None = None

    # -- looking -------------------------------------------------------------------------------------------------

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:
            return digest in self._claimed or self._holder(digest) is not None

    def _holder(self, digest: Digest) -> PackBuilder | None:
        for builder in (*self._builders.values(), *self._sealing, *self._sealed, *self._stale):
            if digest in builder.rows:
                return builder
        return None

    def row(self, digest: Digest) -> lpk.FooterRow | None:
        """The footer row that an unpublished record has, None when it is not here, or still on its way to a pack."""
        with self._lock:
            builder = self._holder(digest)
            return None if builder is None else builder.rows[digest]

    def record(self, digest: Digest) -> tuple[int, bytes] | None:
        """(kind, plain bytes) of an unpublished record, None when it is not here."""
        with self._lock:
            claimed = self._claimed.get(digest)
            if claimed is not None:
                return claimed[0], bytes(claimed[1])
            builder = self._holder(digest)
            row = builder.rows[digest] if builder is not None else None
            data = builder.read(row) if builder is not None and row is not None else b""
        return None if builder is None or row is None else reader.decode_record(data, row, builder)

    def rely_on(self, pack: str) -> None:
        """Unpublished work counts on a record of this published pack."""
        with self._lock:
            if self._relied.get(pack) != self._round:
                self._claims.claim(pack)
            self._relied[pack] = self._round

    @property
    def claimed(self) -> frozenset[str]:
        """The packs that are to be spared for this writer."""
        return self._claims.packs

    @property
    def relied(self) -> set[str]:
        """The published packs that work of this writer counts on, its own included."""
        with self._lock:
            return set(self._relied)

    # -- adding --------------------------------------------------------------------------------------------------

    def add(
        self,
        digest: Digest,
        kind: int,
        plain: Buffer,
        content: int,
        here: bool = False,
        plane_width: int = 0,
        encoded: Encoded | None = None,
    ) -> None:
        """Keep a record that the store does not have. `plain` must not change until the next `finish`.

        here: encode in the calling thread (one of a pool of the caller's). encoded: what it becomes, without a dictionary, when that
        is known already. Raises StoreFull, now or at a later call.
        """
        small = encoded is None and _is_small(kind, plain, plane_width)
        if small:
            plain = bytes(plain)  # a slice would keep all of its buffer alive on the shelf
        record = Record(digest, kind, plain, plane_width)
        ready = None if encoded is None else self._ready(record, encoded)
        with self._lock:
            self._raise_error()
            if digest in self._claimed or self._holder(digest) is not None:
                return
            self._claimed[digest] = (kind, plain)
            too_many = self._in_flight + len(plain) > limits.IN_FLIGHT_BYTES_MAX
            self._in_flight += len(plain)
            batch = self._shelves[content].add(record) if small else [record]
            if batch and not here:
                self._let_encode(batch, content, ready)
        if batch and here:
            self._encode(batch, content, ready)
        elif batch and too_many:
            self._encode_next()
        else:
            return
        with self._lock:
            self._raise_error()

    def _let_encode(self, batch: Sequence[Record], content: int, ready: Ready | None = None) -> None:
        """Under the lock."""
        self._waiting.append((batch, content, ready))
        self._workers().submit(self._encode_next)

    def _encode_next(self) -> None:
        """Encode what has waited longest, unless another thread has taken it already."""
        try:
            batch, content, ready = self._waiting.popleft()
        except IndexError:
            return
        self._encode(batch, content, ready)

    def _ready(self, record: Record, encoded: Encoded) -> Ready:
        """As `_encoded`, of a record whose payload is known."""
        return [(Unit(record.plain, (record,)), encoded, zlib.crc32(encoded.payload) if self._keys is None else 0)]

    def _workers(self) -> ThreadPoolExecutor:
        """Under the lock."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "lepton-write")
        return self._pool

    def _encode(self, batch: Sequence[Record], content: int, ready: Ready | None = None) -> None:
        """Runs in any thread; an error is kept for the next caller."""
        error: BaseException | None = None
        full: list[PackBuilder] = []
        try:
            if ready is None:
                ready = self._encoded(batch, content)
            with self._lock:
                for unit, encoded, crc in ready if self._error is None else ():
                    self._append(unit, encoded, crc, content, full)
        except BaseException as caught:
            error = caught
        with self._lock:
            for record in batch:
                self._claimed.pop(record.digest, None)
                self._in_flight -= len(record.plain)
            self._error = self._error or error
            if len(self._claimed) == sum(map(len, self._shelves.values())):
                self._idle.notify_all()
        for builder in full:
            self._seal(builder)
        if full:
            try:
                self._publish_packs()
            except BaseException as caught:
                with self._lock:
                    self._error = self._error or caught

    def _encoded(self, batch: Sequence[Record], content: int) -> Ready:
        """What the batch becomes: records and groups of them, each with its payload and the payload's CRC."""

        def held(dictionary: Dictionary) -> bool:
            with self._lock:
                builder = self._builders.get(content)
                return builder is not None and builder.has_dictionary(dictionary)

        units = units_of(batch)
        # Nodes are mostly digests: a dictionary gains nothing there.
        dictionary = self._dictionaries.choose(units, held) if content == lpk.CONTENT_DATA else None
        ready = []
        level = self._config.zstd_level
        if units[0].members[0].kind == lpk.KIND_REFERENCE:  # a batch of its own
            made = [Encoded(lpk.CODEC_RAW, unit.plain, len(unit.plain)) for unit in units]
        elif all(_is_short(unit) for unit in units):
            made = codec.encode_many([unit.plain for unit in units], level, dictionary)
        else:
            made = [codec.encode(unit.plain, level, unit.plane_width, dictionary) for unit in units]
        for unit, encoded in zip(units, made, strict=True):
            if len(unit.members) > 1 and encoded.codec == lpk.CODEC_RAW:  # reading one would read all for nothing
                ready += [
                    (Unit(record.plain, (record,)), codec.encode(record.plain, self._config.zstd_level))
                    for record in unit.members
                ]
            else:
                ready.append((unit, encoded))
        return [(unit, some, zlib.crc32(some.payload) if self._keys is None else 0) for unit, some in ready]

    def _append(self, unit: Unit, encoded: Encoded, crc: int, content: int, full: list[PackBuilder]) -> None:
        """Under the lock. Adds to `full` a pack that must be sealed, also when it raises."""
        builder = self._builders.get(content)
        if builder is not None and not builder.fits(encoded, len(unit.members)):
            full.append(self._builders.pop(content))
            self._sealing[builder] = Future()
            builder = None
        if builder is None:
            builder = self._builders[content] = PackBuilder(
                self._tier, self._config.store_id, content, self._keys, self.epoch
            )
            self._claims.claim(builder.id)
        if len(unit.members) == 1:
            self.new_bytes += builder.add(unit.members[0].digest, unit.members[0].kind, encoded, crc)
        else:
            members = [(record.digest, len(record.plain)) for record in unit.members]
            self.new_bytes += builder.add_group(members, digest_of(unit.plain), encoded, crc)

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
                self._sealed_in[builder.id] = self._round  # `finish` waits for us before it begins another
            else:
                with suppress(OSError):  # `error` says what is wrong; whoever waits below must be woken
                    builder.abort()
                if record is not None:
                    self._dropped.add(builder.id)
            self._error = self._error or error
            self._idle.notify_all()

    # -- finishing -----------------------------------------------------------------------------------------------

    def finish(self) -> int:
        """Wait until everything that was added is in a durable pack; returns the round that ends with this.

        Raises StoreFull; then all of it is forgotten.
        """
        with self._lock:
            while self._claimed:
                for content, shelf in self._shelves.items():
                    if batch := shelf.take():
                        self._let_encode(batch, content)
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

    @property
    def busy(self) -> bool:
        """Whether there is work that no ref reaches yet: some of it may be in packs that the log lists already."""
        return self.pending or self._claims.any

    @property
    def claim(self) -> str:
        """Name of the document by which this writer shows that it lives; empty when it has nothing unpublished."""
        return self._claims.name

    def begin_epoch(self, epoch: int) -> None:
        """Forget everything unpublished, and what dictionaries have learned. What is put from now on is of `epoch`."""
        with self._lock:
            self._error = self._error or CommitExpired("an erasure began")  # nothing is appended meanwhile
            self._let_claimed_go()
            self._drop()
            self._error = None
            self._dictionaries = DictionaryPolicy(self._config.zstd_level)
            self.epoch = epoch

    def sealed(self) -> dict[str, PackRecord]:
        """The packs that are durable and that no log entry lists yet."""
        with self._lock:
            return {builder.id: record for builder, record in self._sealed.items()}

    def published(self, packs: set[str], round: int | None, by_ref: bool = False) -> None:
        """A log entry lists `packs` now; by_ref: a ref reaches everything that was put in `round` (of `finish`) or before."""
        with self._lock:
            gone = [builder for builder in self._sealed if builder.id in packs]
            for builder in gone:
                del self._sealed[builder]
            for pack in packs:
                sealed_in = self._sealed_in.pop(pack, self._round)
                self._relied[pack] = sealed_in if round is None else round
            if by_ref and round is not None:
                self._claims.drop(pack for pack, last in self._relied.items() if last <= round)
        for builder in gone:
            builder.abort()  # the pack is read through the tier from now on

    def handed_over(self) -> None:
        """A ref of somebody else reaches everything that was put before the last `finish`; all of it, when nothing was put since."""
        with self._lock:
            unpublished = self._claimed or self._builders or self._sealing or self._sealed
            last = self._round - 1 if unpublished else self._round
            self._claims.drop(pack for pack, round in self._relied.items() if round <= last)

    def put_again(self, lost: set[str]) -> None:
        """Copy what is in these sealed packs of ours, which must not be listed any more, into new ones. Raises StoreFull."""
        with self._lock:
            stale = [builder for builder in self._sealed if builder.id in lost]
            for builder in stale:
                del self._sealed[builder]
                self._sealed_in.pop(builder.id, None)
            self._stale += stale
        for builder in stale:
            shelf = Shelf()
            for digest, row in list(builder.rows.items()):
                kind, plain = reader.decode_record(builder.read(row), row, builder)
                self.copy(shelf.add(Record(digest, kind, plain, row.plane_width)), builder.content)
            self.copy(shelf.take(), builder.content)
            with self._lock:
                self._stale.remove(builder)
            builder.abort()
        self._claims.drop(builder.id for builder in stale)

    def copy(self, batch: Sequence[Record], content: int, encoded: Encoded | None = None) -> None:
        """Keep records in a pack of ours although another one holds them, too. Raises StoreFull.

        encoded: the payload of a single record as it stands there, without a dictionary; it is not compressed again.
        """
        with self._lock:
            self._raise_error()
            self._in_flight += sum(len(record.plain) for record in batch)
        ready = None if encoded is None else self._ready(batch[0], encoded)
        small = []  # only these may share a group
        for record in batch:
            if ready is None and _is_small(record.kind, record.plain, record.plane_width):
                small.append(record)
            else:
                self._encode([record], content, ready)
        if small:
            self._encode(small, content)
        with self._lock:
            self._raise_error()

    def discard(self, packs: set[str]) -> None:
        """Forget sealed packs that no log entry lists, nor will: their files are removed, their records absent again."""
        with self._lock:
            gone = [builder for builder in self._sealed if builder.id in packs]
            for builder in gone:
                del self._sealed[builder]
                self._sealed_in.pop(builder.id, None)
        for builder in gone:
            builder.abort()
            self._tier.delete_pack(builder.id)

    def take_dropped(self) -> set[str]:
        """Packs that were sealed and forgotten since the last call. The log may list one whose answer got lost."""
        with self._lock:
            dropped, self._dropped = self._dropped, set()
            return dropped

    def _raise_error(self) -> None:
        """Under the lock: raise what a background thread met, and forget everything unpublished."""
        if self._error is None:
            return
        error = self._error  # it stays until work under way has ended: that would meet the full disk again
        self._let_claimed_go()
        self._drop()
        self._error = None
        raise error

    def _let_claimed_go(self) -> None:
        """Under the lock: nothing waits to be encoded, or is being encoded, any more."""
        while self._claimed:
            for record in [record for shelf in self._shelves.values() for record in shelf.take()]:
                del self._claimed[record.digest]
                self._in_flight -= len(record.plain)
            if self._claimed:
                self._idle.wait()

    def _drop(self) -> None:
        for builder in (*self._builders.values(), *self._sealing, *self._sealed, *self._stale):
            with suppress(OSError):
                builder.abort()
        self._dropped.update(builder.id for builder in self._sealed)
        self._builders, self._sealing, self._sealed, self._stale = {}, {}, {}, []
        self._relied.clear()
        self._sealed_in.clear()
        self._claims.close()

    def close(self) -> None:
        """Forget what was not published."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for shelf in self._shelves.values():
                shelf.take()
            self._waiting.clear()
            self._claimed.clear()
            self._drop()

    def after_fork(self) -> None:
        """In a child process: the parent's unpublished packs and threads are not ours."""
        self._claims.after_fork()
        self._reset()


def _is_short(unit: Unit) -> bool:
    return len(unit.plain) <= limits.DICTIONARY_RECORD_BYTES_MAX and not unit.plane_width


def _is_small(kind: int, plain: Buffer, plane_width: int) -> bool:
    """Whether it can share a record or a dictionary with others: no chunk list, no floats, and not too long."""
    return len(plain) <= limits.DICTIONARY_RECORD_BYTES_MAX and not plane_width and kind == lpk.KIND_CHUNK
