"""What changed between the schemas of two versions, and which columns can be compared value by value.

Columns are the same when they have the same name. A renamed one is known by the commit that renamed it: its tree is its parent's, only
names differ. Such commits are looked for on the line of first parents from the later version back to the earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from leptonstore.dataset.graph import parents_of, read_commit
from leptonstore.dataset.schema import shown_type
from leptonstore.format.commit import Commit
from leptonstore.format.schema import field_to_json
from leptonstore.store import Store


@dataclass(frozen=True)
class SchemaDiff:
    """Differences of two schemas; names of `changed` are those after. `identity` and `keyed` are (before, after) when they differ."""

    added: tuple[pa.Field, ...] = ()
    dropped: tuple[pa.Field, ...] = ()
    changed: tuple[tuple[pa.Field, pa.Field], ...] = ()  # type, nullability or metadata
    renamed: tuple[tuple[str, str], ...] = ()
    reordered: bool = False
    identity: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    keyed: tuple[bool, bool] | None = None

    def __bool__(self) -> bool:
        return self != SchemaDiff()

    def columns(self) -> set[str]:
        """Names, before and after, of the columns that it concerns."""
        names = {one.name for one in (*self.added, *self.dropped)} | {name for pair in self.renamed for name in pair}
        return names | {one.name for pair in self.changed for one in pair}

    def to_json(self) -> dict[str, Any]:
        """For --json; only what differs."""
        body = {
            "added": [field_to_json(one) for one in self.added],
            "dropped": [field_to_json(one) for one in self.dropped],
            "changed": [{"before": field_to_json(old), "after": field_to_json(new)} for old, new in self.changed],
            "renamed": [{"before": old, "after": new} for old, new in self.renamed],
            "reordered": self.reordered,
            "identity": None if self.identity is None else {"before": self.identity[0], "after": self.identity[1]},
            "keyed": None if self.keyed is None else {"before": self.keyed[0], "after": self.keyed[1]},
        }
        return {name: value for name, value in body.items() if value}

    def lines(self) -> list[str]:
        """For people, one difference a line."""
        out = [f"+ column {one.name}: {_told(one)}" for one in self.added]
        out += [f"- column {one.name}: {_told(one)}" for one in self.dropped]
        out += [f"~ column {old} is called {new}" for old, new in self.renamed]
        for old, new in self.changed:
            what = "its metadata differ" if _told(old) == _told(new) else f"{_told(old)} -> {_told(new)}"
            out.append(f"~ column {new.name}: {what}")
        out += ["~ columns are in another order"] if self.reordered else []
        if self.identity is not None:
            out.append(f"~ identity columns: {', '.join(self.identity[0])} -> {', '.join(self.identity[1])}")
        if self.keyed is not None:
            out.append(f"~ the identity columns are {'a key now' if self.keyed[1] else 'no key any more'}")
        return out


def _told(one: pa.Field) -> str:
    return f"{shown_type(one.type)}{'' if one.nullable else ' not null'}"


@dataclass(frozen=True)
class Columns:
    """Columns of two versions that hold the same thing with the same type: (position before, position after) by the name after."""

    schema: SchemaDiff
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()  # those of `shared` that tell rows apart

    @property
    def others(self) -> list[str]:
        """Shared columns that are no keys."""
        return [name for name in self.shared if name not in self.keys]


def match_columns(store: Store, before: Commit, after: Commit, after_digest: str, before_digest: str) -> Columns:
    """Which columns of two versions belong together."""
    old, new = before.schema, after.schema
    dropped, added = (
        [name for name in one.names if name not in other.names] for one, other in ((old, new), (new, old))
    )
    names = _renames(store, before_digest, after_digest) if dropped and added else {}
    renamed = tuple((was, now) for now, was in names.items() if was in dropped and now in added)
    was = {now: then for then, now in renamed}
    gone, fresh = {then for then, _ in renamed}, {now for _, now in renamed}
    pairs = [(old.field(was.get(one.name, one.name)), one) for one in new if was.get(one.name, one.name) in old.names]
    shared = {
        one.name: (old.get_field_index(then.name), new.get_field_index(one.name))
        for then, one in pairs
        if then.type.equals(one.type)
    }
    identity = tuple(dict(renamed).get(name, name) for name in before.identity)
    diff = SchemaDiff(
        added=tuple(new.field(name) for name in added if name not in fresh),
        dropped=tuple(old.field(name) for name in dropped if name not in gone),
        changed=tuple(
            (then, one) for then, one in pairs if not then.with_name(one.name).equals(one, check_metadata=True)
        ),
        renamed=renamed,
        reordered=[then.name for then, _ in pairs]
        != [name for name in old.names if name in {t.name for t, _ in pairs}],
        identity=None if identity == after.identity else (before.identity, after.identity),
        keyed=None if before.keyed == after.keyed else (before.keyed, after.keyed),
    )
    return Columns(diff, shared, _keys(shared, identity, after.identity))


def _keys(shared: dict[str, tuple[int, int]], before: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, ...]:
    for wanted in (after, before):
        if set(wanted) <= set(shared):
            return wanted
    return tuple(shared)


def _renames(store: Store, before: str, after: str) -> dict[str, str]:
    """Name in `after` -> name in `before`, of columns that commits between them renamed."""
    names = {name: name for name in read_commit(store, after).schema.names}
    current = after
    while current != before:
        parents = parents_of(store, current)
        if not parents:
            return {}
        one, parent = read_commit(store, current), read_commit(store, parents[0])
        now, then = one.schema, parent.schema
        # The same tree under other names. (Two empty versions share no tree that could tell.)
        if one.root == parent.root is not None and now.types == then.types:
            step = dict(zip(now.names, then.names, strict=True))
            names = {name: step[was] for name, was in names.items() if was in step}
        else:
            names = {name: was for name, was in names.items() if was in then.names}
        current = parents[0]
    return {name: was for name, was in names.items() if name != was}
