"""Copies what versions refer to outside of the store into it: references become chunks of the same digests, and no version changes.

Interrupted, what was copied is kept: the next run goes on. The references that are no longer needed go with the next `lepton gc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from leptonstore import limits
from leptonstore.digest import Digest
from leptonstore.errors import LeptonError
from leptonstore.format import pack as lpk
from leptonstore.store.reach import Reach
from leptonstore.store.store import Store


@dataclass
class MaterializeReport:
    """What was copied. Sizes are bytes; new_bytes: as they are stored."""

    chunks: int = 0
    plain_bytes: int = 0
    new_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


def materialize(
    store: Store,
    commits: Iterable[str],
    history: bool = True,
    progress: Callable[[MaterializeReport], None] = lambda report: None,
) -> MaterializeReport:
    """Copy what `commits` (hex) and, with `history`, what came before them refer to. Memory: READ_TOGETHER_BYTES, a few times.

    Raises ReferenceBroken for the first object that is gone or has changed (what was copied before stays), NotPermitted, TierUnavailable,
    StoreFull.
    """
    work = _Materialize(store, progress)
    try:
        Reach(store, work.visit, store.cache_path("materialize")).walk(commits, store.state.forgotten, history=history)
        work.copy()
    except BaseException:
        with suppress(LeptonError, OSError):
            store.flush()  # found by the next attempt
        raise
    store.flush()
    return work.finish()


class _Materialize:
    def __init__(self, store: Store, progress: Callable[[MaterializeReport], None]) -> None:
        self.report = MaterializeReport()
        self._store, self._progress, self._before = store, progress, store.new_bytes
        self._waiting: dict[Digest, int] = {}
        self._bytes = 0

    def visit(self, digest: Digest) -> None:
        """A chunk that is reached."""
        place = self._store.locate(digest)
        if place is None:
            return
        if place.row.kind == lpk.KIND_CHUNK_LIST:
            for piece, _ in self._store.pieces(digest) or ():
                self._add(piece)
        elif place.row.kind == lpk.KIND_REFERENCE:
            self._add(digest)

    def _add(self, digest: Digest) -> None:
        place = self._store.locate(digest)
        if place is None or place.row.kind != lpk.KIND_REFERENCE or digest in self._waiting:
            return
        self._waiting[digest] = place.row.plain or 0
        self._bytes += place.row.plain or 0
        if self._bytes >= limits.READ_TOGETHER_BYTES:
            self.copy()

    def copy(self) -> None:
        """What waits."""
        wanted = [digest for digest in self._waiting if not self._store.known(digest)]
        for data in self._store.get_pieces(wanted):
            self._store.put_piece(data)
            self.report.chunks += 1
            self.report.plain_bytes += len(data)
        self._waiting.clear()
        self._bytes = 0
        self.finish()

    def finish(self) -> MaterializeReport:
        """The report as of now: what waits to be compressed is not in it yet."""
        self.report.new_bytes = self._store.new_bytes - self._before
        self._progress(self.report)
        return self.report
