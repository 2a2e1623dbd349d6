"""Lines of history between two stores: which commits the destination lacks, and which of two came first.

A commit has one name everywhere, so either store tells what it says; it is read where that costs less. Memory: an entry a commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from leptonstore import limits
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import ChunkCorrupt, ChunkMissing
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.store.store import Store


@dataclass(frozen=True)
class Line:
    """Commits (hex) that are to travel."""

    commits: tuple[str, ...]  # newest first
    met: frozenset[str]  # commits of the destination at which the walk stopped
    ends: frozenset[str]  # commits whose parents do not travel


class Lines:
    """The commits of `source` and `destination`, which are open and different. Not for use by several threads."""

    def __init__(self, source: Store, destination: Store) -> None:
        self.source, self.destination = source, destination
        # What both have is read where that costs less.
        self.destination_is_near = destination.is_local and not source.is_local
        self._held: dict[Digest, bytes] = {}  # commits as they were read, while they are few
        self._held_bytes = 0

    def line_of(self, heads: Iterable[str], theirs: Set[str], depth: int | None = None) -> Line:
        """The versions from `heads` (hex) back to `theirs`, which the destination protects, to where history was forgotten on
        either side, or to the depth-th generation (1: the heads alone)."""
        frontier, met = list(dict.fromkeys(heads)), dict[str, None]()
        stopped, ends = set[str](), set[str]()
        forgotten = self.source.state.forgotten | self.destination.state.forgotten
        generation = 0
        while frontier:
            generation += 1
            following: dict[str, None] = {}
            new = [commit for commit in frontier if commit not in theirs and commit not in met]
            stopped.update(commit for commit in frontier if commit in theirs)
            for commit in new:
                met[commit] = None
                parents = [parent.hex() for parent in self.commit(commit).parents]
                there = [parent for parent in parents if parent in theirs]
                # One that leads to what the destination keeps must go on leading there.
                deep = depth is not None and generation >= depth and not there
                if set(parents) - set(there) and (commit in forgotten or deep):
                    ends.add(commit)
                else:
                    following.update(dict.fromkeys(parents))
            frontier = list(following)
        # Another head may lead to what one was cut off from.
        cut = {end for end in ends if not {parent.hex() for parent in self.commit(end).parents} <= met.keys() | theirs}
        return Line(tuple(met), frozenset(stopped), frozenset(cut))

    def ancestors(self, heads: Iterable[str]) -> set[str]:
        """`heads` of the destination and everything before them, up to where it has forgotten it."""
        found: set[str] = set()
        frontier = list(heads)
        while frontier:
            new = [commit for commit in dict.fromkeys(frontier) if commit not in found]
            found.update(new)
            followed = [commit for commit in new if commit not in self.destination.state.forgotten]
            frontier = [parent.hex() for commit in followed for parent in self.commit(commit).parents]
        return found

    def is_before(self, old: str, new: str) -> bool:
        """Whether `old` came before `new`, as far as neither side has forgotten it."""
        forgotten = self.source.state.forgotten | self.destination.state.forgotten
        found: set[str] = set()
        frontier = [new]
        while frontier and old not in frontier:
            frontier = [commit for commit in dict.fromkeys(frontier) if commit not in found]
            found.update(frontier)
            followed = [commit for commit in frontier if commit not in forgotten or self._names(commit, old)]
            frontier = [parent.hex() for commit in followed for parent in self.commit(commit).parents]
        return old in frontier

    def _names(self, commit: str, parent: str) -> bool:
        return parse_hex(parent) in self.commit(commit).parents

    def commit(self, commit: str) -> Commit:
        """A version of either side. Raises ChunkMissing, ChunkCorrupt or FormatDamaged."""
        return parse_commit(self.read(parse_hex(commit)))

    def read(self, digest: Digest) -> bytes:
        """The bytes of a commit."""
        held = self._held.get(digest)
        if held is not None:
            return held
        data = self.from_destination(digest) if self.near(digest) is self.destination else self.source.get(digest)
        if self._held_bytes + len(data) <= limits.TRANSFER_COMMITS_BYTES:
            self._held_bytes += len(data)
            self._held[digest] = data
        return data

    def near(self, digest: Digest) -> Store:
        """Where to read what both may have. A version that the destination keeps may be gone from the source."""
        if self.destination_is_near:
            return self.destination if self.destination.has(digest) else self.source
        return self.source if self.source.has(digest) or not self.destination.has(digest) else self.destination

    def near_many(self, digests: Sequence[Digest]) -> list[bool]:
        """Of each, whether `near` is the source."""
        if self.destination_is_near:
            return [not there for there in self.destination.has_many(digests)]
        found = self.source.has_many(digests)
        absent = [digest for digest, there in zip(digests, found, strict=True) if not there]
        elsewhere = dict(zip(absent, self.destination.has_many(absent), strict=True)) if absent else {}
        return [there or not elsewhere[digest] for digest, there in zip(digests, found, strict=True)]

    def from_destination(self, digest: Digest) -> bytes:
        """From the destination; from the source when a collection takes it there, or it is damaged."""
        try:
            return self.destination.get(digest)
        except (ChunkMissing, ChunkCorrupt):
            return self.source.get(digest)
