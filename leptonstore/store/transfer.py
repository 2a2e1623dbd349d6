"""Copies versions from one open store into another: only what the destination lacks travels.

    commits of the source, back to what the destination protects        (line_of)
      -> what they reach and those do not (Reach, level by level) -> is it there? -> read many -> write -> publish with the ref

What may be passed over, and why (docs/decisions/0023):

- A chunk that the destination's index knows is not sent, but that says nothing of what lies below it: an interrupted transfer, or
  garbage collection, may have left a node without its children. So the walk goes on below it, and looks up each chunk by itself.
- Only below a commit that a ref of the destination protects may everything be taken to be there: that is the store's own invariant.
  Such trees are walked in step with the new ones, and what they share is not looked at. The log entry that moves the ref proves that
  they are still protected, or that everything is there (store/fences.py); where it cannot, the copy is made again (`copy` twice is
  right, and sends what is missing by then).

What arrives is listed by the destination in packs as these fill up, and claimed there as long as this process lives; a transfer that was
interrupted and is run again finds it by its digests. Commits go last, and only with the entry that moves the ref.

Everything is checked: chunks against their digests as they are read, long values as a whole before their chunk list is written. They are
cut, compressed and sealed by the destination's settings. Memory: READ_TOGETHER_BYTES twice, IN_FLIGHT_BYTES_MAX, and an entry a commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from leptonstore import limits
from leptonstore.codec import Encoded
from leptonstore.digest import Digest, digest_of, parse_hex
from leptonstore.errors import ChunkCorrupt, ChunkMissing, LeptonError, TierUnavailable
from leptonstore.format import pack as lpk
from leptonstore.store.lines import Line, Lines
from leptonstore.store.reach import Reach
from leptonstore.store.store import Store
from leptonstore.store.stored import Stored


@dataclass
class TransferReport:
    """What travelled. Sizes are bytes."""

    dry_run: bool = False
    commits: int = 0
    chunks_sent: int = 0
    bytes_sent: int = 0  # as the destination stores them; with dry_run as the source does
    plain_bytes_sent: int = 0
    bytes_saved: int = 0  # plain: what the versions hold, less what was sent of pages and values
    chunks_present: int = 0  # of those that were looked up one by one
    requests: dict[str, dict[str, int]] = field(default_factory=dict)  # of object stores: "source", "destination"
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))

    def add(self, other: TransferReport) -> None:
        """What another transfer did, too."""
        for name, value in vars(other).items():
            if isinstance(value, dict):
                for end, counts in value.items():
                    mine = self.requests.setdefault(end, {})
                    mine.update({kind: mine.get(kind, 0) + count for kind, count in counts.items()})
            elif name != "dry_run":
                setattr(self, name, getattr(self, name) + value)


Progress = Callable[[TransferReport], None]


class Transfer:
    """Copies from `source` to `destination`, which are open and different. Not for use by several threads."""

    def __init__(
        self,
        source: Store,
        destination: Store,
        progress: Progress = lambda report: None,
        dry_run: bool = False,
    ) -> None:
        self.source, self.destination = source, destination
        self._progress, self._dry_run = progress, dry_run
        self.report = TransferReport(dry_run)
        self.lines = Lines(source, destination)
        # A record can be copied as it is: no key on either side, and the destination would compress it alike.
        self._as_it_is = (
            not source.encrypted
            and not destination.encrypted
            and source.config.zstd_level == destination.config.zstd_level
        )
        self._commits: set[Digest] = set()
        self._met: dict[Digest, None] = {}  # to be looked up with the next batch
        self._waiting: dict[Digest, None] = {}  # to be sent with the next batch
        self._read_through: set[Digest] = set()  # sent as they were read; the walk tells of them next
        self._counted: set[Digest] = set()  # dry_run: what would be there by now
        self._other_bytes = 0  # sent of commits and nodes, plain
        self._before = {name: store.requests for name, store in self._ends()}
        self._stored_before = destination.new_bytes
        self._begin = time.monotonic()

    def _ends(self) -> tuple[tuple[str, Store], ...]:
        return ("source", self.source), ("destination", self.destination)

    # -- copying -------------------------------------------------------------------------------------------------

    def copy(self, line: Line, trust: bool = True) -> None:
        """Put everything that the commits of `line` reach into the destination, the commits last; `publish` has to follow.

        trust=False: the destination's own versions are not relied on, each chunk is looked up. Whatever ends it, what has arrived
        is kept for the next attempt. Raises ChunkMissing, ChunkCorrupt, FormatDamaged (of the source), StoreFull.
        """
        self._commits = {parse_hex(commit) for commit in line.commits}
        near = self.destination if self.lines.destination_is_near else self.source
        known = [commit for commit in sorted(line.met) if trust and near.has(parse_hex(commit))]
        try:
            walk = Reach(self, self._visit, self.source.cache_path("transfer"))
            walk.walk(line.commits, stop=line.met, history=False, known=known)
            self._look()
            self._send()
            for commit in reversed(line.commits):
                self._send_commit(parse_hex(commit))
        except BaseException as error:
            self.keep(error)
            raise
        self._tell()
        self.report.commits = len(line.commits)

    def keep(self, error: BaseException) -> None:
        """After `error`: have the destination list what has arrived, so that another attempt finds it. Never fails."""
        source_away = isinstance(error, TierUnavailable) and error.tier in self.source.places
        if self._dry_run or (isinstance(error, TierUnavailable) and not source_away):
            return  # the destination does not answer: asking again takes another minute
        with suppress(LeptonError, OSError):
            self.destination.flush()

    def finish(self, plain_bytes: int) -> TransferReport:
        """The report, after `publish`. plain_bytes: what the versions that were asked for hold."""
        self._tell()
        self.report.bytes_saved = max(0, plain_bytes - (self.report.plain_bytes_sent - self._other_bytes))
        for name, store in self._ends():
            counted = store.requests
            if counted:
                before = self._before[name]
                self.report.requests[name] = {key: count - before.get(key, 0) for key, count in counted.items()}
        return self.report

    def get(self, digest: Digest) -> bytes:
        """For Reach: a commit, or the root of a tree."""
        return self.lines.read(digest) if digest in self._commits else next(self.get_many([digest]))

    def get_many(self, digests: Sequence[Digest]) -> Iterator[bytes]:
        """For Reach: nodes, and pages with references. What the destination lacks is sent as it is read."""
        from_source = self.lines.near_many(digests)
        far = [digest for digest, is_far in zip(digests, from_source, strict=True) if is_far]
        lacking = {digest for digest, there in zip(far, self._there(far), strict=True) if not there}
        facts = dict(zip(lacking, self.source.stored_many(list(lacking)), strict=True))
        read = iter(self.source.get_many(far))
        for digest, is_far in zip(digests, from_source, strict=True):
            if not is_far:
                yield self.lines.from_destination(digest)
                continue
            data = next(read)
            if digest in lacking:
                lacking.discard(digest)
                self._put(digest, data, facts[digest])
                self._read_through.add(digest)
            yield data

    def _there(self, digests: Sequence[Digest]) -> list[bool]:
        """Which of these chunks the destination has. What is found is relied on by the next publication."""
        if not self._dry_run:
            return self.destination.known_many(digests)
        there = self.destination.has_many(digests)
        return [has or digest in self._counted for digest, has in zip(digests, there, strict=True)]

    def _visit(self, digest: Digest) -> None:
        if digest in self._commits or digest in self._met or digest in self._waiting:
            return
        if digest in self._read_through:
            self._read_through.discard(digest)
            return
        self._met[digest] = None
        if len(self._met) >= limits.TRANSFER_BATCH_CHUNKS:
            self._look()

    def _look(self) -> None:
        """Which of what was met has to be sent."""
        met, self._met = list(self._met), {}
        for digest, there in zip(met, self._there(met), strict=True):
            if there:
                self.report.chunks_present += 1
            else:
                self._waiting[digest] = None
        if len(self._waiting) >= limits.TRANSFER_BATCH_CHUNKS:
            self._send()

    def _send(self) -> None:
        """What waits, in the order in which the source keeps it."""
        waiting, self._waiting = list(self._waiting), {}
        wanted = [digest for digest, there in zip(waiting, self._there(waiting), strict=True) if not there]
        wanted = self.source.in_order(wanted)
        facts = dict(zip(wanted, self.source.stored_many(wanted), strict=True))
        whole = [digest for digest, fact in facts.items() if fact is not None and fact.kind == lpk.KIND_CHUNK]
        self._send_whole(whole, facts)
        for digest in [digest for digest, fact in facts.items() if fact is None or fact.kind != lpk.KIND_CHUNK]:
            self._put_long(digest)

    def _send_whole(self, wanted: Sequence[Digest], facts: dict[Digest, Stored | None]) -> None:
        """Chunks that have a record each. It travels as it is where both stores would write the same."""
        if self._dry_run:
            for digest in wanted:
                self._put(digest, None, facts[digest])
            return
        stored = self.source.get_encoded(wanted, self._as_it_is)
        for digest, (data, encoded) in zip(wanted, stored, strict=True):
            self._put(digest, data, facts[digest], encoded)

    def _put(self, digest: Digest, data: bytes | None, fact: Stored | None, encoded: Encoded | None = None) -> None:
        content = lpk.CONTENT_DATA if fact is None else fact.content
        plain = len(data) if data is not None else 0 if fact is None else fact.plain or 0
        if self._dry_run:
            self._count(digest, plain, 0 if fact is None else fact.stored, content)
            return
        if data is not None:
            self.destination.put_checked(digest, data, content, 0 if fact is None else fact.plane_width, encoded)
        self._count(digest, plain, 0, content)

    def _fact(self, digest: Digest) -> Stored | None:
        return self.source.stored_many([digest])[0]

    def _count(self, digest: Digest, plain: int, stored: int, content: int) -> None:
        self.report.chunks_sent += 1
        self.report.plain_bytes_sent += plain
        if content == lpk.CONTENT_META:
            self._other_bytes += plain
        if self._dry_run:
            self.report.bytes_sent += stored
            if len(self._counted) < limits.SEEN_MAX:
                self._counted.add(digest)
        self._tell()

    def _tell(self) -> None:
        if not self._dry_run:
            self.report.bytes_sent = self.destination.new_bytes - self._stored_before
        self.report.seconds = time.monotonic() - self._begin
        self._progress(self.report)

    def _send_commit(self, digest: Digest) -> None:
        if not self._there([digest])[0]:
            data, fact = self.lines.read(digest), self._fact(digest)
            if not self._dry_run:
                self.destination.put_checked(digest, data, lpk.CONTENT_META)
            self._count(digest, len(data), 0 if fact is None else fact.stored, lpk.CONTENT_META)

    # -- long values ---------------------------------------------------------------------------------------------

    def _put_long(self, digest: Digest) -> None:
        """A value that the source keeps in pieces: cut as the destination does, a window at a time."""
        fact = self._fact(digest)
        if self._dry_run and fact is not None and fact.kind == lpk.KIND_REFERENCE:
            self._put(digest, None, fact)
            return
        pieces = self.source.pieces(digest)
        if pieces is None or sum(length for _, length in pieces) <= self.destination.config.chunks.cut_above:
            self._put(digest, self.source.get(digest), fact)
            return
        if self._dry_run:
            self._count_long(digest, pieces)
            return
        content = lpk.CONTENT_DATA if fact is None else fact.content
        found = self.source.stored_many([piece for piece, _ in pieces])
        width = max((one.plane_width for one in found if one is not None), default=0)
        chunker, hasher = self.destination.chunker, blake3()
        window = bytearray()
        made: list[tuple[Digest, int]] = []

        def put(piece: memoryview) -> None:
            name = digest_of(piece)
            made.append((name, len(piece)))
            if not self._there([name])[0]:
                self.destination.put_piece(bytes(piece), content, plane_width=width)
                self._count(name, len(piece), 0, content)

        for data in self._read_pieces(digest, pieces):
            hasher.update(data)
            window += data
            if len(window) >= limits.READ_WINDOW_BYTES + chunker.sizes.max_size:
                cut = list(chunker.cut_stream(window))
                rest = bytes(cut.pop())  # what follows may belong to it
                for piece in cut:
                    put(piece)
                window = bytearray(rest)
        for piece in chunker.cut_stream(window):
            put(piece)
        if hasher.digest() != digest:
            raise ChunkCorrupt(digest.hex(), "-", "its pieces do not add up to it")
        self.destination.put_chunk_list(digest, made, content)

    def _read_pieces(self, digest: Digest, pieces: Sequence[tuple[Digest, int]]) -> Iterator[bytes]:
        far = [piece for piece, _ in pieces]
        if self.lines.destination_is_near:
            far = [piece for piece, there in zip(far, self.destination.has_many(far), strict=True) if not there]
        read, left = self.source.get_pieces(far), iter(far)
        following = next(left, None)
        for piece, length in pieces:
            if piece == following:
                data, following = next(read), next(left, None)
            else:
                data = self._get_piece(piece)
            if len(data) != length:
                raise ChunkCorrupt(digest.hex(), "-", f"its piece {piece.hex()[:16]} is not {length} plain bytes")
            yield data

    def _get_piece(self, piece: Digest) -> bytes:
        try:
            return next(self.destination.get_pieces([piece]))
        except (ChunkMissing, ChunkCorrupt):
            return next(self.source.get_pieces([piece]))

    def _count_long(self, digest: Digest, pieces: Sequence[tuple[Digest, int]]) -> None:
        """As if the destination cut as the source does."""
        names = [name for name, _ in pieces]
        for (piece, length), fact, there in zip(
            pieces, self.source.stored_many(names), self._there(names), strict=True
        ):
            if not there and piece not in self._counted:
                self._count(piece, length, 0 if fact is None else fact.stored, lpk.CONTENT_DATA)
        self._counted.add(digest)
