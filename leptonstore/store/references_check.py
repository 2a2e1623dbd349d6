"""Which references cannot be read: for `lepton check`. Without reading data, by what the keepers of the objects say of them now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import ChunkCorrupt, LeptonError, ReferenceBroken
from leptonstore.format import pack as lpk
from leptonstore.format.reference import Reference, parse_reference
from leptonstore.store import reader
from leptonstore.store.store import Store
from leptonstore.tiers.external import Stamp

_BATCH = 1_024
_Listed = tuple[Digest, Reference]


class ReferenceCheck:
    """Looks at the references of packs, one pack after another. One thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stamps: OrderedDict[tuple[int, str], Stamp | OSError] = (
            OrderedDict()
        )  # of objects that were asked for lately
        self.looked_at = 0

    def broken(self, pack: str, read_data: bool) -> Iterator[tuple[Digest, ReferenceBroken]]:
        """The references of a pack that do not lead to what was imported; not those whose chunk some pack has.

        Raises NotPermitted (a root that nobody allowed on this host), TierUnavailable.
        """
        rows = [row for row in self._store._footer_rows(pack) if row.kind == lpk.KIND_REFERENCE]
        for first in range(0, len(rows), _BATCH):
            listed = list(self._listed(pack, rows[first : first + _BATCH]))
            self.looked_at += len(listed)
            for digest, error in self._read(listed) if read_data else self._asked(listed):
                if not self._elsewhere(digest):
                    yield digest, error

    def _listed(self, pack: str, rows: Sequence[lpk.FooterRow]) -> Iterator[_Listed]:
        opened = self._store.opened(pack)
        for row in rows:
            place = self._store.locate(row.digest)
            if place is not None and place.row.kind != lpk.KIND_REFERENCE:
                continue
            with suppress(ChunkCorrupt):  # whoever examines packs tells of it
                yield row.digest, parse_reference(reader.read_record(self._store.tier, row, opened)[1])

    def _read(self, listed: Sequence[_Listed]) -> Iterator[tuple[Digest, ReferenceBroken]]:
        for batch in batches(listed):
            for (digest, _), found in zip(batch, self._store.references.read_many(batch), strict=True):
                if isinstance(found, ReferenceBroken):
                    yield digest, found

    def _asked(self, listed: Sequence[_Listed]) -> Iterator[tuple[Digest, ReferenceBroken]]:
        references = self._store.references
        self._ask({(reference.root, reference.path) for _, reference in listed})
        for digest, reference in listed:
            why = references.changed(reference, self._stamp)
            if why:
                yield digest, ReferenceBroken(digest.hex(), references.name(reference), why)

    def _ask(self, objects: set[tuple[int, str]]) -> None:
        """Several at a time: on a bucket each is a request."""

        def stamp(one: tuple[int, str]) -> Stamp | OSError:
            try:
                return self._store.references.stamp(*one)
            except OSError as error:
                return error

        new = sorted(objects - self._stamps.keys())
        with ThreadPoolExecutor(limits.OBJECT_THREADS, "lepton-references") as pool:
            self._stamps.update(zip(new, pool.map(stamp, new), strict=True))
        while len(self._stamps) > max(limits.REFERENCE_STAMPS_MAX, len(objects)):
            self._stamps.popitem(last=False)

    def _stamp(self, root: int, path: str) -> Stamp:
        found = self._stamps.get((root, path)) or self._store.references.stamp(root, path)
        if isinstance(found, OSError):
            raise found
        return found

    def _elsewhere(self, digest: Digest) -> bool:
        """Whether another reference leads to the same bytes."""
        if len(self._store._index.places(digest)) > 1:
            with suppress(LeptonError):
                self._store.get(digest)
                return True
        return False


def batches(listed: Sequence[_Listed]) -> Iterator[Sequence[_Listed]]:
    """Of about READ_TOGETHER_BYTES each."""
    first = size = 0
    for at, (_, reference) in enumerate(listed):
        if size >= limits.READ_TOGETHER_BYTES:
            yield listed[first:at]
            first, size = at, 0
        size += reference.length
    if listed:
        yield listed[first:]


def count_references(store: Store) -> dict[int, tuple[int, int]]:
    """Root number -> how many references lead below it, and to how many bytes; only those of chunks that no pack has."""
    found: dict[int, tuple[int, int]] = {}
    check = ReferenceCheck(store)
    for pack in sorted(store.state.packs):
        rows = [row for row in store._footer_rows(pack) if row.kind == lpk.KIND_REFERENCE]
        for first in range(0, len(rows), _BATCH):
            for _, reference in check._listed(pack, rows[first : first + _BATCH]):
                count, size = found.get(reference.root, (0, 0))
                found[reference.root] = count + 1, size + reference.length
    return found
