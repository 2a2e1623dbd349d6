"""What the store holds, as far as a principal may see it, for pages: names, histories and versions, kept by the log's sequence.

Every page gets its names and commits here, so that what a principal may not see is not there: it is told as what does not exist is.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from leptonstore.cache import HotCache
from leptonstore.daemon.access import Principal
from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.operations import Scope
from leptonstore.dataset import Dataset
from leptonstore.dataset.graph import in_order, read_commit
from leptonstore.dataset.reflog import Published, add_publications, publications
from leptonstore.dataset.refs import RefInfo, list_refs, resolve_ref
from leptonstore.errors import BadInput, LeptonError, NotFound, RefMissing
from leptonstore.format.commit import KINDS, Commit
from leptonstore.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Name:
    """A dataset, model or checkpoint: the ref that its page begins with (main where there is one), and its newest change."""

    kind: str
    name: str
    refs: tuple[RefInfo, ...]

    @property
    def head(self) -> RefInfo:
        """main, else the branch that moved last, else the newest tag."""
        return max(self.refs, key=lambda ref: (ref.branch == "main", not ref.tag, ref.sequence))

    @property
    def changed(self) -> RefInfo:
        """The ref that moved last."""
        return max(self.refs, key=lambda ref: ref.sequence)


class Seen:
    """The store behind the pages. Any thread."""

    def __init__(self, store: Store, cache: HotCache | None = None) -> None:
        """cache: of the host, which rows are read through."""
        self.store, self._cache = store, cache
        self._looked = 0.0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()
        self._parents: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._published: tuple[int, int, dict[str, Published]] | None = (
            None  # epoch and sequence of the log that it knows
        )

    # -- what is kept --------------------------------------------------------------------------------------------

    def sequence(self) -> int:
        """The log's last entry, looked up at most once in REFRESH_S."""
        with self._lock:
            due = time.monotonic() - self._looked > bounds.REFRESH_S
            if due:
                self._looked = time.monotonic()
        if due:
            self.store.refresh()
        return self.store.state.sequence

    def keep(self, key: Hashable, make: Callable[[], T], version: Hashable = None) -> T:
        """`make` of this key, remembered until another version of it is asked for; two threads may both make it."""
        with self._lock:
            if key in self._kept and self._kept[key][0] == version:
                self._kept.move_to_end(key)
                kept: T = self._kept[key][1]
                return kept
        made = make()
        with self._lock:
            self._kept[key] = version, made
            while len(self._kept) > bounds.KEPT:
                self._kept.popitem(last=False)
        return made

    # -- names ---------------------------------------------------------------------------------------------------

    def names(self, who: Principal, kind: str) -> list[Name]:
        """Of one kind, by name."""
        found: dict[str, list[RefInfo]] = {}
        for ref in self.keep(("refs", kind), lambda: list_refs(self.store, kind), self.sequence()):
            if who.may(Scope.READ, ref.name):
                found.setdefault(ref.name, []).append(ref)
        return [Name(kind, name, tuple(refs)) for name, refs in sorted(found.items())]

    def name(self, who: Principal, kind: str, name: str) -> Name:
        """One of them. Raises RefMissing, also for what `who` may not see."""
        if kind not in KINDS:
            raise RefMissing(f"there is nothing of kind {kind!r}")
        refs = self.keep(("refs", kind), lambda: list_refs(self.store, kind), self.sequence())
        mine = tuple(ref for ref in refs if ref.name == name)
        if not mine or not who.may(Scope.READ, name):
            raise RefMissing(f"there is no {kind} {name!r} that you may see")
        return Name(kind, name, mine)

    def kinds(self, who: Principal) -> dict[str, int]:
        """How many names there are of each kind."""
        return {kind: len(self.names(who, kind)) for kind in KINDS}

    # -- versions ------------------------------------------------------------------------------------------------

    def history(self, name: Name) -> list[str]:
        """The commits (hex) of all its refs and before them, newest first, as far as they are kept."""
        heads = [ref.commit for ref in sorted(name.refs, key=lambda ref: (ref.branch != "main", -ref.sequence))]
        # Of the newest alone: a history of each version would be a square of memory.
        version = (tuple(heads), len(self.store.state.forgotten))
        key = ("history", name.kind, name.name)
        return self.keep(key, lambda: in_order(self.store, list(dict.fromkeys(heads))), version)

    def published(self) -> dict[str, Published]:
        """When each commit came into the store, and by whom. The log is read once, and from then on what is new of it."""
        sequence, state = self.sequence(), self.store.state
        with self._lock:
            if self._published is None or self._published[0] != state.epoch:
                self._published = (state.epoch, sequence, publications(self.store))
            epoch, known, found = self._published
            for number in range(known + 1, sequence + 1):
                add_publications(found, self.store.entry(number) or {})
            self._published = (epoch, max(known, sequence), found)
            return found

    def commit(self, digest: str) -> Commit:
        """A commit. Raises RefMissing or what is damaged."""
        return self.keep(("commit", digest), lambda: read_commit(self.store, digest))

    def parents(self, digest: str) -> tuple[str, ...]:
        """Those of its parents that are kept."""
        if digest in self.store.state.forgotten:
            return ()
        found = self._parents.get(digest)
        if found is None:
            found = tuple(parent.hex() for parent in self.commit(digest).parents)
            with self._lock:
                self._parents[digest] = found
                while len(self._parents) > bounds.PARENTS_KEPT:
                    self._parents.popitem(last=False)
        return found

    def version(self, who: Principal, kind: str, name: str, ref: str) -> tuple[Name, str]:
        """(the name, a commit of its history) for a branch, tag, commit, date or step of history. Raises RefMissing, BadInput."""
        found = self.name(who, kind, name)
        known = self.history(found)
        if ref in known:
            return found, ref
        try:
            commit = resolve_ref(self.store, kind, f"{name}@{ref}")[2]
        except BadInput:
            raise BadInput(f"{ref!r} names no version of {name}: give a branch, a tag, a commit or a date") from None
        except NotFound:
            raise RefMissing(f"{kind} {name!r} has no version {ref!r}") from None
        if commit not in known:  # a whole digest is found wherever it is, also in what belongs to others
            raise RefMissing(f"{kind} {name!r} has no version {ref!r}")
        return found, commit

    def dataset(self, name: Name, commit: str) -> Dataset:
        """A version to read rows of; of any kind, for models and checkpoints are tables, too."""
        ds = Dataset(self.store, name.name, commit[:12], commit)
        return ds if self._cache is None else ds.cached(self._cache)

    def refs_at(self, name: Name, commit: str) -> list[RefInfo]:
        """The branches and tags that lead to a version."""
        return [ref for ref in name.refs if ref.commit == commit]

    def rows_of(self, ref: RefInfo) -> tuple[int, int] | None:
        """(rows, plain bytes) of what a ref points to; None when it cannot be read now."""
        try:
            commit = self.commit(ref.commit)
        except LeptonError:
            return None
        return commit.rows, commit.plain_bytes
