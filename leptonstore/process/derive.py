"""Versions that are made from another one: the one way in which processing writes.

The first parent of a derived version is the version that was read. When the branch holds something else by then (an
older result of the same pipeline, say), that becomes the second parent, so that nothing falls out of history. Running
the same operation on the same version again finds its own result and adds nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.dataset.refs import writable_ref
from leptonstore.dataset.rules import check_unique
from leptonstore.dataset.tree import Tree
from leptonstore.dataset.write import Draft
from leptonstore.digest import parse_hex
from leptonstore.errors import Conflict
from leptonstore.format.commit import Commit
from leptonstore.store import Store


def publish_derived(store: Store, ds: Dataset, source: Source, message: str, branch: str) -> Dataset:
    """Write `source`, made from `ds`, as the new head of `branch`. Raises as write_dataset does."""
    store.refresh()
    parents = _parents(store, ds, (ds.name, branch), source.lineage)
    return write_dataset(store, ds.name, source, message=message, branch=branch, parents=parents)


def draft_tree(
    store: Store,
    ds: Dataset,
    tree: Tree,
    schema: pa.Schema,
    identity: tuple[str, ...],
    keyed: bool,
    lineage: dict[str, Any],
    message: str,
    into: tuple[str, str],
    met: str | None,
) -> Draft:
    """A commit of rows that are stored already, made from `ds`, to become the head of `into` (a dataset, and a branch of it).

    met: the head of that branch when the work began, None when there was none. What was written to it since is not in these rows, and its
    rules were not held against them: that is a Conflict, however long ago. When the result is there already, it is that very commit. Raises
    BadInput (a tag), RuleBroken, Conflict, StoreFull.
    """
    store.refresh()
    name, branch = into
    head = head_of(store, name, branch)
    if head != met and not (head and _is_result(Dataset(store, name, branch, head), ds, lineage)):
        raise Conflict(
            f"somebody wrote {name}@{branch} while this ran: nothing was published; run it again (what was worked out is kept)"
        )
    parents = _parents(store, ds, into, lineage)
    ref, record = writable_ref(store, "dataset", name, branch)
    commit = Commit(
        kind="dataset",
        schema=schema,
        identity=identity,
        root=tree.root,
        rows=tree.rows,
        plain_bytes=tree.plain_bytes,
        parents=tuple(parse_hex(parent) for parent in parents),
        message=message,
        lineage=lineage,
        keyed=keyed,
    )
    check_unique(store, name, branch, commit)
    return Draft(commit, ref, record.commit if record else None)


def _parents(store: Store, ds: Dataset, into: tuple[str, str], lineage: dict[str, Any]) -> tuple[str, ...]:
    name, branch = into
    head = head_of(store, name, branch)
    parents: tuple[str, ...] = (ds.commit,)
    if head is None or head == ds.commit:
        return parents
    old = Dataset(store, name, branch, head)
    if _is_result(old, ds, lineage):
        return tuple(parent.hex() for parent in old.commit_object.parents)
    return (*parents, head)


def _is_result(made: Dataset, ds: Dataset, lineage: dict[str, Any]) -> bool:
    """Whether a version was made from `ds` by the same operations."""
    commit = made.commit_object
    return commit.parents[:1] == (parse_hex(ds.commit),) and commit.lineage == lineage


def head_of(store: Store, name: str, branch: str) -> str | None:
    """The commit at the head of a branch, None when there is no such branch."""
    return next((info.commit for info in list_refs(store, "dataset", name) if info.branch == branch), None)
