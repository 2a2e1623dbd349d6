"""A store seen through its copies: what it lacks is fetched, checked and put back the moment that somebody asks for it.

`walk` runs over this instead of over the store, so that repair finds what is missing, and what stands below it, in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from leptonstore.digest import Digest, digest_of
from leptonstore.errors import ChunkMissing, LeptonError
from leptonstore.format import pack as lpk
from leptonstore.store.copies import Copy, Found, find_piece
from leptonstore.store.index import Place
from leptonstore.store.log import LogState
from leptonstore.store.store import Store
from leptonstore.store.stored import Stored
from leptonstore.store.walk import Unreadable


class Mending:
    """What `walk` needs of a store. With dry_run nothing is put: it only tells what could be. One thread."""

    def __init__(self, store: Store, copies: list[Copy], dry_run: bool) -> None:
        self._store, self._copies, self.dry_run = store, copies, dry_run
        self.fetched = self.fetched_bytes = 0
        # dry_run: damaged packs, and names of the records that are whole in them or in copies of them.
        self.damaged: set[str] = set()
        self.salvaged: set[Digest] = set()
        self._fetched: dict[Digest, int] = {}  # -> the kind of the record
        self._piece_of: dict[Digest, tuple[Digest, int, int]] = {}  # of the chunk list that was read last

    @property
    def state(self) -> LogState:
        """The log's state."""
        return self._store.state

    def why_absent(self, digest: Digest, where: str = "") -> LeptonError:
        """As Store.why_absent."""
        return self._store.why_absent(digest, where)

    def stored_name(self, digest: Digest) -> Digest:
        """As Store.stored_name."""
        return self._store.stored_name(digest)

    def locate(self, digest: Digest) -> Place | None:
        """As Store.locate, for what is sound or could be fetched."""
        place = self._store.locate(digest)
        if place is not None and self._is_sound(digest, place):
            return place
        if digest not in self._fetched and not self._fetch(digest):
            return None
        row = lpk.FooterRow(self.stored_name(digest), 0, 0, 0, self._fetched[digest], 0, 0, 0, lpk.DICTIONARY_NONE)
        return Place("", row)

    def stored_many(self, digests: Sequence[Digest]) -> list[Stored | None]:
        """As Store.stored_many, for what is sound or could be fetched."""
        places = map(self.locate, digests)
        return [None if place is None else self._store.stored_at(place) for place in places]

    def _is_sound(self, digest: Digest, place: Place) -> bool:
        """With dry_run the index still names damaged packs; otherwise they are gone from it by now."""
        return place.pack not in self.damaged or self.stored_name(digest) in self.salvaged

    def has(self, digest: Digest) -> bool:
        """As Store.has."""
        return self.locate(digest) is not None

    def record(self, digest: Digest) -> tuple[int, bytes]:
        """As Store.record."""
        kind, plain = self._record(digest)
        if kind == lpk.KIND_CHUNK_LIST:
            self._piece_of, offset = {}, 0
            for piece, length in lpk.parse_chunk_list(plain).pieces:
                self._piece_of.setdefault(piece, (digest, offset, length))
                offset += length
        return kind, plain

    def _record(self, digest: Digest) -> tuple[int, bytes]:
        try:
            return self._store.record(digest)
        except Unreadable as error:
            found = self._find(digest)
            if found is None:
                raise error
            self._keep(digest, found)
            return found.kind, found.plain

    def get(self, digest: Digest) -> bytes:
        """As Store.get."""
        kind, plain = self.record(digest)
        if kind == lpk.KIND_CHUNK:
            return plain
        if kind == lpk.KIND_REFERENCE:
            return self._store.get(digest)
        value = b"".join(self._record(piece)[1] for piece, _ in lpk.parse_chunk_list(plain).pieces)
        if digest_of(value) != digest:
            raise ChunkMissing(digest.hex(), "its pieces do not add up to it")
        return value

    # -- fetching ------------------------------------------------------------------------------------------------

    def _fetch(self, digest: Digest) -> bool:
        found = self._find(digest)
        if found is not None:
            self._keep(digest, found)
        return found is not None

    def _find(self, digest: Digest) -> Found | None:
        for copy in self._copies:
            found = copy.find(digest)
            if found is not None and self._fits(digest, found):
                return found
        if digest in self._piece_of:
            found = find_piece(self._copies, *self._piece_of[digest])
            if found is not None and self._fits(digest, found):
                return found
        return None

    def _fits(self, digest: Digest, found: Found) -> bool:
        """A chunk list is checked when its value is put together."""
        return found.kind == lpk.KIND_CHUNK_LIST or digest_of(found.plain) == digest

    def _keep(self, digest: Digest, found: Found) -> None:
        if digest in self._fetched:
            return
        self._fetched[digest] = found.kind
        if self.stored_name(digest) not in self.salvaged:
            self.fetched += 1
            self.fetched_bytes += len(found.plain)
        if self.dry_run:
            return
        if found.kind == lpk.KIND_CHUNK:
            self._store.put_piece(found.plain, found.content)
        else:
            self._store.put_chunk_list(digest, list(lpk.parse_chunk_list(found.plain).pieces), found.content)
