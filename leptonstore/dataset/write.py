"""Make a dataset version: stream a source into the tree, then publish one commit.

The commit's digest is a function of rows, schema, identity, parents, message and lineage. Interrupted anywhere, nothing is visible but
what was there before; run again, what was already stored is found and not written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.groups import stored_columns
from leptonstore.dataset.keyed import sorted_rows
from leptonstore.dataset.refs import MAIN, writable_ref
from leptonstore.dataset.rules import check_kept, check_rows, check_unique, keep_rules
from leptonstore.dataset.schema import check_semantics
from leptonstore.dataset.source import Source
from leptonstore.dataset.tree import TreeWriter
from leptonstore.dataset.values import Column, Spots
from leptonstore.digest import parse_hex
from leptonstore.errors import SchemaError, listed
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.format.keys import check_key
from leptonstore.format.pack import CONTENT_META
from leptonstore.format.schema import schema_to_json
from leptonstore.store import RefUpdate, Store
from leptonstore.store.log import LogState


def write_table(
    store: Store, source: Source, progress: Callable[[int], None] = lambda rows: None, head: Dataset | None = None
) -> tuple[bytes | None, int, int]:
    """Store the rows of `source`: (root, rows, plain bytes). Nothing refers to them yet.

    head: the version that comes before, from which unchanged values may be taken.
    """
    schema_to_json(source.schema)  # says at once, by column, what cannot be kept
    check_semantics(source.schema)
    missing = [name for name in source.identity if name not in source.schema.names]
    if missing or not source.identity:
        raise SchemaError(f"identity columns {missing} are not in the schema; there are {listed(source.schema.names)}")
    writer = TreeWriter(store, source.schema, source.identity, source.keyed)
    if source.keyed:
        check_key(source.schema, source.identity)
        for columns in sorted_rows(store, source.schema, source.identity, _stored(store, source), _place_in(source)):
            writer.append_columns(columns)
            progress(writer.rows)
    elif source.stored is not None:
        for columns in source.stored(store, head):
            writer.append_columns(columns)
            progress(writer.rows)
    else:
        for columns in _stored(store, source):
            writer.append_columns(columns)
            progress(writer.rows)
    root, plain_bytes = writer.finish()
    return root, writer.rows, plain_bytes


def _stored(store: Store, source: Source) -> Iterator[list[Column]]:
    rows = 0
    if source.referred is not None:
        root = store.references.add_root(source.referred.root)
        for batch, spots in source.referred.batches():
            check_rows(source.schema, batch, rows)
            yield stored_columns(store, source.schema, batch, rows, Spots(root, spots))
            rows += batch.num_rows
        return
    for batch in source.batches():
        check_rows(source.schema, batch, rows)
        yield stored_columns(store, source.schema, batch, rows)
        rows += batch.num_rows


def _place_in(source: Source) -> Callable[[int], str]:
    """What to call a row of the source: its file and its number there, where the lineage says how many rows files have."""

    def place(row: int) -> str:
        files = [one for one in source.lineage.get("files", ()) if isinstance(one, dict)]
        if len(files) == 1:
            return f"{files[0].get('name')} row {row}"
        for one in files:
            if "rows" not in one:
                break
            if row < one["rows"]:
                return f"{one.get('name')} row {row}"
            row -= one["rows"]
        return f"row {row}"

    return place


@dataclass(frozen=True)
class Draft:
    """A commit whose rows are stored, and the ref that is to move to it from `old` (None: there was no such ref)."""

    commit: Commit
    ref: str
    old: str | None
    metrics: dict[str, Any] = field(default_factory=dict)


def publish_commits(store: Store, drafts: Sequence[Draft], author: str = "", shared: bool = True) -> list[str]:
    """Store commits and move their refs in one entry of the log: all of them, or none. Returns their digests (hex). Raises Conflict or
    StoreFull.

    author: who the log says it was; by default the user that runs this. shared: when another writer made the very same commit meanwhile,
    that will do. (Not for two that append equal rows: both want theirs to be there.)
    """
    digests = [store.put(encode_commit(draft.commit), CONTENT_META).hex() for draft in drafts]
    wanted = [
        RefUpdate(draft.ref, draft.old, digest, draft.metrics) for draft, digest in zip(drafts, digests, strict=True)
    ]

    def decide(state: LogState) -> tuple[RefUpdate, ...]:
        def there(update: RefUpdate) -> bool:
            record = state.refs.get(update.name)
            return shared and record is not None and record.commit == update.new

        return tuple(update for update in wanted if not there(update))

    store.publish("commit", decide, author)
    return digests


def publish_commit(
    store: Store,
    commit: Commit,
    ref: str,
    old: str | None,
    metrics: dict[str, Any] | None = None,
    author: str = "",
    shared: bool = True,
) -> str:
    """`publish_commits` of one."""
    return publish_commits(store, [Draft(commit, ref, old, metrics or {})], author, shared)[0]


def write_dataset(
    store: Store,
    name: str,
    source: Source,
    message: str = "",
    branch: str = MAIN,
    parents: str | tuple[str, ...] = "head",
    lineage: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda rows: None,
    author: str = "",
) -> Dataset:
    """A new version of `name` on `branch`; returns it.

    parents: "head" (the branch's last commit, none for a new branch) or commit digests (hex). When the branch already
    has the same rows, schema, identity and lineage at its head (with "head"), or the same commit, nothing is written.
    The rules of the version before go on for columns of the same names.
    A source that was opened with `reference` is kept as references to its objects, which must stay as they are; the commit is the same.
    Raises BadInput (a tag, a root that cannot be referred to), SourceError, SchemaError, RuleBroken, DuplicateKey, StoreFull, or Conflict
    when another writer moved the branch meanwhile.
    """
    store.refresh()
    ref, record = writable_ref(store, "dataset", name, branch)
    head = record.commit if record else None
    before = Dataset(store, name, branch, head) if head is not None else None
    if before is not None and source.unchanged is not None and source.unchanged(store, ref, before):
        return before
    draft = _drafted(store, name, source, message, branch, parents, lineage, progress, ref, before)
    if draft is None:
        assert before is not None
        store.flush()
        _tell(source, store, ref, before.commit)
        return before
    (digest,) = publish_commits(store, [draft], author)
    _tell(source, store, ref, digest)
    return Dataset(store, name, branch, digest)


def draft_dataset(store: Store, name: str, source: Source, message: str = "", branch: str = MAIN) -> Draft | None:
    """What `write_dataset` would publish, for `publish_commits`; None when the branch has it. Raises as it does."""
    ref, record = writable_ref(store, "dataset", name, branch)
    before = Dataset(store, name, branch, record.commit) if record else None
    return _drafted(store, name, source, message, branch, "head", None, lambda rows: None, ref, before)


def _drafted(
    store: Store,
    name: str,
    source: Source,
    message: str,
    branch: str,
    parents: str | tuple[str, ...],
    lineage: dict[str, Any] | None,
    progress: Callable[[int], None],
    ref: str,
    before: Dataset | None,
) -> Draft | None:
    """Store the rows. before: the head of the branch, which nothing follows when it has the same."""
    head = before.commit if before is not None else None
    if before is not None:
        source = replace(source, schema=keep_rules(source.schema, before.schema))
        check_kept(f"{name}@{branch}", source.schema)
    made = _commit_of(store, source, message, _parents(parents, head), lineage, progress, before)
    check_unique(store, name, branch, made)
    if before is not None:
        old = before.commit_object
        if _content(old) == _content(made) and (parents == "head" or old.parents == made.parents):
            return None
    return Draft(made, ref, head)


def _commit_of(
    store: Store,
    source: Source,
    message: str,
    parents: tuple[str, ...],
    lineage: dict[str, Any] | None,
    progress: Callable[[int], None],
    before: Dataset | None,
) -> Commit:
    """Store the rows; the commit itself is not stored yet."""
    same_table = before is not None and before.schema.equals(source.schema, check_metadata=True)
    root, rows, plain_bytes = write_table(store, source, progress, before if same_table else None)
    return Commit(
        kind="dataset",
        schema=source.schema,
        identity=source.identity,
        root=root,
        rows=rows,
        plain_bytes=plain_bytes,
        parents=tuple(parse_hex(parent) for parent in parents),
        message=message,
        lineage=source.lineage if lineage is None else lineage,
        keyed=source.keyed,
    )


def _tell(source: Source, store: Store, ref: str, commit: str) -> None:
    if source.published is not None:
        source.published(store, ref, commit)


def _parents(parents: str | tuple[str, ...], head: str | None) -> tuple[str, ...]:
    if isinstance(parents, tuple):
        return parents
    return (head,) if head else ()


def _content(commit: Commit) -> tuple[object, ...]:
    return commit.root, commit.rows, schema_to_json(commit.schema), commit.identity, commit.keyed, commit.lineage
