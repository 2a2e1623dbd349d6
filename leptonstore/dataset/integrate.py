"""New heads of a branch, made of versions that there are: merge, restore, revert.

Each makes one commit and moves the branch to it if nobody moved it meanwhile (Conflict). Until then nothing is visible; after any failure
the branch is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.graph import is_before, merge_base, read_commit
from leptonstore.dataset.merge import Merged, Side, merge_rows
from leptonstore.dataset.refs import MAIN, resolve_ref, split_spec, writable_ref
from leptonstore.dataset.rules import check_unique
from leptonstore.dataset.write import publish_commit
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput, RefMissing
from leptonstore.store import RefUpdate, Store


@dataclass(frozen=True)
class Integrated:
    """What became of a branch. how: "merged", "fast-forward" (no commit was needed), "restored", "reverted" or "nothing to do".

    added, removed, changed: rows that the other version put into the branch; resolved: conflicts that a side was chosen for.
    """

    branch: str
    before: str
    commit: str
    how: str
    base: str = ""
    added: int = 0
    removed: int = 0
    changed: int = 0
    resolved: int = 0

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Branch:
    store: Store
    name: str
    branch: str
    ref: str  # its name in the log
    head: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.branch}"

    def version(self, commit: str, label: str = "") -> Dataset:
        return Dataset(self.store, self.name, label or commit[:12], commit)

    def commit(self, made: Merged, parents: tuple[str, ...], message: str, lineage: dict[str, Any], author: str) -> str:
        """Publish a merged tree. Raises RuleBroken (a rule `unique`), Conflict or StoreFull."""
        commit = replace(
            made.like.commit_object,
            root=made.tree.root,
            rows=made.tree.rows,
            plain_bytes=made.tree.plain_bytes,
            parents=tuple(parse_hex(parent) for parent in parents),
            message=message,
            lineage=lineage,
        )
        check_unique(self.store, self.name, self.branch, commit)
        return publish_commit(self.store, commit, self.ref, self.head, author=author)


def _branch(store: Store, spec: str) -> _Branch:
    """An existing branch of a dataset, "NAME" or "NAME@BRANCH"."""
    store.refresh()
    name, branch = split_spec(spec)
    ref, record = writable_ref(store, "dataset", name, branch)
    if record is None:
        resolve_ref(store, "dataset", f"{name}@{branch}")  # says what there is
        raise RefMissing(f"{name}@{branch} is a version, no branch; make one with `lepton branch {name}@BRANCH`")
    return _Branch(store, name, branch, ref, record.commit)


def merge(
    store: Store,
    theirs: str,
    into: str,
    message: str = "",
    resolve: Side | None = None,
    whole_rows: bool = False,
    keep_both: bool = False,
    base: str | None = None,
    fast_forward: bool = True,
    author: str = "",
    progress: Callable[[int], None] = lambda rows: None,
) -> Integrated:
    """Bring what happened on version `theirs` since it parted from branch `into` (NAME or NAME@BRANCH) into that branch.

    base: the version to compare both with, instead of the one that they parted from. author: who the log says it was, by default the
    user that runs this. See `merge_rows` for the rest. The result is a
    commit with two parents, unless one of the two holds all of the other. Raises BadInput (unrelated histories, several bases, a tag),
    RefMissing, MergeConflict, Conflict, StoreFull.
    """
    onto = _branch(store, into)
    _, their_label, other = resolve_ref(store, "dataset", theirs)
    label = theirs if "@" in theirs else f"{theirs}@{their_label}"
    if other == onto.head or (base is None and is_before(store, other, onto.head)):
        return Integrated(onto.label, onto.head, onto.head, "nothing to do", other)
    found = merge_base(store, onto.head, other) if base is None else resolve_ref(store, "dataset", base)[2]
    if found == onto.head and fast_forward:
        store.publish("merge", lambda state: (RefUpdate(onto.ref, onto.head, other),), author)
        return Integrated(onto.label, onto.head, other, "fast-forward", found)
    made = merge_rows(
        onto.version(found, "base"),
        onto.version(onto.head, onto.branch),
        onto.version(other, their_label),
        resolve,
        whole_rows,
        keep_both,
        progress,
    )
    lineage = {"operation": "merge", "base": found, "theirs": other, **({"resolve": resolve} if resolve else {})}
    commit = onto.commit(made, (onto.head, other), message or f"merge of {label}", lineage, author)
    counts = (made.added, made.removed, made.changed, made.resolved)
    return Integrated(onto.label, onto.head, commit, "merged", found, *counts)


def restore(store: Store, spec: str, into: str | None = None, message: str = "", author: str = "") -> Integrated:
    """A new head of a branch with the rows of an old version, whose tree it shares; what came between stays in history.

    into: NAME or NAME@BRANCH; by default the branch that `spec` goes back from (NAME@cleanup~2: cleanup), else main.
    """
    name, label, old = resolve_ref(store, "dataset", spec)
    onto = _branch(store, into or f"{name}@{_branch_of(store, name, label)}")
    found, head = read_commit(store, old), read_commit(store, onto.head)
    same_schema = found.schema.equals(head.schema, check_metadata=True)
    if same_schema and (found.root, found.identity, found.keyed) == (head.root, head.identity, head.keyed):
        return Integrated(onto.label, onto.head, onto.head, "nothing to do")
    made = replace(
        found,
        parents=(parse_hex(onto.head),),
        message=message or f"restore of {old[:12]}",
        lineage={"operation": "restore", "version": old},
    )
    commit = publish_commit(store, made, onto.ref, onto.head, author=author)
    return Integrated(onto.label, onto.head, commit, "restored")


def _branch_of(store: Store, name: str, label: str) -> str:
    """The branch that the label of a version begins with, "main" when it begins with something else."""
    begin = label.replace("^", "~").replace("@", "~").split("~")[0]
    record = store.state.refs.get(f"dataset/{name}/{begin}")
    return begin if record is not None and not record.tag else MAIN


def revert(
    store: Store,
    spec: str,
    into: str | None = None,
    message: str = "",
    resolve: Side | None = None,
    author: str = "",
    progress: Callable[[int], None] = lambda rows: None,
) -> Integrated:
    """Undo what version `spec` changed against its first parent, as a new head of a branch; later changes stay.

    into: as for `restore`. Raises BadInput for a first version, RefMissing where the parent was forgotten, and as `merge` does.
    """
    name, label, undone = resolve_ref(store, "dataset", spec)
    onto = _branch(store, into or f"{name}@{_branch_of(store, name, label)}")
    found = read_commit(store, undone)
    if not found.parents:
        raise BadInput(f"{spec} is the first version: there is nothing before it to go back to")
    if undone in store.state.forgotten:
        raise RefMissing(f"the history before {spec} was forgotten: what it changed is not known any more")
    parent = found.parents[0].hex()
    made = merge_rows(
        onto.version(undone, label),
        onto.version(onto.head, onto.branch),
        onto.version(parent, f"before {label}"),
        resolve,
        progress=progress,
    )
    if made.tree.root == read_commit(store, onto.head).root and made.like.commit == onto.head:
        return Integrated(onto.label, onto.head, onto.head, "nothing to do", undone)
    text = message or f"revert of {undone[:12]}" + (f": {found.message}" if found.message else "")
    commit = onto.commit(made, (onto.head,), text, {"operation": "revert", "version": undone}, author)
    counts = (made.added, made.removed, made.changed, made.resolved)
    return Integrated(onto.label, onto.head, commit, "reverted", undone, *counts)
