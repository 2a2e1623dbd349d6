"""Three versions into one: what ours and theirs each did to the base they came from, together.

Rows only; commits and refs are made elsewhere (dataset/integrate.py).

    base row              ours        theirs      merged
    changed               -           yes         theirs
    changed               yes         yes         column by column; a column that both changed to different values is a conflict
    removed               -, removed  removed     removed
    changed / removed     one         the other   conflict
    added, with a key     key k       key k       equal rows once, else a conflict
    added, without a key  here        here        equal rows once, else a conflict: nobody knows which come first (`keep_both`: ours)
    added, without a key  -           inside of rows that ours removed, or in place of some of them: conflict

The schema may differ from the base's on one side; there, columns that are new are null in rows that the other side adds. Where both sides
changed it (in another way), or one dropped or retyped a column whose values the other changed, nothing is merged: the columns are named.

One side is the *target*: the one whose schema differs, else ours. What the other, the *source*, did is put into the target's tree by
`splice`, so only what both do not share is written, and the root is the one that these rows always have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leptonstore import limits
from leptonstore.dataset.align import Positions
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.diff import Diff, python_values
from leptonstore.dataset.edits import Edits, Hunk, edits_of, keys_of, with_exact_gaps
from leptonstore.dataset.equality import differing
from leptonstore.dataset.merge_write import Operations
from leptonstore.dataset.splice import splice
from leptonstore.dataset.tree import Tree
from leptonstore.dataset.values import Bits
from leptonstore.errors import MergeConflict

Side = Literal["ours", "theirs"]


@dataclass(frozen=True)
class RowConflict:
    """A row that both sides changed. Of each version the values in conflict, None where it has no such row.

    row: the row of the base, or of the gap, at which it stands.
    """

    why: str
    row: int
    key: dict[str, Any]
    columns: tuple[str, ...]
    base: dict[str, Any] | None
    ours: dict[str, Any] | None
    theirs: dict[str, Any] | None


@dataclass(frozen=True)
class Merged:
    """The tree that results, whose schema it has (`like`), and what was put into it; `resolved` counts conflicts that `resolve` decided."""

    tree: Tree
    like: Dataset
    added: int
    removed: int
    changed: int
    resolved: int


def merge_rows(
    base: Dataset,
    ours: Dataset,
    theirs: Dataset,
    resolve: Side | None = None,
    whole_rows: bool = False,
    keep_both: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Merged:
    """Merge three versions of one store; the tree is stored, nothing refers to it yet.

    resolve: whose values win where both changed the same (schemas are never resolved). whole_rows: a row that both changed is a
    conflict, also where the columns differ. keep_both: of rows that both added in one place (a table without a key) all are kept, ours
    first. Rules `unique` are left to whoever makes the commit. Raises MergeConflict, RuleBroken, StoreFull, ChunkMissing or ChunkCorrupt.
    """
    return _Merge(base, ours, theirs, resolve, whole_rows, keep_both).run(progress)


class _Merge:
    def __init__(
        self,
        base: Dataset,
        ours: Dataset,
        theirs: Dataset,
        resolve: Side | None,
        whole_rows: bool,
        keep_both: bool,
    ) -> None:
        self._base, self._resolve, self._whole_rows, self._keep_both = base, resolve, whole_rows, keep_both
        our_diff, their_diff = (Diff(base.store, base.commit, side.commit) for side in (ours, theirs))
        swap = bool(their_diff.schema) and not our_diff.schema
        self._target, self._source = (theirs, ours) if swap else (ours, theirs)
        self._diff, self._source_diff = (their_diff, our_diff) if swap else (our_diff, their_diff)
        self._target_is: Side = "theirs" if swap else "ours"
        self._source_is: Side = "ours" if swap else "theirs"
        self._keyed = base.commit_object.keyed and ours.commit_object.keyed and theirs.commit_object.keyed
        self._require_schemas()
        # Name in the target -> in the source, and in the base, of the columns that all three have.
        here, there = self._diff.columns.shared, self._source_diff.columns.shared
        by_base = {at: name for name, (at, _) in there.items()}
        self._links = {name: by_base[at] for name, (at, _) in here.items() if at in by_base}
        self._base_names = {name: base.schema.names[here[name][0]] for name in self._links}
        self._operations = Operations(self._target, self._source, self._links)
        self._conflicts: list[RowConflict] = []
        self._count = self._resolved = 0

    def run(self, progress: Callable[[int], None]) -> Merged:
        did, does = edits_of(self._diff), edits_of(self._source_diff)
        if self._keyed:
            did = with_exact_gaps(did, self._base, self._target)
            does = with_exact_gaps(does, self._base, self._source)
        self._require_columns(does)
        self._merge_removed(did, does)
        self._merge_changed(did, does)
        if self._keyed:
            self._add_by_key(did, does)
        else:
            self._add_by_place(did, does)
        if self._count:
            raise MergeConflict(
                f"{self._count} rows were changed on both sides: nothing was merged; choose a side for them "
                "(--ours, --theirs), or edit one of the versions",
                self._conflicts,
                self._count,
            )
        done = self._operations
        tree = splice(self._target, done.splices(), progress)
        return Merged(tree, self._target, done.added, done.removed, done.changed, self._resolved)

    # -- schemas -------------------------------------------------------------------------------------------------

    def _require_schemas(self) -> None:
        """Raise MergeConflict unless one schema holds for the result."""
        one, other = self._diff.schema, self._source_diff.schema
        for diff in (one, other):
            if diff.identity is not None or diff.keyed is not None:
                before, after = diff.identity or (self._base.commit_object.identity,) * 2
                raise MergeConflict(
                    f"rows are told apart by other columns since the base ({', '.join(before)} -> {', '.join(after)}): "
                    "import the branch anew with the --key of the other, or restore one of them"
                )
        if not other:
            return
        same = self._target.schema.equals(self._source.schema, check_metadata=True)
        if same and not one.added and one.renamed == other.renamed:
            return
        names = sorted(one.columns() & other.columns() or one.columns() | other.columns())
        raise MergeConflict(
            f"both sides changed the schema (columns {', '.join(names)}): make the same change on one of them first"
        )

    def _require_columns(self, does: Edits) -> None:
        """Raise MergeConflict where the target's schema has no place for what the source did."""
        linked = set(self._links.values())
        for name, bits in does.columns.items():
            if name not in linked:
                raise MergeConflict(
                    f"column {name!r} was dropped or given another type by {self._target_is}, and changed in "
                    f"{int(bits.sum())} rows by {self._source_is}: undo one of the two first"
                )
        if not len(does.added):
            return
        for one in self._target.schema:
            if one.name in self._links:
                continue
            if one.name in self._source.schema.names:
                raise MergeConflict(
                    f"column {one.name!r} has another type in {self._target_is}, and {self._source_is} added rows: "
                    "give it that type there first"
                )
            if not one.nullable:
                raise MergeConflict(
                    f"column {one.name!r}, which {self._target_is} added, may not be null, and the {len(does.added)} rows "
                    f"that {self._source_is} added have no value for it: add the column there first"
                )

    # -- rows of the base ----------------------------------------------------------------------------------------

    def _merge_removed(self, did: Edits, does: Edits) -> None:
        kept = does.removed[~np.isin(does.removed, did.removed)]
        contested = np.isin(kept, did.changed)
        for row in kept[contested].tolist():
            after = int(did.changed_after[np.searchsorted(did.changed, row)])
            why = f"changed by {self._target_is}, removed by {self._source_is}"
            if self._wins(lambda: self._of_row(why, row, target=after)):  # noqa: B023 - called at once
                self._operations.remove(after)
        for at in did.place(kept[~contested]).tolist():
            self._operations.remove(at)

    def _merge_changed(self, did: Edits, does: Edits) -> None:
        gone = np.isin(does.changed, did.removed)
        for row, after in zip(does.changed[gone].tolist(), does.changed_after[gone].tolist(), strict=True):
            why = f"removed by {self._target_is}, changed by {self._source_is}"
            if self._wins(lambda: self._of_row(why, row, source=after)):  # noqa: B023
                self._operations.insert(int(did.span(np.array([row]))[1][0]), after)
        both = np.isin(does.changed, did.changed)
        alone = ~gone & ~both
        for at, after in zip(did.place(does.changed[alone]).tolist(), does.changed_after[alone].tolist(), strict=True):
            self._operations.rewrite(at, after)
        if both.any():
            self._merge_both(did, does, np.flatnonzero(both))

    def _merge_both(self, did: Edits, does: Edits, chosen: Positions) -> None:
        """Rows that both changed, by column."""
        rows, after = does.changed[chosen], does.changed_after[chosen]
        own = np.searchsorted(did.changed, rows)
        at = did.changed_after[own]
        names = [name for name in self._links if name in did.columns or self._links[name] in does.columns]
        take, contested = (np.zeros((len(rows), len(names)), np.bool_) for _ in range(2))
        for number, name in enumerate(names):
            mine = did.columns[name][own] if name in did.columns else np.zeros(len(rows), np.bool_)
            other = self._links[name]
            theirs = does.columns[other][chosen] if other in does.columns else np.zeros(len(rows), np.bool_)
            check = np.flatnonzero(mine | theirs if self._whole_rows else mine & theirs)
            contested[check, number] = self._differ(name, at[check], after[check])
            take[:, number] = theirs & ~contested[:, number]
        for number in np.flatnonzero(contested.any(axis=1)).tolist():
            columns = tuple(name for name, bit in zip(names, contested[number], strict=True) if bit)
            where = int(rows[number]), int(at[number]), int(after[number])
            if self._wins(lambda: self._of_row("changed by both", *where, columns)):  # noqa: B023
                take[number] |= contested[number]
        patterns, which = np.unique(take, axis=0, return_inverse=True)
        masks = [frozenset(name for name, bit in zip(names, pattern, strict=True) if bit) for pattern in patterns]
        numbers = [self._operations.mask(mask) for mask in masks]
        for place, source, mask in zip(at.tolist(), after.tolist(), which.reshape(-1).tolist(), strict=True):
            if masks[mask]:
                self._operations.rewrite(place, source, numbers[mask])

    def _differ(self, name: str, rows: Positions, others: Positions) -> Bits:
        """Whether values of a column differ between rows of the target and of the source."""
        if not len(rows):
            return np.zeros(0, np.bool_)
        one = self._target.take_stored(rows, name)
        other = self._source.take_stored(others, self._links[name])
        return differing(one, other, self._target.schema.field(name).type)

    def _rows_differ(self, rows: Positions, others: Positions) -> dict[str, Bits]:
        return {name: self._differ(name, rows, others) for name in self._links}

    # -- rows that were added ------------------------------------------------------------------------------------

    def _add_by_key(self, did: Edits, does: Edits) -> None:
        starts, ends = did.span(does.added_at)
        places = starts.tolist()
        contested = np.flatnonzero(ends > starts)
        if len(contested):
            # What the target added in the same gaps: rows in the order of the key.
            ranges = np.unique(np.stack((starts[contested], ends[contested]), axis=1), axis=0).tolist()
            wanted = np.concatenate([np.arange(*one) for one in ranges])
            keys = dict(zip(wanted.tolist(), keys_of(self._target, wanted), strict=True))
            own = keys_of(self._source, does.added[contested])
            for one, key in zip(contested.tolist(), own, strict=True):
                start, end = int(starts[one]), int(ends[one])
                places[one] = start + bisect_left(range(start, end), key, key=keys.__getitem__)
                if places[one] < end and keys[places[one]] == key:
                    self._added_twice(places[one], int(does.added[one]), int(does.added_at[one]))
                    places[one] = -1
        for at, source in zip(places, does.added.tolist(), strict=True):
            if at >= 0:
                self._operations.insert(at, source)

    def _added_twice(self, at: int, source: int, gap: int) -> None:
        differ = self._rows_differ(np.array([at]), np.array([source]))
        columns = tuple(name for name, bits in differ.items() if bits[0])
        if columns and self._wins(lambda: self._of_row("added by both", gap, at, source, columns, based=False)):
            self._operations.rewrite(at, source)

    def _add_by_place(self, did: Edits, does: Edits) -> None:
        hunks, at = list(did.hunks()), 0
        dropped: set[int] = set()  # additions of the target that the source's take the place of
        for hunk in does.hunks():
            while at < len(hunks) and hunks[at].end < hunk.start:
                at += 1
            adds, beside = hunk.adds, False
            for number in range(at, len(hunks)):
                other = hunks[number]
                if other.start > hunk.end:
                    break
                if not (hunk.adds or other.adds):
                    continue
                if hunk.adds and other.adds and self._same_hunk(did, does, other, hunk):
                    adds = False
                elif hunk.adds and other.adds and not hunk.overlaps(other) and self._keep_both:
                    beside = hunk.end == other.end
                elif (hunk.adds and other.adds) or hunk.overlaps(other):
                    if self._region_wins(did, does, other, hunk):
                        dropped.update(range(other.first, other.last))
                    else:
                        adds = False
            if adds:
                before, after = (int(rows[0]) for rows in did.span(np.array([hunk.end])))
                place = after if beside and self._target_is == "ours" else before
                for source in does.added[hunk.first : hunk.last].tolist():
                    self._operations.insert(place, source)
        for one in sorted(dropped):
            self._operations.remove(int(did.added[one]))

    def _same_hunk(self, did: Edits, does: Edits, mine: Hunk, theirs: Hunk) -> bool:
        if (mine.start, mine.end, mine.last - mine.first) != (theirs.start, theirs.end, theirs.last - theirs.first):
            return False
        rows, others = did.added[mine.first : mine.last], does.added[theirs.first : theirs.last]
        return not any(bits.any() for bits in self._rows_differ(rows, others).values())

    def _region_wins(self, did: Edits, does: Edits, mine: Hunk, theirs: Hunk) -> bool:
        """Rows added in one place: each is a conflict of its own, with what stands beside it."""
        base = range(min(mine.start, theirs.start), max(mine.end, theirs.end))
        rows, others = did.added[mine.first : mine.last].tolist(), does.added[theirs.first : theirs.last].tolist()
        wins = False
        for number in range(max(len(base), len(rows), len(others))):
            row = base[number] if number < len(base) else base.stop
            target = rows[number] if number < len(rows) else None
            source = others[number] if number < len(others) else None
            wins = self._wins(
                lambda: self._of_row("rows in one place", row, target, source, based=number < len(base))  # noqa: B023
            )
        return wins

    # -- conflicts -----------------------------------------------------------------------------------------------

    def _wins(self, told: Callable[[], RowConflict]) -> bool:
        """Whether the source wins a conflict; when nobody was told to, it is kept for the report, and nobody does."""
        if self._resolve is not None:
            self._resolved += 1
            return self._resolve == self._source_is
        self._count += 1
        if len(self._conflicts) < limits.MERGE_CONFLICTS_MAX:
            self._conflicts.append(told())
        return False

    def _of_row(
        self,
        why: str,
        row: int,
        target: int | None = None,
        source: int | None = None,
        columns: tuple[str, ...] = (),
        based: bool = True,
    ) -> RowConflict:
        """A conflict with the values of its row in each version."""
        names = columns or tuple(self._links)
        old = self._values(self._base, row if based else None, {name: self._base_names[name] for name in names})
        one = self._values(self._target, target, {name: name for name in names})
        other = self._values(self._source, source, {name: self._links[name] for name in names})
        ours, theirs = (one, other) if self._target_is == "ours" else (other, one)
        if target is not None:
            version, at, key_names = self._target, target, self._target.identity
        elif source is not None:
            version, at, key_names = self._source, source, self._source.identity
        else:
            version, at, key_names = self._base, row, self._base.identity
        key = self._values(version, at, {name: name for name in key_names}) or {}
        return RowConflict(why, row, key, columns, old, ours, theirs)

    def _values(self, version: Dataset, row: int | None, names: dict[str, str]) -> dict[str, Any] | None:
        if row is None:
            return None
        rows = np.array([row])
        return {
            name: python_values(version.take_stored(rows, own), version.schema.field(own).type)[0]
            for name, own in names.items()
        }
