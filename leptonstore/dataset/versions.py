"""What people ask of versions: which there were, who published each when, and which branches and tags lead to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset.graph import in_order, read_commit
from leptonstore.dataset.reflog import Published, publications
from leptonstore.dataset.refs import list_refs
from leptonstore.format.commit import Commit
from leptonstore.store import Store


@dataclass(frozen=True)
class Version:
    """A commit and what the log says of it. refs: the branches and tags at it. forgotten: its parents are not kept any more."""

    digest: str
    commit: Commit
    published: Published | None
    refs: tuple[str, ...]
    forgotten: bool

    @property
    def parents(self) -> tuple[str, ...]:
        """The versions right before that are kept."""
        return () if self.forgotten else tuple(parent.hex() for parent in self.commit.parents)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        told, found = self.published, self.commit
        return {
            "commit": self.digest,
            "rows": found.rows,
            "plain_bytes": found.plain_bytes,
            "message": found.message,
            "parents": [parent.hex() for parent in found.parents],
            "history_forgotten": self.forgotten,
            "author": None if told is None else told.author,
            "host": None if told is None else told.host,
            "time_s": None if told is None else told.time_s,
            "sequence": None if told is None else told.sequence,
            "refs": list(self.refs),
            "lineage": found.lineage,
        }


def versions(store: Store, heads: Iterable[str], kind: str = "dataset") -> Iterator[Version]:
    """The versions that `heads` (commits) lead to, newest first. Raises RefMissing, ChunkCorrupt or FormatDamaged."""
    return _told(store, in_order(store, list(heads)), kind)


def version(store: Store, digest: str, kind: str = "dataset") -> Version:
    """One version. Raises as `versions` does."""
    return next(_told(store, [digest], kind))


def _told(store: Store, digests: Iterable[str], kind: str) -> Iterator[Version]:
    published = publications(store)
    refs: dict[str, list[str]] = {}
    for info in list_refs(store, kind):
        refs.setdefault(info.commit, []).append(f"{info.name}@{info.branch}{' (tag)' if info.tag else ''}")
    for digest in digests:
        found, told = read_commit(store, digest), published.get(digest)
        yield Version(digest, found, told, tuple(refs.get(digest, ())), digest in store.state.forgotten)
