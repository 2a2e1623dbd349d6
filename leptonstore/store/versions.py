"""All versions that a store keeps: the heads of its refs, and what came before them up to where history was forgotten.

Used by check, repair and du. Memory: one entry for each version.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from leptonstore.digest import parse_hex
from leptonstore.errors import ChunkCorrupt, ChunkMissing, FormatDamaged, FormatTooNew, TierUnavailable
from leptonstore.format.commit import Commit, parse_commit
from leptonstore.store.store import Store


@dataclass
class Version:
    """One commit as a version of one name. `name` is <kind>/<name>; `branches` are the refs whose head it is."""

    name: str
    commit: str
    branches: list[str] = field(default_factory=list)
    object: Commit | None = None  # None when it cannot be read

    @property
    def label(self) -> str:
        """For people: "dataset/mnist/main", or "dataset/mnist@1f2e3d4c5b6a" for one from the history."""
        return f"{self.name}/{self.branches[0]}" if self.branches else f"{self.name}@{self.commit[:12]}"


def all_versions(store: Store) -> list[Version]:
    """Sorted by name, heads first, then newest first along the parents.

    Commits that are damaged, or in a tier that is away, are there without their parents: a `walk` of them tells why.
    """
    made: dict[tuple[str, str], Version] = {}
    for ref, record in sorted(store.state.refs.items()):
        name, branch = ref.rsplit("/", 1)
        made.setdefault((name, record.commit), Version(name, record.commit)).branches.append(branch)
    read: dict[str, Commit | None] = {}
    for head in list(made.values()):
        queue = [head.commit]
        while queue:
            commit = queue.pop(0)
            version = made.setdefault((head.name, commit), Version(head.name, commit))
            if version.object is not None:
                continue
            if commit not in read:
                read[commit] = _commit(store, commit)
            version.object = read[commit]
            if version.object is not None and commit not in store.state.forgotten:
                queue += [parent.hex() for parent in version.object.parents]
    return sorted(made.values(), key=lambda version: (version.name, not version.branches))


def _commit(store: Store, commit: str) -> Commit | None:
    try:
        return parse_commit(store.get(parse_hex(commit)))
    except (ChunkCorrupt, ChunkMissing, FormatDamaged, FormatTooNew, TierUnavailable):
        return None
