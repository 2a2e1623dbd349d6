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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from leptonstore import limits
from leptonstore.chunking import Chunker
from leptonstore.codec import CODEC_RAW, Encoded
from leptonstore.crypto import SealedDocuments
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    LeptonError,
    NotPermitted,
    PackDamaged,
    ReferenceBroken,
    StoreMissing,
    TierUnavailable,
    WrongKey,
)
from leptonstore.format import framed
from leptonstore.format import pack as lpk
from leptonstore.format.reference import encode_reference, parse_reference
from leptonstore.store import fences, footers, publication, reader, together
from leptonstore.store import keys as store_keys
from leptonstore.store.config import DOCUMENT, StoreConfig, parse_config
from leptonstore.store.index import Index, Place
from leptonstore.store.index_rows import Rows
from leptonstore.store.leases import Lease
from leptonstore.store.log import Log, LogState, Proposal
from leptonstore.store.opened import OpenedPack, OpenedPacks
from leptonstore.store.placement import HOME, Placement, placement_of
from leptonstore.store.publication import Decide, Erasure, Work
from leptonstore.store.reads import FILE as READS_FILE
from leptonstore.store.reads import add_reads
from leptonstore.store.references import References, Spot, reference_to
from leptonstore.store.stored import Stored
from leptonstore.store.tier_open import open_beside
from leptonstore.store.wire.address import is_served
from leptonstore.store.writer import Writer
from leptonstore.tiers.local import LocalTier, is_same_place
from leptonstore.tiers.open import open_tier
from leptonstore.tiers.roles import PackReader, StoreHome
from leptonstore.tiers.tiered import AbsentTier, TieredPacks

_T = TypeVar("_T")
_stores: weakref.WeakSet[Store]


class Store:
    """A store that exists. Make one with `Store.create` or `Store.open`; use it as a context manager or close it."""

    def __init__(
        self,
        tier: StoreHome,
        config: StoreConfig,
        cache_dir: Path | None = None,
        unlocked: store_keys.Unlocked | None = None,
    ) -> None:
        self.home, self.config, self.unlocked = tier, config, unlocked
        self.tier = TieredPacks([tier])  # where packs are
        self._keys = None if unlocked is None else unlocked.keys
        if (self._keys is None) != (config.encryption is None):
            raise WrongKey(f"{tier.url} is encrypted: open it with Store.open")
        self._lock = threading.RLock()
        self._counting = threading.Lock()  # of its own: who puts does not wait for who publishes
        # How this store's documents are written: in the clear, or sealed.
        self.documents = framed if self._keys is None else self._keys.documents
        self._log = Log(tier, tier.url, self.documents)
        self._state = self._log.load()
        self.placement = Placement()
        self._sync_tiers()
        self._chunker = Chunker(config.chunks, 0 if self._keys is None else self._keys.chunking_seed)
        self._cache_dir = cache_dir
        self._index = Index(config.store_id, tier.url, cache_dir)
        self._writer = Writer(self.tier, tier, config, self._publish_packs, self._keys)
        self._opened = OpenedPacks(self.tier, config.store_id, self._keys)
        self.references = References(self)
        # Garbage collection up to here does not concern our work. A publication does not move it: other threads may have
        # looked things up before, and publish later.
        self._base = self._state.gc_sequence
        self._writer.epoch = self._state.epoch
        self.damaged_packs: dict[str, str] = {}  # found while the index was filled; reads of what is whole go on
        self._silent = ""  # what a tier said that did not answer when the index was filled
        self._away: footers.Away | None = None  # None: to be looked up
        self._let_go: set[str] = set()  # packs that the log removed, and of which no file is open here
        self.put_bytes = 0  # plain bytes given to `put`
        self._sync_index()
        self.tier.save_reads = self._save_reads
        renew_in_children(self)
        if unlocked is not None:
            store_keys.lend(unlocked)

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        url: str | Path,
        config: StoreConfig | None = None,
        cache_dir: Path | None = None,
        unlock: store_keys.Unlock | None = None,
        cost: store_keys.ScryptCost | None = None,
    ) -> Store:
        """Make a new store, encrypted when `unlock` says under which passphrase or key file (`cost`: of a passphrase).

        Raises BadInput when there is one already, or when the place holds something else; TierMissing, TierUnavailable.
        """
        _require_place(url)
        tier = open_tier(url)
        there = tier.contents() or ()
        if DOCUMENT in there:
            raise BadInput(f"{tier.url} is a store already; use it as it is, or choose another place")
        # A crash between the first directory and the config leaves only these names behind: `create` goes on there.
        if set(there) - {"tmp", store_keys.FOLDER}:
            raise BadInput(f"{tier.url} is not empty and not a store: choose an empty or new place")
        config, unlocked = config or StoreConfig(), None
        if unlock is not None:
            config, unlocked = store_keys.create(tier, config, unlock, cost)
        # "Exists" may be the answer to our own: the id of the store is random.
        data = config.encode()
        if not tier.create_document(DOCUMENT, data) and tier.read_document(DOCUMENT, len(data)) != data:
            raise BadInput(f"{tier.url} became a store while this ran; use it as it is")
        tier.restore_reserve()  # when there is no room for it, gc makes it later
        return cls(tier, config, cache_dir, unlocked)

    @classmethod
    def open(cls, url: str | Path, cache_dir: Path | None = None, unlock: store_keys.Unlock | None = None) -> Store:
        """Open an existing store; `unlock` is a secret of an encrypted one, or what is called for it.

        A store that this process (or the one that it was forked from) has open needs none. Of a URL lepton://… it is the one that daemons
        serve there (remote_store.py), which needs none either. Raises StoreMissing, WrongKey, FormatDamaged or FormatTooNew.
        """
        if is_served(url):
            from leptonstore.store.remote_store import RemoteStore  # a Store itself; and it brings Arrow Flight

            return RemoteStore.open_url(str(url), cache_dir)
        tier, config = cls.read_config(url)
        return cls(tier, config, cache_dir, store_keys.open_keys(tier, config, unlock))

    def again(self) -> Store:
        """Another Store object of this store: with a writer and claims of its own, so that what one loses the other keeps."""
        return Store.open(self.url, self._cache_dir, self.secret_source)

    @staticmethod
    def read_config(url: str | Path) -> tuple[StoreHome, StoreConfig]:
        """The place and the settings of an existing store. Raises StoreMissing, FormatDamaged or FormatTooNew."""
        _require_place(url)
        tier = open_tier(url)
        data = tier.read_document(DOCUMENT, limits.CONFIG_BYTES_MAX)
        if data is None:
            why = "is not a store (it has no config)" if tier.contents() is not None else "does not exist"
            raise StoreMissing(f"{tier.url} {why}; create a store with `lepton init {tier.url}`", tier.url)
        return tier, parse_config(data, f"config of {tier.url}")

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.home.url

    @property
    def far(self) -> bool:
        """Whether a request takes longer than its bytes, for some of what it holds: then many chunks are asked for together."""
        return self.tier.far

    @property
    def is_local(self) -> bool:
        """Whether it lies in a directory of this host, where reading costs least."""
        return isinstance(self.home, LocalTier)

    @property
    def plans(self) -> bool:
        """Whether somebody makes ready what a reader says that it will need (`plan`)."""
        return False

    def plan(self, reader: str, digests: Sequence[Digest], restart: bool) -> None:
        """Tell what `reader` (a name of its own) will need next, in this order; restart: instead of what it told before, else after that.
        Advice: returns at once, and never fails."""

    def tell(self, reader: str, figures: Mapping[str, float | str]) -> None:
        """Tell how `reader` fares, for those who watch: waited_s, elapsed_s, rows, bytes, dataset, epoch. As `plan`."""

    @property
    def places(self) -> tuple[str, ...]:
        """The URLs of its tiers, as errors and `bytes_read` name them."""
        return tuple(tier.url for tier in self.tier.tiers)

    @property
    def requests(self) -> dict[str, int]:
        """Requests and bytes of the object stores that it lives on, since it was opened."""
        out: dict[str, int] = {}
        for tier in self.tier.tiers:
            counters = getattr(tier, "counters", None)
            for name, count in (counters.to_json() if counters is not None else {}).items():
                out[name] = out.get(name, 0) + count
        return out

    @property
    def is_served(self) -> bool:
        """Whether it is behind a daemon."""
        return False

    @property
    def encrypted(self) -> bool:
        """Whether what it holds must not lie in the clear elsewhere."""
        return self.config.encryption is not None

    def same_place(self, other: Store) -> bool:
        """Whether `other` is at the same place, also when a link leads there. (What a daemon serves is the daemon's.)"""
        if self.is_local and other.is_local:
            return is_same_place(self.home, other.home)
        return self.url == other.url

    @property
    def chunker(self) -> Chunker:
        """Cuts large values as this store does."""
        return self._chunker

    def cache_path(self, name: str) -> Path:
        """A folder of this store in the user's cache directory, which may not exist yet. What is in it can be deleted."""
        return self._index.path.parent / name

    def _save_reads(self) -> None:
        if len(self.placement.tiers) > 1:
            add_reads(self.cache_path(READS_FILE), self.tier.take_reads())

    def _sync_tiers(self, again: bool = False) -> None:
        """Use the tiers that the log says; again: try to open those that could not be opened. Raises FormatTooNew."""
        placement = placement_of(self._state)
        absent = again and any(isinstance(tier, AbsentTier) for tier in self.tier.tiers)
        if placement != self.placement or absent:
            made = {
                one: tier
                for one, tier in zip(self.placement.tiers, self.tier.tiers, strict=True)
                if not (absent and isinstance(tier, AbsentTier))
            }
            tiers = [
                self.home if one.name == HOME else made.get(one) or open_beside(one.url, self.config.store_id)
                for one in placement.tiers
            ]
            self.tier.use(tiers, placement.position(placement.write_to))
            self.placement = placement

    def _placed(self, packs: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """What a log entry says of new packs that are not at home."""
        if len(self.placement.tiers) == 1:
            return {}
        # Only for what is not here are the other tiers asked: one that is away must not keep the home from being written.
        away = [pack for pack in packs if self.home.pack_bytes(pack) is None]
        return {pack: tuple(self.placement.names[at] for at in self.tier.where(pack)) for pack in away}

    def _sync_index(self, again: bool = False) -> None:
        """again: also index packs whose tier did not answer before."""
        self._sync_tiers(again)
        try:
            with self.tier.waiting_once():
                self._index.sync(self._state, self._entry_digest, self._index_rows, again)
        finally:
            self._away = None
        if len(self._state.gone) > len(self._let_go):
            gone = self._state.gone - self._let_go
            self.tier.forget_packs(gone)  # an open file would keep the disk full until this process ends
            self._opened.forget(gone)
            self._let_go |= gone

    def _entry_digest(self, sequence: int) -> bytes | None:
        data = self._log.read(sequence)
        return None if data is None else digest_of(data)

    def _footer_rows(self, pack: str) -> list[lpk.FooterRow]:
        return self._footer(pack, reader.read_footer)

    def _footer(self, pack: str, read: Callable[[PackReader, str, bytes], _T]) -> _T | list[lpk.FooterRow]:
        """What `read` makes of the footer; of a damaged pack, the records that are still found. Raises TierUnavailable (of a tier that
        may have a whole copy), NotPermitted or OSError."""
        keep = footers.positions_of(self._state, self.placement, pack)
        try:
            return footers.from_whole_copy(self.tier, keep, lambda tier: read(tier, pack, self.config.store_id))
        except PackDamaged as error:
            # One damaged pack must not take the others with it: index what is whole; `lepton check` tells the rest.
            self.damaged_packs[pack] = error.why
            return reader.salvage_rows(self.tier, self.opened(pack))

    def _index_rows(self, pack: str) -> Rows | list[lpk.FooterRow] | None:
        """`_footer_rows`, as an array where the pack is whole; None when its tier does not answer. Any thread."""
        try:
            return self._footer(pack, reader.read_footer_array)
        except (TierUnavailable, OSError) as error:
            # Without its home there is no store; without another tier, what the others have can be read.
            if len(self.tier.tiers) == 1 or (isinstance(error, TierUnavailable) and error.tier == self.home.url):
                raise
            self._silent = str(error)
            return None

    def why_absent(self, digest: Digest, where: str = "") -> LeptonError:
        """The error for a chunk that is in no pack that is indexed: ChunkMissing, or TierUnavailable when it may be in one that could
        not be, because its tier is away. `refresh` tries again."""
        away = self._packs_away()
        return away.error(digest) if away.packs else ChunkMissing(digest.hex(), where)

    def _packs_away(self) -> footers.Away:
        away = self._away
        if away is None:  # once for all that is looked up until the next `refresh`
            away = footers.away_of(self._index.away(), self._state, self.placement, self._silent)
            self._away = away
        return away

    @property
    def packs_away(self) -> list[str]:
        """Packs that are not indexed here, because their tier did not answer: what they hold counts as unknown, not as missing."""
        return list(self._packs_away().packs)

    def reindex(self) -> None:
        """Fill the index anew from every pack: before somebody is told that a chunk is missing."""
        with self._lock:
            self.damaged_packs.clear()
            self._index.clear()
            self._sync_index()

    def refresh(self) -> None:
        """See what other writers published since, and what tiers have that were away."""
        with self._lock:
            self._log.replay(self._state)
            fences.follow_epoch(self)
            self._sync_index(again=True)

    # -- refs ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> LogState:
        """The log's state as last seen by this object. Do not change it. Another thread's `refresh` advances it: see `moment`."""
        return self._state

    def moment(self) -> LogState:
        """The state as it is now, which stays so: for who needs several parts of one moment while other threads use this object."""
        with self._lock:
            return replace(self._state)

    def history(self) -> Iterator[dict[str, Any]]:
        """The bodies of all log entries, oldest first."""
        entries: list[dict[str, Any]] = []
        self._log.replay(LogState(), entries.append)
        yield from entries

    def entry(self, sequence: int) -> dict[str, Any] | None:
        """The body of one log entry, None when there is none. Raises FormatDamaged or FormatTooNew."""
        data = self._log.read(sequence)
        what = f"log entry {sequence} of {self.url}"
        return None if data is None else self.documents.parse(data, "log", what)

    # -- reading -------------------------------------------------------------------------------------------------

    def locate(self, digest: Digest) -> Place | None:
        """Where a published chunk is; None when it is not known (or only pending). In a pack where one has it, else as a reference."""
        place = self._index.get(self.stored_name(digest))
        return self._better(digest, place) if _is_reference(place) else place

    def _better(self, digest: Digest, place: Place | None) -> Place | None:
        """A place of the chunk itself, where there is one beside the reference that `place` is."""
        places = self._index.places(self.stored_name(digest))
        return next((other for other in places if not _is_reference(other)), place)

    def locate_many(self, digests: Sequence[Digest]) -> list[Place | None]:
        """`locate` of each."""
        places = self._index.get_many([self.stored_name(digest) for digest in digests])
        if self.references.used:
            for at, place in enumerate(places):
                if _is_reference(place):
                    places[at] = self._better(digests[at], place)
        return places

    def stored_many(self, digests: Sequence[Digest]) -> list[Stored | None]:
        """What is known of each without reading it; None for what is not known (or only pending)."""
        return [None if place is None else self.stored_at(place) for place in self.locate_many(digests)]

    def stored_at(self, place: Place) -> Stored:
        """What is known of the chunk at a place."""
        row, listed = place.row, self._state.packs.get(place.pack)
        content = lpk.CONTENT_DATA if listed is None else listed.content
        return Stored(row.kind, row.plain, row.share, content, row.plane_width, row.codec == CODEC_RAW)

    def opened(self, pack: str) -> OpenedPack:
        """What decoding the records of a pack needs."""
        return self._opened.get(pack)

    def opened_in(self, tier: PackReader, pack: str) -> OpenedPack:
        """`opened`, of the copy in one tier, with nothing kept in memory: for those who look for damage."""
        return OpenedPacks(tier, self.config.store_id, self._keys).get(pack)

    def stored_name(self, digest: Digest) -> Digest:
        """What packs, footers and the index call a chunk: its digest, or in an encrypted store a keyed digest of that."""
        return digest if self._keys is None else self._keys.name(digest)

    @property
    def hot_names(self) -> Callable[[Digest], bytes] | None:
        """What a hot cache calls the store's chunks (cache/chunks.py): None for their digests, which do in the clear."""
        return self.stored_name if self.encrypted else None

    @property
    def sealer(self) -> SealedDocuments | None:
        """Seals what is kept of an encrypted store elsewhere (caches on this host); None when the store is in the clear."""
        return None if self._keys is None else self._keys.documents

    @property
    def secret_source(self) -> store_keys.SecretSource | None:
        """Where the passphrase or key file can be read again; it may be pickled, the secret never is."""
        return None if self.unlocked is None else self.unlocked.source

    def has(self, digest: Digest) -> bool:
        """Whether `get` would find it, as far as this process knows. What garbage collection condemned counts as absent."""
        if digest in self._writer:
            return True
        return self._place_outside(digest, self._state.lost) is not None

    def has_many(self, digests: Sequence[Digest]) -> list[bool]:
        """`has` of each."""
        return [self.has(digest) for digest in digests]

    def _place_outside(self, digest: Digest, avoided: Callable[[str], bool]) -> Place | None:
        """A place of the chunk in a pack that is not `avoided`."""
        place = self.locate(digest)
        if place is None or not avoided(place.pack):
            return place
        others = sorted(self._index.places(self.stored_name(digest)), key=_is_reference)
        return next((other for other in others if not avoided(other.pack)), None)

    def get(self, digest: Digest) -> bytes:
        """The plain bytes. Raises ChunkMissing or ChunkCorrupt, or TierUnavailable: it is, or may be, in a tier that is away.

        Of a value that stands outside of the store: ReferenceBroken, or NotPermitted when nobody allowed this host to read there.
        """
        kind, data = self.record(digest)
        if kind == lpk.KIND_CHUNK:
            return data
        if kind == lpk.KIND_REFERENCE:
            return self._referred(digest, data)
        pieces = lpk.parse_chunk_list(data)
        out = bytearray()
        parts = self.get_pieces([piece for piece, _ in pieces.pieces])
        for (piece, length), part in zip(pieces.pieces, parts, strict=True):
            if len(part) != length:
                raise ChunkCorrupt(digest.hex(), "-", f"its piece {piece.hex()[:16]} is not {length} plain bytes")
            out += part
        value = bytes(out)
        if digest_of(value) != digest:
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it")
        return value

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """`get` of each, in order. On an object store, what lies close together is read together."""
        return together.get_many(self, digests, self.get)

    def get_encoded(self, digests: Sequence[Digest], encoded: bool) -> Iterator[tuple[bytes, Encoded | None]]:
        """`get` of each chunk that has a record of its own, with (encoded) what it is stored as, where another store could do the same."""
        return together.get_encoded(self, digests, encoded)

    def in_order(self, digests: Sequence[Digest]) -> list[Digest]:
        """In the order in which they are kept, which is the order in which reading them costs least."""
        found = zip(digests, self.locate_many(digests), strict=True)
        return [digest for digest, _ in sorted(found, key=lambda item: _position(item[1]))]

    def find_many(self, digests: Sequence[Digest]) -> together.Found:
        """Look for chunks that are to be read straight into their places. What is not published yet is left to `get`."""
        return together.Found(self, digests)

    def _piece(self, digest: Digest) -> bytes:
        """A chunk; never a chunk list, which could lead back to the list that names it."""
        kind, data = self.record(digest)
        if kind == lpk.KIND_REFERENCE:
            return self._referred(digest, data)
        if kind != lpk.KIND_CHUNK:
            raise ChunkCorrupt(digest.hex(), "-", "it is named as a piece of a large value, and is none")
        return data

    def _referred(self, digest: Digest, data: bytes) -> bytes:
        """The bytes that the reference `data` leads to, or another one to equal bytes. Raises ReferenceBroken, NotPermitted."""
        try:
            return self.references.read(digest, parse_reference(data))
        except ReferenceBroken as error:
            for place in self._index.places(self.stored_name(digest)):
                with suppress(ChunkCorrupt, NotPermitted, TierUnavailable):
                    kind, other = self._record_at(place)
                    if kind == lpk.KIND_CHUNK:
                        return other
                    if kind == lpk.KIND_REFERENCE and other != data:
                        return self.references.read(digest, parse_reference(other))
            raise error

    def record(self, digest: Digest) -> tuple[int, bytes]:
        """(kind, plain bytes) of one record: a chunk, the encoded list of a large value's pieces, or a reference."""
        unpublished = self._writer.record(digest)
        if unpublished is not None:
            return unpublished
        place = self.locate(digest)
        if place is None:
            self.refresh()  # another writer may have published it since
            place = self.locate(digest)
        if place is None:
            raise self.why_absent(digest)
        try:
            return self._record_at(place)
        except ChunkCorrupt:
            if self.tier.pass_over(place.pack):  # another tier has a copy
                return self._record_at(place)
            if self.tier.pack_bytes(place.pack) is not None:
                raise
        self.refresh()  # the pack's file is missing: garbage collection may have moved the chunk to another
        again = self.locate(digest)
        if again is None:
            raise self.why_absent(digest)
        return self._record_at(again)

    def _record_at(self, place: Place) -> tuple[int, bytes]:
        """From the tier that it is read from. Raises ChunkCorrupt, which names that tier."""
        try:
            return reader.read_record(self.tier, place.row, self.opened(place.pack))
        except ChunkCorrupt as error:
            raise error.of(self.tier.last_of(place.pack)) from None

    def read_into(self, digest: Digest, out: memoryview, check: bool = True) -> None:
        """`get` of a value that is one chunk, into memory that is exactly as long. Raises ChunkMissing or ChunkCorrupt.

        check=False: its digest is not checked (its CRC is), for the pieces of a value whose own digest the caller checks.
        """
        place = self.locate(digest)
        if place is not None and place.row.kind == lpk.KIND_CHUNK:
            try:
                reader.read_chunk_into(self.tier, place.row, self.opened(place.pack), out, check)
                return
            except ChunkCorrupt:
                if (
                    self.tier.one_copy and self.tier.pack_bytes(place.pack) is not None
                ):  # else `get` looks for another copy
                    raise
        data = self.get(digest)
        if len(data) != len(out):
            raise ChunkCorrupt(digest.hex(), "-", f"it has {len(data)} bytes where {len(out)} belong")
        out[:] = data

    def get_pieces(self, pieces: Sequence[Digest]) -> Iterator[bytes]:
        """`get_many` of the pieces of a large value, none of which may be a large value itself."""
        return together.get_many(self, pieces, self._piece)

    def pieces(self, digest: Digest) -> tuple[tuple[Digest, int], ...] | None:
        """The pieces (digest and length) of a large value, None for one that is a single chunk.

        Raises ChunkMissing or ChunkCorrupt. For readers that stream: `get` of each piece checks that piece only.
        """
        place = self.locate(digest)
        if place is not None and place.row.kind == lpk.KIND_CHUNK:
            return None
        kind, data = self.record(digest)
        return lpk.parse_chunk_list(data).pieces if kind == lpk.KIND_CHUNK_LIST else None

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False, plane_width: int = 0) -> Digest:
        """Keep `data` and return its digest; does nothing when the store has it. Long values are cut by content.

        `data` is compressed in the background and must not change until the next `flush` or `publish`, after which it
        is durable. here: compress in the calling thread, for a caller that has a pool of its own. plane_width: bytes of a
        value (2, 4, 8) when `data` holds floats. Raises StoreFull, now or at a later call; then everything since the last
        flush is forgotten and has to be put again.
        """
        view = memoryview(data).cast("B")
        digest = digest_of(view)
        with self._counting:
            self.put_bytes += len(view)
        if len(view) <= self.config.chunks.cut_above:
            # `add` itself looks among what is not published: a store that is filled for the first time looks there once.
            if not self._state.packs or not self._found(digest):
                self._writer.add(digest, lpk.KIND_CHUNK, view, content, here, plane_width)
            return digest
        if self._found(digest):
            return digest
        pieces = [(self.put_piece(piece, content, here, plane_width), len(piece)) for piece in self._chunker.cut(view)]
        self.put_chunk_list(digest, pieces, content)
        return digest

    def put_checked(
        self,
        digest: Digest,
        data: Buffer,
        content: int = lpk.CONTENT_DATA,
        plane_width: int = 0,
        encoded: Encoded | None = None,
    ) -> None:
        """`put` of bytes that were just checked against their digest: they are not hashed again.

        encoded: what they become, without a dictionary, when a store with the same settings has it: they are not compressed again.
        """
        view = memoryview(data).cast("B")
        if len(view) > self.config.chunks.cut_above:
            self.put(view, content, plane_width=plane_width)
        elif not self._found(digest):
            with self._counting:
                self.put_bytes += len(view)
            self._writer.add(digest, lpk.KIND_CHUNK, view, content, plane_width=plane_width, encoded=encoded)

    def put_piece(
        self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False, plane_width: int = 0
    ) -> Digest:
        """Keep one piece of a value that is too long to be held at once, as the chunker cut it; see `put_chunk_list`."""
        digest = digest_of(data)
        if not self._found(digest):
            self._writer.add(digest, lpk.KIND_CHUNK, data, content, here, plane_width)
        return digest

    def put_reference(self, data: Buffer, root: int, spot: Spot) -> Digest:
        """`put` of a value that stands at `spot` of an object outside: `data` is hashed and not kept, only where it stands.

        root: of `references.add_root`. A chunk that the store has is left as it is; until the next flush, so is a reference by whoever puts
        the same bytes. Raises BadInput for a name that cannot be kept.
        """
        view = memoryview(data).cast("B")
        digest = digest_of(view)
        with self._counting:
            self.put_bytes += len(view)
        if len(view) <= self.config.chunks.cut_above:
            self.put_reference_piece(view, root, spot, digest)
            return digest
        pieces, at = [], spot.offset
        for piece in self._chunker.cut(view):
            pieces.append((self.put_reference_piece(piece, root, spot._replace(offset=at)), len(piece)))
            at += len(piece)
        self.put_chunk_list(digest, pieces, referred=True)
        return digest

    def put_reference_piece(self, data: Buffer, root: int, spot: Spot, digest: Digest | None = None) -> Digest:
        """`put_reference` of one chunk; of a piece of a value that is too long to be held at once, see `put_chunk_list`."""
        digest = digest_of(data) if digest is None else digest
        made = encode_reference(reference_to(root, spot, len(data)))
        if not self._found(digest, made):
            self._writer.add(digest, lpk.KIND_REFERENCE, made, lpk.CONTENT_DATA, here=True)
        return digest

    def put_chunk_list(
        self,
        digest: Digest,
        pieces: list[tuple[Digest, int]],
        content: int = lpk.CONTENT_DATA,
        referred: bool = False,
    ) -> None:
        """Keep the value `digest` as its pieces (digest and length each, in order), which have been put; referred: as references."""
        data = chunk_list_of(pieces)
        if not self._found(digest, b"" if referred else None):
            self._writer.add(digest, lpk.KIND_CHUNK_LIST, data, content, here=True)

    def known(self, digest: Digest, referred: bool = False) -> bool:
        """Whether `put` of such a value would write nothing; referred: or a reference to it is here. What is found is relied on by the
        next commit."""
        return self._found(digest, b"" if referred else None)

    def known_many(self, digests: Sequence[Digest]) -> list[bool]:
        """`known` of each."""
        return [self._found(digest) for digest in digests]

    def _found(self, digest: Digest, reference: bytes | None = None) -> bool:
        """reference: what would be put in place of the chunk; b"" for any. Without, a reference that is there does not count: who puts
        bytes is promised that the store keeps them."""
        if digest in self._writer:
            return True
        if not self._state.packs:  # a store that is filled for the first time: a tenth of the time of small values
            return False
        place = self._place_outside(digest, lambda pack: pack in self.damaged_packs or self._state.lost(pack))
        if place is None:
            return False
        if place.row.kind == lpk.KIND_REFERENCE and not self._refers(place, reference):
            return False
        if place.row.kind == lpk.KIND_CHUNK_LIST and not self._pieces_found(digest, reference is not None):
            return False
        self._writer.rely_on(place.pack)
        return True

    def _refers(self, place: Place, reference: bytes | None) -> bool:
        """Whether the reference at `place` will do for `reference`: the same one, or one whose object is as it was."""
        if not reference:
            return reference is not None
        try:
            found = self._record_at(place)[1]
            return found == reference or not self.references.changed(parse_reference(found))
        except (ChunkCorrupt, TierUnavailable, NotPermitted):
            return False

    def _pieces_found(self, digest: Digest, referred: bool) -> bool:
        """A large value counts as present only when each of its pieces does."""
        try:
            _, data = self.record(digest)
        except (ChunkCorrupt, ChunkMissing, TierUnavailable):
            return False  # then it is stored again
        any_reference = b"" if referred else None
        return all(self._found(piece, any_reference) for piece, _ in lpk.parse_chunk_list(data).pieces)

    @property
    def new_bytes(self) -> int:
        """Stored bytes of the records that this object added."""
        return self._writer.new_bytes

    @property
    def bytes_read(self) -> dict[str, int]:
        """URL of a tier -> bytes of packs that this object read of it, as they are stored; not what the hot cache or the operating
        system's page cache spared a device."""
        return self.tier.bytes_read

    @property
    def unflushed(self) -> bool:
        """Whether something was put that is not durable yet."""
        return self._writer.pending

    def flush(self) -> None:
        """Make everything that was put durable and visible to other processes. Raises StoreFull or Conflict."""
        if self._writer.pending:
            publication.publish(self, Work("packs", None, self._writer.finish()))
        with self._lock:
            self._log.confirm(self._state)  # what was found here and not put again may be another writer's newest work

    def began_at(self, gc_sequence: int) -> None:
        """The work that will be published by this object began when the state's `gc_sequence` was this: what garbage collection did since
        concerns it."""
        self._base = min(self._base, gc_sequence)

    def hand_over(self) -> None:
        """Nothing that was flushed so far needs to be spared for this process any more: a ref that another one published reaches it.

        For processes that put the parts of one commit; what was put and not flushed stays claimed.
        """
        self._writer.handed_over()

    @property
    def claimed(self) -> frozenset[str]:
        """The packs that garbage collection spares for this object: of what it put, and of what it found there instead, until a ref reaches
        that (or `hand_over`)."""
        return self._writer.claimed

    def rely_on(self, packs: Iterable[str]) -> None:
        """Count on published packs as on those of our own work: another process put a part of it, and tells what it `claimed`."""
        for pack in packs:
            self._writer.rely_on(pack)

    def publish(
        self, action: str, decide: Decide, author: str = "", ends: Set[str] = frozenset(), write_id: str = ""
    ) -> None:
        """Make everything that was put durable, and move refs in the same log entry.

        ends: commits (hex) at which history ends, because what came before them was not put: the entry says that it is forgotten,
        except of those that a ref protects by then.

        `decide` sees the newest state and returns the updates; it is called again after a lost race and raises Conflict
        when its wish is impossible by then. What garbage collection took meanwhile is stored again from wherever it can
        still be read. author: who the log says it was. write_id: by which the entry can be found again, when the answer may get
        lost. Raises StoreFull, Conflict or CommitExpired (it cannot be read any more); then no ref has moved.
        """
        publication.publish(self, Work(action, decide, self._writer.finish(), author, ends, write_id=write_id))

    def _publish_packs(self) -> None:
        """List the packs that are sealed by now; the work that goes on still relies on what it relied on."""
        publication.publish(self, Work("packs", None, None))

    @contextmanager
    def erasing(self) -> Iterator[None]:
        """Inside, what is put belongs to the epoch that `publish_erasure` begins; what is not published in it is forgotten at its end.

        Raises BadInput when something unpublished was put before.
        """
        with self._lock:
            self.refresh()
            if self._writer.pending:
                raise BadInput("this Store object has unpublished work: publish it, or erase with one of its own")
            self._writer.begin_epoch(self._state.epoch + 1)
        try:
            yield
        finally:
            if self._writer.epoch != self._state.epoch:
                self._writer.begin_epoch(self._state.epoch)

    def publish_erasure(self, decide: Decide, erasure: Erasure, author: str = "") -> None:
        """As `publish`, of what was put in `erasing`: with what `erasure` adds to the proposal, an epoch begins. Tags may move, too."""
        publication.publish(self, Work("erase", decide, self._writer.finish(), author, erasure=erasure))

    def append(self, decide: Callable[[LogState], Proposal]) -> None:
        """Append an entry that concerns no unpublished work (garbage collection); see Log.append."""
        with self._lock:
            self._log.append(self._state, decide)
            self._sync_index()

    def lease(self, commit: str) -> Lease:
        """Hold version `commit` (hex) against garbage collection until the lease is released or this process ends.

        What it reaches stays readable even when its ref is moved or removed. Raises RefMissing when no ref protects it now.
        """
        return fences.take_lease(self, commit)

    def replace_packs(self, action: str, packs: set[str], base: int) -> None:
        """Publish what was put and, in the same log entry, stop listing `packs`, whose whole records are among it.

        `base` is the state's `gc_sequence` from before the first `put`. Raises Conflict when garbage collection (or another
        repair) took packs away since then: what was found present may have been in those. Raises StoreFull.
        """
        publication.replace_packs(self, action, packs, base)

    def configure(self, settings: dict[str, Any], requires: tuple[str, ...] = ()) -> None:
        """Change settings of the store (None takes one away), and turn features on, for everybody. Raises StoreFull."""
        with self._lock:
            self._log.append(self._state, lambda state: Proposal("settings", settings=settings, requires=requires))
            self._sync_index()

    @property
    def indexed(self) -> int:
        """The log entry up to which this host's index is complete."""
        applied = self._index.applied()
        return 0 if applied is None else applied[0]

    def checkpoint(self, entries: int, kept: int) -> int:
        """Write a snapshot of the log as it is, unless there is one that is less than `entries` entries old; keep the newest `kept`.

        Returns the sequence of the newest one, 0 when there is none. Nothing needs them but speed: opening reads one, and what came after.
        """
        with self._lock:
            return self._log.checkpoint(self._state, entries, kept)

    # -- closing -------------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In a child process: new locks, and none of the parent's unfinished packs."""
        self._lock, self._counting = threading.RLock(), threading.Lock()
        self._opened = OpenedPacks(self.tier, self.config.store_id, self._keys)
        self._writer.after_fork()
        self.references.after_fork()
        self.tier.after_fork()

    def close(self) -> None:
        """Drop what was put but not flushed, and close files."""
        self._writer.close()
        self._save_reads()
        with self._lock:
            publication.sweep(self)
            self._index.close()
            self.tier.close()
            if self.unlocked is not None:
                store_keys.forget(self.unlocked)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def _repr_html_(self) -> str:
        """For notebooks: what its refs are."""
        from leptonstore.store.notebook import store_html

        return store_html(self)


def _require_place(url: str | Path) -> None:
    if is_served(url):
        raise BadInput(f"{url} is behind a daemon: make, unlock or look at a store itself where it is, by its path")


def _position(place: Place | None) -> tuple[str, int, int]:
    if place is None:
        return "", 0, 0
    return place.pack, place.row.offset, place.row.dictionary if place.row.is_member else 0


def renew_in_children(store: Store) -> None:
    """Have `store.after_fork` called in forked children."""
    _stores.add(store)


def chunk_list_of(pieces: list[tuple[Digest, int]]) -> bytes:
    """The record of a value in `pieces` (digest and length). Raises BadInput when they are too many."""
    if len(pieces) > limits.CHUNK_LIST_PIECES_MAX:
        raise BadInput(f"a value of {sum(length for _, length in pieces)} bytes has too many pieces; split it")
    return lpk.encode_chunk_list(pieces)


def _is_reference(place: Place | None) -> bool:
    return place is not None and place.row.kind == lpk.KIND_REFERENCE


_stores = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


os.register_at_fork(after_in_child=_after_fork)
