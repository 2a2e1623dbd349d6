"""RemoteStore: a store behind a daemon. Reads, writes and the log go there; nothing of the store lies here: no index, no packs, no key.

    reads    remote_reads.py     many chunks in a request, checked on arrival
    writes   remote_writes.py    a write session; published by compare-and-set of the heads that were seen here
    state    the refs that this client's credential may see, as of the last `refresh`
    link     wire/link.py        which daemon is asked, over what, how often again

It is a Store for whoever reads and writes versions. What works on packs, tiers, keys or the log itself is done where the store is:
those attributes are `OnlyThere`, and say so in one line.

Invariants: as Store's. What is returned was checked against its digest here. A ref moves only by `publish`. What was put and is read before
it was published is flushed first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from leptonstore import limits
from leptonstore.chunking import Chunker, ChunkSizes
from leptonstore.codec import Encoded
from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, CommitExpired, Conflict, FormatDamaged, LeptonError
from leptonstore.format import pack as lpk
from leptonstore.store.config import Encryption, StoreConfig
from leptonstore.store.index import cache_folder
from leptonstore.store.leases import Lease
from leptonstore.store.log import LogState, Proposal, require_ref
from leptonstore.store.remote_reads import RemoteChunks, RemoteFound, open_cache
from leptonstore.store.remote_writes import RemoteWriter, new_id
from leptonstore.store.store import Decide, Store, chunk_list_of, renew_in_children
from leptonstore.store.stored import Stored
from leptonstore.store.wire.address import parse_address
from leptonstore.store.wire.link import Link
from leptonstore.store.wire.messages import payload_of


class OnlyThere:
    """An attribute of Store that only a store has that lies here: whoever asks for it is told where to go."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, store: RemoteStore | None, owner: type) -> Any:
        if store is None:
            return self
        raise refused(store.url)


def refused(url: str) -> BadInput:
    """The error for what cannot be done over the network."""
    return BadInput(
        f"{url} is behind a daemon: this works on the store's own files, so run it on the daemon's host, with the store's path"
    )


class RemoteStore(Store):
    """A served store. Any thread. Pickled datasets of it reopen by its URL; after a fork the child connects anew, and what the parent had
    not flushed stays the parent's."""

    home = tier = placement = documents = references = OnlyThere()
    unlocked = None
    put_reference = put_reference_piece = locate = locate_many = opened = opened_in = OnlyThere()
    erasing = publish_erasure = replace_packs = reindex = indexed = packs_away = stored_at = OnlyThere()
    entry = checkpoint = began_at = OnlyThere()

    def __init__(self, link: Link, cache_dir: Path | None = None) -> None:
        # Not Store's: there is nothing to open here.
        self._link = link
        told = link.open({"boot": _boot()})
        self.config = _config(told["store"], link.url)
        self._cache_dir = cache_dir
        self._chunker = Chunker(self.config.chunks)
        self._state = LogState()
        self._known: int | None = None
        self._plans = True
        self.put_bytes = 0
        self.damaged_packs: dict[str, str] = {}
        self._writer: RemoteWriter = RemoteWriter(link, lambda: self._base)  # type: ignore[assignment]
        self._chunks = RemoteChunks(link, lambda: self._writer.session)
        self._chunks.cache = open_cache(told.get("cache")) if self.config.encryption is None else None
        self._leases: weakref.WeakSet[RemoteLease] = weakref.WeakSet()
        self._renewing: threading.Timer | None = None
        self._lock = threading.RLock()
        self._counting = threading.Lock()
        self.refresh()
        self._base = self._state.gc_sequence
        renew_in_children(self)

    @classmethod
    def open_url(cls, url: str, cache_dir: Path | None = None) -> RemoteStore:
        """Raises BadInput (no such URL), TierUnavailable (nobody answers), StoreMissing, NotAuthenticated, FormatTooNew."""
        return cls(Link(parse_address(url)), cache_dir)

    @property
    def url(self) -> str:
        """lepton://HOST:PORT/NAME"""
        return self._link.url

    @property
    def link(self) -> Link:
        """Asks daemons."""
        return self._link

    @property
    def far(self) -> bool:
        """Always: a request takes longer than its bytes."""
        return True

    @property
    def is_local(self) -> bool:
        """Never."""
        return False

    @property
    def is_served(self) -> bool:
        """Always."""
        return True

    @property
    def places(self) -> tuple[str, ...]:
        """Its URL."""
        return (self.url,)

    @property
    def requests(self) -> dict[str, int]:
        """None that are counted."""
        return {}

    def cache_path(self, name: str) -> Path:
        """As Store."""
        return cache_folder(self.config.store_id, self.url, self._cache_dir) / name

    def stored_name(self, digest: Digest) -> Digest:
        """The digest: names of an encrypted store are made where its key is."""
        return digest

    @property
    def hot_names(self) -> None:
        """As Store. Raises BadInput where the store is encrypted: names that only readers know are made of a key, which is not here."""
        if self.encrypted:
            raise BadInput(f"{self.url} is encrypted: what comes from it is kept in no hot cache of a client")

    @property
    def sealer(self) -> None:
        """None: the key is not here. (See `encrypted`.)"""
        return None

    @property
    def secret_source(self) -> None:
        """None: no secret is needed here."""
        return None

    # -- the log -------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """See what others published since."""
        with self._lock:
            told = self._link.act("state", {} if self._known is None else {"known": self._known})
            body = told.get("state")
            if body is None and self._known is not None:
                return
            what = f"the state of {self.url}"
            if not isinstance(body, dict):
                raise FormatDamaged(f"{what} is damaged")
            state = LogState.from_json({**body, "packs": {}}, what)
            if state.gc_sequence != self._state.gc_sequence:
                self._chunks.forget()
            self._state, self._known = state, state.sequence

    def history(self) -> Iterator[dict[str, Any]]:
        """Log entries that the credential may see, oldest first, without their packs."""
        last = 0

        def request(rows: int) -> bytes:
            return self._link.request("history", {"since": last})

        for batch in self._link.stream(request):
            for text in batch.column(0).to_pylist():
                try:
                    entry = json.loads(text)
                    last = int(entry["sequence"])
                    refs = entry["refs"]
                except (TypeError, ValueError, KeyError, RecursionError):
                    raise FormatDamaged(f"{self.url} sent a log entry that cannot be read") from None
                if not isinstance(refs, list):
                    raise FormatDamaged(f"{self.url} sent a log entry that cannot be read")
                yield entry

    # -- reading -------------------------------------------------------------------------------------------------

    def _readable(self, digests: Iterable[Digest]) -> None:
        """What was put and not flushed is made so first."""
        if self._writer.is_unflushed(digests):
            self.flush()

    def has(self, digest: Digest) -> bool:
        """As Store, as far as the credential may see."""
        return digest in self._writer or self._chunks.facts([digest], fresh=True)[0] is not None

    def has_many(self, digests: Sequence[Digest]) -> list[bool]:
        """As Store, in one request."""
        found = self._chunks.facts(digests, fresh=True)
        return [fact is not None or digest in self._writer for digest, fact in zip(digests, found, strict=True)]

    def why_absent(self, digest: Digest, where: str = "") -> LeptonError:
        """As Store."""
        return ChunkMissing(digest.hex(), where)

    def get(self, digest: Digest) -> bytes:
        """As Store."""
        (value,) = self.get_many([digest])
        return value

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """As Store."""
        self._readable(digests)
        return self._chunks.get_many(digests)

    def get_pieces(self, pieces: Sequence[Digest]) -> Iterator[bytes]:
        """As Store."""
        self._readable(pieces)
        return self._chunks.get_pieces(pieces)

    def get_encoded(self, digests: Sequence[Digest], encoded: bool) -> Iterator[tuple[bytes, Encoded | None]]:
        """As Store; what comes over the network is not encoded."""
        return ((data, None) for data in self.get_many(digests))

    def in_order(self, digests: Sequence[Digest]) -> list[Digest]:
        """As they are: only the daemon knows, and reads them so."""
        return list(digests)

    def find_many(self, digests: Sequence[Digest]) -> RemoteFound:  # type: ignore[override]
        """As Store; what is not published yet is published first."""
        self._readable(digests)
        return self._chunks.find_many(digests)

    def stored_many(self, digests: Sequence[Digest]) -> list[Stored | None]:
        """As Store."""
        return self._chunks.facts(digests)

    def record(self, digest: Digest) -> tuple[int, bytes]:
        """As Store, but that what a reference leads to comes as a chunk."""
        found = self._writer.unpublished(digest)
        if found is not None:
            return found
        self._readable([digest])
        return self._chunks.record(digest)

    def read_into(self, digest: Digest, out: memoryview, check: bool = True) -> None:
        """As Store; the digest is always checked."""
        data = self.get(digest)
        if len(data) != len(out):
            raise ChunkCorrupt(digest.hex(), "-", f"it has {len(data)} bytes where {len(out)} belong")
        out[:] = data

    def pieces(self, digest: Digest) -> tuple[tuple[Digest, int], ...] | None:
        """As Store."""
        self._readable([digest])
        fact = self._chunks.facts([digest])[0]
        if fact is not None and fact.kind != lpk.KIND_CHUNK_LIST:
            return None
        kind, data = self.record(digest)
        return lpk.parse_chunk_list(data).pieces if kind == lpk.KIND_CHUNK_LIST else None

    @property
    def bytes_read(self) -> dict[str, int]:
        """URL of the store -> plain bytes that came from it."""
        return {self.url: self._chunks.bytes_read}

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False, plane_width: int = 0) -> Digest:
        """As Store; it is compressed by the daemon. here: `data` may change when this returns, so it is copied."""
        view = memoryview(data).cast("B")
        digest = digest_of(view)
        self._put(digest, view, content, plane_width, here)
        return digest

    def put_checked(
        self,
        digest: Digest,
        data: Buffer,
        content: int = lpk.CONTENT_DATA,
        plane_width: int = 0,
        encoded: Encoded | None = None,
    ) -> None:
        """As Store; `encoded` is not used: the daemon encodes."""
        self._put(digest, memoryview(data).cast("B"), content, plane_width, False)

    def _put(self, digest: Digest, view: memoryview, content: int, plane_width: int, here: bool) -> None:
        with self._counting:
            self.put_bytes += len(view)
        if len(view) <= self.config.chunks.cut_above:
            self._writer.add(digest, lpk.KIND_CHUNK, bytes(view) if here else view, content, plane_width)
        elif not self.known(digest):
            pieces = [
                (self.put_piece(piece, content, here, plane_width), len(piece)) for piece in self._chunker.cut(view)
            ]
            self.put_chunk_list(digest, pieces, content)

    def put_piece(
        self, data: Buffer, content: int = lpk.CONTENT_DATA, here: bool = False, plane_width: int = 0
    ) -> Digest:
        """As Store. here: as in `put`."""
        digest = digest_of(data)
        self._writer.add(digest, lpk.KIND_CHUNK, bytes(data) if here else data, content, plane_width)
        return digest

    def put_chunk_list(
        self,
        digest: Digest,
        pieces: list[tuple[Digest, int]],
        content: int = lpk.CONTENT_DATA,
        referred: bool = False,
    ) -> None:
        """As Store."""
        self._writer.add(digest, lpk.KIND_CHUNK_LIST, chunk_list_of(pieces), content)

    def known(self, digest: Digest, referred: bool = False) -> bool:
        """As Store."""
        return self.known_many([digest])[0]

    def known_many(self, digests: Sequence[Digest]) -> list[bool]:
        """As Store."""
        return self._writer.known(digests)

    @property
    def new_bytes(self) -> int:
        """Stored bytes that this object added, as the daemon said when it was flushed last."""
        return self._writer.new_bytes

    def flush(self) -> None:
        """As Store. Raises also CommitExpired: the daemon ended with what it had not made durable."""
        self._writer.flush()

    def hand_over(self) -> None:
        """As Store; the daemon's session spares what it put until it is closed or published."""

    @property
    def claimed(self) -> frozenset[str]:
        """None: the daemon claims packs for its sessions."""
        return frozenset()

    def rely_on(self, packs: Iterable[str]) -> None:
        """As Store. What others put counts from when this object was opened: see `publish`."""

    def publish(
        self, action: str, decide: Decide, author: str = "", ends: Set[str] = frozenset(), write_id: str = ""
    ) -> None:
        """As Store. `decide` runs here; the daemon moves the refs if they are where it saw them, else it is asked again.

        Garbage collection since this object was opened makes the daemon look at all that the new commits reach.
        """
        for _ in range(limits.LOG_APPEND_TRIES_MAX):
            self.refresh()
            seen = self._state
            updates = decide(seen)
            for update in updates:
                require_ref(seen, update)
            if not updates:
                self.flush()
                return
            try:
                self._writer.publish(action, updates, author, ends, seen.sequence, write_id or new_id())
                break
            except CommitExpired:
                raise
            except Conflict:
                self.refresh()
                if self._state.sequence == seen.sequence:
                    raise
        else:
            raise Conflict(f"{self.url} is too busy: lost {limits.LOG_APPEND_TRIES_MAX} races; run it again")
        self.refresh()

    def append(self, decide: Callable[[LogState], Proposal]) -> None:
        """Settings alone: what else goes into the log by itself is done where the store is."""
        proposal = decide(self._state)
        if proposal != Proposal(proposal.action, settings=proposal.settings, requires=proposal.requires):
            raise refused(self.url)
        self.configure(proposal.settings, proposal.requires)

    def configure(self, settings: dict[str, Any], requires: tuple[str, ...] = ()) -> None:
        """As Store, for a credential with the scope admin."""
        self._link.act("append", {"settings": settings, "requires": list(requires)})
        self.refresh()

    # -- holding versions ----------------------------------------------------------------------------------------

    def lease(self, commit: str) -> Lease:
        """As Store. The daemon holds it for as long as this process renews it."""
        lease = RemoteLease(self._link, commit)
        with self._lock:
            self._leases.add(lease)
            self._renew_later(lease.renew_s)
        return lease

    def _renew_later(self, seconds: float) -> None:
        if self._renewing is None:
            self._renewing = threading.Timer(seconds, _renew, (weakref.ref(self),))
            self._renewing.daemon = True
            self._renewing.start()

    def _renew(self) -> None:
        with self._lock:
            self._renewing = None
            leases = list(self._leases)
        for lease in leases:
            lease.renew()
        with self._lock:
            if self._leases:
                self._renew_later(min(lease.renew_s for lease in self._leases))

    # -- loaders -------------------------------------------------------------------------------------------------

    def without_cache(self) -> None:
        """Read around the hot cache of the daemon's host, as a client elsewhere does."""
        self._chunks.cache = None

    @property
    def plans(self) -> bool:
        """As Store: until the daemon says that it does not."""
        return self._plans

    def plan(self, reader: str, digests: Sequence[Digest], restart: bool) -> None:
        """As Store: the daemons of a cluster fetch it from the bucket before it is asked for."""
        self._chunks.submit(functools.partial(self._plan, reader, list(digests), restart))

    def _plan(self, reader: str, digests: list[Digest], restart: bool) -> None:
        with contextlib.suppress(LeptonError):
            for first in range(0, max(1, len(digests)), limits.WIRE_PLAN_DIGESTS):
                some = digests[first : first + limits.WIRE_PLAN_DIGESTS]
                more = first > 0 or not restart
                told = self._link.act("plan", {"reader": reader, "more": more}, payload_of(some), patience_s=0)
                self._plans = not some or told.get("planned") != 0

    def tell(self, reader: str, figures: Mapping[str, float | str]) -> None:
        """As Store: the daemon's dashboard shows it."""
        self._chunks.submit(functools.partial(self._tell, {**figures, "reader": reader}))

    def _tell(self, figures: dict[str, Any]) -> None:
        with contextlib.suppress(LeptonError):
            self._link.act("tell", figures, patience_s=0)

    # -- closing -------------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """As Store."""
        self._lock, self._counting = threading.RLock(), threading.Lock()
        self._renewing = None
        self._leases = weakref.WeakSet()  # the parent's
        self._writer.after_fork()
        self._chunks.after_fork()

    def close(self) -> None:
        """As Store."""
        with self._lock:
            timer, self._renewing = self._renewing, None
        if timer is not None:
            timer.cancel()
        self._writer.close()
        self._chunks.close()
        self._link.close()

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"


class RemoteLease(Lease):
    """A commit that a daemon holds for this process."""

    def __init__(self, link: Link, commit: str) -> None:
        told = link.act("lease", {"commit": commit})
        self.commit, self._link = commit, link
        self._id = str(told.get("lease"))
        renew = told.get("renew_s", 60.0)
        self.renew_s = float(renew) if isinstance(renew, int | float) and renew > 0 else 60.0
        self._finalizer = weakref.finalize(self, _let_go, link, self._id, os.getpid())

    def renew(self) -> None:
        """Say that it is still wanted; what does not reach the daemon now is said again the next time."""
        if self._finalizer.alive:
            with contextlib.suppress(LeptonError):
                self._link.act("lease", {"commit": self.commit, "lease": self._id}, patience_s=self.renew_s / 4)


def _let_go(link: Link, id: str, pid: int) -> None:
    if os.getpid() == pid:  # a child made by fork must not end the parent's lease
        with contextlib.suppress(LeptonError):
            link.act("release", {"lease": id}, patience_s=0)


def _renew(ref: weakref.ref[RemoteStore]) -> None:
    store = ref()
    if store is not None:
        store._renew()


def _boot() -> str:
    """Names this start of this host, so that a daemon on it says where its hot cache is; "" where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _config(told: dict[str, Any], url: str) -> StoreConfig:
    """The settings of the store. Raises FormatDamaged."""
    try:
        return StoreConfig(
            bytes.fromhex(told["id"]),
            ChunkSizes(**told["chunks"]),
            told["zstd_level"],
            Encryption() if told.get("encrypted") else None,
        )
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise FormatDamaged(f"{url} tells settings of its store that cannot be: {error}") from None
