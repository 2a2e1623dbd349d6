"""Store: put, get and has by digest; publish commits and refs through the log.

Invariants:
- `put` makes bytes readable in this process at once; `flush` and `publish` make them durable and visible to others.
- A ref moves only in a log entry that is appended after every pack it needs is durable.
- Everything that is returned was checked against its digest in this call.

Threads: all methods, one lock. Processes: any number may read and write; after a fork the child may read, and writes
packs of its own (what the parent had not flushed stays the parent's).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from leptonstore import limits
from leptonstore.chunking import Chunker
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    PackDamaged,
    StoreMissing,
)
from leptonstore.format import pack as lpk
from leptonstore.store import reader
from leptonstore.store.config import DOCUMENT, StoreConfig, parse_config
from leptonstore.store.index import Index, Place
from leptonstore.store.log import Log, LogState, Proposal, RefUpdate, require_ref
from leptonstore.store.writer import Writer, require_packs
from leptonstore.tiers.local import LocalTier
from leptonstore.tiers.open import open_tier

_stores: weakref.WeakSet[Store]


class Store:
    """A store that exists. Make one with `Store.create` or `Store.open`; use it as a context manager or close it."""

    def __init__(self, tier: LocalTier, config: StoreConfig, cache_dir: Path | None = None) -> None:
        self.tier, self.config = tier, config
        self._lock = threading.RLock()
        self._log = Log(tier, tier.url)
        self._chunker = Chunker(config.chunks)
        self._index = Index(config.store_id, tier.url, cache_dir)
        self._writer = Writer(tier, config, self._publish_packs)
        self._state = self._log.load()
        self.damaged_packs: dict[str, str] = {}  # found while the index was filled; reads of what is whole go on
        self.put_bytes = 0  # plain bytes given to `put`
        self._sync_index()
        _stores.add(self)

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, url: str | Path, config: StoreConfig | None = None, cache_dir: Path | None = None) -> Store:
        """Make a new store. Raises BadInput when there is one already, or when the directory holds something else."""
        tier = open_tier(url)
        if tier.root.exists() and not tier.root.is_dir():
            raise BadInput(f"{tier.url} is a file: a store needs a directory")
        if (tier.root / DOCUMENT).exists():
            raise BadInput(f"{tier.url} is a store already; use it as it is, or choose another place")
        # A crash between the first directory and the config leaves only these names behind: `create` goes on there.
        if tier.root.is_dir() and set(os.listdir(tier.root)) - {"tmp"}:
            raise BadInput(f"{tier.url} is not empty and not a store: choose an empty or new directory")
        config = config or StoreConfig()
        if not tier.create_document(DOCUMENT, config.encode()):
            raise BadInput(f"{tier.url} became a store while this ran; use it as it is")
        return cls(tier, config, cache_dir)

    @classmethod
    def open(cls, url: str | Path, cache_dir: Path | None = None) -> Store:
        """Open an existing store. Raises StoreMissing, FormatDamaged or FormatTooNew."""
        tier = open_tier(url)
        data = tier.read_document(DOCUMENT, limits.CONFIG_BYTES_MAX)
        if data is None:
            why = "is not a store (it has no config)" if tier.root.exists() else "does not exist"
            raise StoreMissing(f"{tier.url} {why}; create a store with `lepton init {tier.url}`", tier.url)
        return cls(tier, parse_config(data, f"config of {tier.url}"), cache_dir)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.tier.url

    def _sync_index(self) -> None:
        self._index.sync(self._state, self._entry_digest, self._footer_rows)

    def _entry_digest(self, sequence: int) -> bytes | None:
        data = self._log.read(sequence)
        return None if data is None else digest_of(data)

    def _footer_rows(self, pack: str) -> list[lpk.FooterRow]:
        try:
            return reader.read_footer(self.tier, pack, self.config.store_id)
        except PackDamaged as error:
            # One damaged pack must not take the others with it: index what is whole; `lepton check` tells the rest.
            self.damaged_packs[pack] = error.why
            return reader.salvage_rows(self.tier, pack)

    def refresh(self) -> None:
        """See what other writers published since."""
        with self._lock:
            self._log.replay(self._state)
            self._sync_index()

    # -- refs ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> LogState:
        """The log's state as last seen by this object. Do not change it."""
        return self._state

    def history(self) -> Iterator[dict[str, Any]]:
        """The bodies of all log entries, oldest first."""
        entries: list[dict[str, Any]] = []
        self._log.replay(LogState(), entries.append)
        yield from entries

    # -- reading -------------------------------------------------------------------------------------------------

    def locate(self, digest: Digest) -> Place | None:
        """Where a published chunk is; None when it is not known (or only pending)."""
        return self._index.get(digest)

    def stored_name(self, digest: Digest) -> Digest:
        """What packs, footers and the index call a chunk: its digest."""
        return digest

    def has(self, digest: Digest) -> bool:
        """Whether `get` would find it, as far as this process knows."""
        return digest in self._writer or self._index.get(digest) is not None

    def get(self, digest: Digest) -> bytes:
        """The plain bytes. Raises ChunkMissing or ChunkCorrupt."""
        kind, data = self.record(digest)
        if kind == lpk.KIND_CHUNK:
            return data
        pieces = lpk.parse_chunk_list(data)
        out = bytearray()
        for piece, length in pieces.pieces:
            kind, part = self.record(piece)
            if kind != lpk.KIND_CHUNK or len(part) != length:
                raise ChunkCorrupt(digest.hex(), "-", f"its piece {piece.hex()[:16]} is not {length} plain bytes")
            out += part
        value = bytes(out)
        if digest_of(value) != digest:
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it")
        return value

    def record(self, digest: Digest) -> tuple[int, bytes]:
        """(kind, plain bytes) of one record: a chunk, or the encoded list of a large value's pieces."""
        unpublished = self._writer.record(digest)
        if unpublished is not None:
            return unpublished
        place = self._index.get(digest)
        if place is None:
            self.refresh()  # another writer may have published it since
            place = self._index.get(digest)
        if place is None:
            raise ChunkMissing(digest.hex())
        return reader.read_record(self.tier, place.pack, place.row)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False) -> Digest:
        """Keep `data` and return its digest; does nothing when the store has it. Long values are cut by content.

        `data` is compressed in the background and must not change until the next `flush` or `publish`, after which it
        is durable. here: compress in the calling thread, for a caller that has a pool of its own. Raises StoreFull, now
        or at a later call; then everything since the last flush is forgotten and has to be put again.
        """
        view = memoryview(data).cast("B")
        digest = digest_of(view)
        with self._lock:
            self.put_bytes += len(view)
        if self._found(digest):
            return digest
        if len(view) <= self.config.chunks.cut_above:
            self._writer.add(digest, lpk.KIND_CHUNK, view, content, here)
            return digest
        pieces = [(self.put_piece(piece, content, here), len(piece)) for piece in self._chunker.cut(view)]
        self.put_chunk_list(digest, pieces, content)
        return digest

    def put_piece(self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False) -> Digest:
        """Keep one piece of a value that is too long to be held at once, as the chunker cut it; see `put_chunk_list`."""
        digest = digest_of(data)
        if not self._found(digest):
            self._writer.add(digest, lpk.KIND_CHUNK, data, content, here)
        return digest

    def put_chunk_list(self, digest: Digest, pieces: list[tuple[Digest, int]], content: int = lpk.CONTENT_DATA) -> None:
        """Keep the value `digest` as its pieces (digest and length each, in order), which have been put."""
        if len(pieces) > limits.CHUNK_LIST_PIECES_MAX:
            raise BadInput(f"a value of {sum(length for _, length in pieces)} bytes has too many pieces; split it")
        if not self._found(digest):
            self._writer.add(digest, lpk.KIND_CHUNK_LIST, lpk.encode_chunk_list(pieces), content, here=True)

    def known(self, digest: Digest) -> bool:
        """Whether `put` of such a value would write nothing. What is found is relied on by the next commit."""
        return self._found(digest)

    def _found(self, digest: Digest) -> bool:
        if digest in self._writer:
            return True
        place = self._index.get(digest)
        if place is None or place.pack in self.damaged_packs:
            return False
        if place.row.kind == lpk.KIND_CHUNK_LIST and not self._pieces_found(digest):
            return False
        self._writer.rely_on(place.pack)
        return True

    def _pieces_found(self, digest: Digest) -> bool:
        """A large value counts as present only when each of its pieces does."""
        _, data = self.record(digest)
        return all(self._found(piece) for piece, _ in lpk.parse_chunk_list(data).pieces)

    @property
    def new_bytes(self) -> int:
        """Stored bytes of the records that this object added."""
        return self._writer.new_bytes

    def flush(self) -> None:
        """Make everything that was put durable and visible to other processes. Raises StoreFull or Conflict."""
        if self._writer.pending:
            self._publish("packs", (), self._writer.finish())

    def publish(self, action: str, decide: Callable[[LogState], tuple[RefUpdate, ...]]) -> None:
        """Make everything that was put durable, and move refs in the same log entry.

        `decide` sees the newest state and returns the updates; it is called again after a lost race and raises Conflict
        when its wish is impossible by then. Raises StoreFull or Conflict; then no ref has moved.
        """
        self._publish(action, decide, self._writer.finish())

    def _publish_packs(self) -> None:
        """List the packs that are sealed by now; the work that goes on still relies on what it relied on."""
        self._publish("packs", (), None)

    def _publish(
        self, action: str, decide: Callable[[LogState], tuple[RefUpdate, ...]] | tuple[()], round: int | None
    ) -> None:
        with self._lock:
            sealed = self._writer.sealed()
            if round is None and not sealed:
                return

            def propose(state: LogState) -> Proposal:
                require_packs(self._writer.relied, set(state.packs))
                updates = decide(state) if callable(decide) else ()
                for update in updates:
                    require_ref(state, update)
                return Proposal(action, sealed, updates)

            self._log.append(self._state, propose)
            self._sync_index()
            self._writer.published(set(sealed), round)

    # -- closing -------------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In a child process: new locks, and none of the parent's unfinished packs."""
        self._lock = threading.RLock()
        self._writer.after_fork()
        self.tier.after_fork()

    def close(self) -> None:
        """Drop what was put but not flushed, and close files."""
        self._writer.close()
        with self._lock:
            self._index.close()
            self.tier.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"


_stores = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


os.register_at_fork(after_in_child=_after_fork)
