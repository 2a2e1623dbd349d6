"""What changed between two versions of a dataset: counts, and some of the rows with their pictures.

Row groups that both have are never read (dataset/diff.py). Going through the others ends after DIFF_S; the page then says "at least".
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_names import PLURALS
from leptonstore.daemon.http.pages_values import Cell, Gallery, Picture, Table, cells, gallery_of, table_of
from leptonstore.dataset import Dataset, Diff
from leptonstore.dataset.diff import Block
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput
from leptonstore.process import columns
from leptonstore.process.gallery import text_column


@dataclass
class Changes:
    """Counts, and the first row numbers of each kind. whole: whether everything was gone through."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    added_rows: list[int] = field(default_factory=list)
    removed_rows: list[int] = field(default_factory=list)
    changed_rows: list[tuple[int, int, tuple[str, ...]]] = field(default_factory=list)
    whole: bool = True


@dataclass(frozen=True)
class ChangedRow:
    """One row that is in both: each changed column with its value before and after; pictures where the picture changed."""

    before: int
    after: int
    values: tuple[tuple[str, Cell, Cell], ...]
    pictures: tuple[Picture, Picture] | None


def diff(ask: Ask) -> Response:
    """Of ?before= and ?after=, branches, tags or commits; without `before`, of the version before it."""
    kind, name = "dataset", str(ask.path["name"])
    found = ask.seen.name(ask.who, kind, name)
    after = ask.seen.version(ask.who, kind, name, ask.query.get("after") or found.head.branch)[1]
    if ask.query.get("before"):
        before = ask.seen.version(ask.who, kind, name, ask.query["before"])[1]
    else:
        parents = ask.seen.parents(after)
        if not parents:
            raise BadInput("this is the first version that is kept: there is none before it to compare with")
        before = parents[0]
    comparison = Diff(ask.seen.store, before, after)
    changes = collect(comparison)
    old, new = ask.seen.dataset(found, before), ask.seen.dataset(found, after)
    return ask.page(
        "diff.html.j2", kind=kind, plural=PLURALS[kind], name=found, before=before, after=after, changes=changes,
        schema=comparison.schema.lines(), old=old, new=new,
        refs_before=ask.seen.refs_at(found, before), refs_after=ask.seen.refs_at(found, after),
        added=_rows(new, changes.added_rows), removed=_rows(old, changes.removed_rows),
        changed=_changed(old, new, comparison, changes), shown=bounds.DIFF_ROWS,
        choices=_choices(found),
    )  # fmt: skip


def collect(comparison: Diff) -> Changes:
    """Count, and note the first rows."""
    until, found = time.monotonic() + bounds.DIFF_S, Changes()
    for block in comparison.blocks():
        _add(found, block)
        if time.monotonic() > until:
            found.whole = False
            break
    return found


def _add(found: Changes, block: Block) -> None:
    most = bounds.DIFF_ROWS
    found.added += len(block.added)
    found.removed += len(block.removed)
    found.changed += len(block.changed_before)
    for name, bits in block.columns.items():
        found.columns[name] = found.columns.get(name, 0) + int(bits.sum())
    found.added_rows += block.added[: most - len(found.added_rows)].tolist()
    found.removed_rows += block.removed[: most - len(found.removed_rows)].tolist()
    for at in range(min(len(block.changed_before), most - len(found.changed_rows))):
        named = tuple(name for name, bits in block.columns.items() if bits[at])
        found.changed_rows.append((int(block.changed_before[at]), int(block.changed_after[at]), named))


def _rows(ds: Dataset, rows: list[int]) -> Gallery | Table | None:
    if not rows:
        return None
    visual = columns.image_columns(ds.schema) or text_column(ds) is not None
    return gallery_of(ds, rows) if visual else table_of(ds, rows)


def _changed(old: Dataset, new: Dataset, comparison: Diff, changes: Changes) -> list[ChangedRow]:
    """The changed rows with their values: read column by column, each once."""
    wanted = changes.changed_rows
    names = list(dict.fromkeys(name for _, _, named in wanted for name in named))
    was = {now: old.schema.field(comparison.columns.shared[now][0]) for now in names}
    values: dict[tuple[str, int], tuple[Cell, Cell]] = {}
    for name in names:
        at = [place for place, (_, _, named) in enumerate(wanted) if name in named]
        mine = cells(old, [wanted[place][0] for place in at], was[name])
        theirs = cells(new, [wanted[place][1] for place in at], new.schema.field(name))
        for place, before, after in zip(at, mine, theirs, strict=True):
            values[name, place] = (before, after)
    pictured = {place for place, (_, _, named) in enumerate(wanted) if any(_is_picture(new, name) for name in named)}
    pictures = _pictures(old, new, [wanted[place] for place in sorted(pictured)])
    paired = dict(zip(sorted(pictured), pictures, strict=False))
    return [
        ChangedRow(before, after, tuple((name, *values[name, place]) for name in named), paired.get(place))
        for place, (before, after, named) in enumerate(wanted)
    ]


def _is_picture(ds: Dataset, name: str) -> bool:
    return semantic_of(ds.schema.field(name)) == "image"


def _pictures(old: Dataset, new: Dataset, rows: list[Any]) -> list[tuple[Picture, Picture]]:
    if not rows:
        return []
    before = gallery_of(old, [one[0] for one in rows]).rows
    after = gallery_of(new, [one[1] for one in rows]).rows
    return list(zip(before, after, strict=False))


def _choices(name: Any) -> list[str]:
    """Branches and tags to compare, the newest first."""
    return [ref.branch for ref in sorted(name.refs, key=lambda ref: -ref.sequence)][: bounds.REFS_MAX]
