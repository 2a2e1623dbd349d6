"""Items -> rows of a keyed table: what is new or changed is fetched, checked and put; the rest stays as it is.

    path            the key
    data            the bytes; as `image` (semantic image) or `text` (UTF-8) when asked for
    bytes           how many
    digest          BLAKE3 of them, hexadecimal: their name in the store
    source          where they were found          collected_at    when they were fetched, for the first time in this form
    licence         as given, or as the list says   tag            what the source says of its version: equal means unchanged

Whatever was fetched is committed: every COLLECT_COMMIT_BYTES, at the end, and when Ctrl-C or an error ends it early. So running it
again goes on where it ended. Items that fail are told at the end; the others are there. Memory: what is in flight, one commit's rows, and
200 bytes for each file that the dataset has.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.refs import MAIN, writable_ref
from leptonstore.dataset.schema import image_field, path_field, text_field
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, RefMissing, SchemaError, SourceError
from leptonstore.process.collect.fetch import Fetcher
from leptonstore.process.collect.items import Item
from leptonstore.store import Store

KINDS = ("file", "image", "text")
_CONTENT = {"file": "data", "image": "image", "text": "text"}
PROVENANCE = (
    pa.field("digest", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("collected_at", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("licence", pa.string()),
)


def now() -> datetime.datetime:
    """The time that rows get."""
    return datetime.datetime.now(datetime.UTC)


@dataclass
class Collected:
    """What came of it. dataset: the newest version; None: there was nothing, and there is none. Numbers of items.

    failed: (path, why). gone: in the dataset, and no longer at the source (removed only when asked for).
    """

    dataset: Dataset | None = None
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    removed: int = 0
    fetched_bytes: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        told = {name: value for name, value in vars(self).items() if name not in ("dataset", "failed")}
        ds = self.dataset
        where = (
            {"dataset": None}
            if ds is None
            else {"dataset": ds.name, "branch": ds.ref, "commit": ds.commit, "rows": len(ds)}
        )
        return {**where, **told, "failed": [{"path": path, "why": why} for path, why in self.failed]}


def schema_of(kind: str, more: Iterable[pa.Field] = ()) -> pa.Schema:
    """Of a dataset of collected files. Raises BadInput."""
    if kind not in KINDS:
        raise BadInput(f"{kind!r} is no kind of file; there are: {', '.join(KINDS)}")
    content = {
        "file": pa.field("data", pa.large_binary(), nullable=False),
        "image": image_field("image"),
        "text": text_field("text", nullable=False),
    }[kind]
    size, tag = pa.field("bytes", pa.int64(), nullable=False), pa.field("tag", pa.string(), nullable=False)
    fields = [path_field("path"), content, size, *PROVENANCE, tag]
    more, own = list(more), {one.name for one in fields}
    for one in more:
        if one.name in own:
            raise BadInput(f"the list has a column {one.name!r}, which collected files have of their own; rename it")
    return pa.schema([*fields, *more])


def collect(
    store: Store,
    name: str,
    items: Iterable[Item],
    kind: str = "file",
    branch: str = MAIN,
    licence: str | None = None,
    more: Iterable[pa.Field] = (),
    fetcher: Fetcher | None = None,
    paranoid: bool = False,
    delete: bool = False,
    workers: int = limits.COLLECT_WORKERS,
    clock: Callable[[], datetime.datetime] = now,
    author: str = "",
    progress: Callable[[int], None] = lambda items: None,
) -> Collected:
    """Bring the rows of `name` up to date with `items`.

    kind: how content is kept (KINDS). more: fields of Item.columns. paranoid: fetch also what says that it did not change. delete: rows
    whose items are gone are deleted (not when an item failed). licence: of items that say none.
    Raises BadInput (another kind of dataset, two items of one path), SourceError when every item failed, what edits raise.
    """
    return _Run(store, name, branch, schema_of(kind, more), kind, licence, clock, author).run(
        items, fetcher or Fetcher(workers=workers), paranoid, delete, workers, progress
    )


@dataclass
class _Known:
    """Of a row that is there."""

    tag: str
    digest: str
    collected_at: datetime.datetime
    licence: str | None
    said: bytes  # 16 bytes of BLAKE3 of its other columns


class _Run:
    def __init__(
        self,
        store: Store,
        name: str,
        branch: str,
        schema: pa.Schema,
        kind: str,
        licence: str | None,
        clock: Callable[[], datetime.datetime],
        author: str,
    ) -> None:
        self.store, self.name, self.branch, self.schema, self.kind = store, name, branch, schema, kind
        self.licence, self.clock, self.author = licence, clock, author
        kept = {"path", _CONTENT[kind], "bytes", "tag", *(one.name for one in PROVENANCE)}
        self._says = [one.name for one in schema if one.name not in kept]
        self.done = Collected(dataset=head_of(store, name, branch, schema, ("path",)))
        self._known = self._rows_there()
        self._seen: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def _rows_there(self) -> dict[str, _Known]:
        if self.done.dataset is None:
            return {}
        found: dict[str, _Known] = {}
        for _, batch in self.done.dataset.iter_batches(
            ["path", "tag", "digest", "collected_at", "licence", *self._says]
        ):
            for row in batch.to_pylist():
                said = _digest_of_json([row[name] for name in self._says])
                licence = None if row["licence"] is None else sys.intern(row["licence"])
                found[row["path"]] = _Known(row["tag"], row["digest"], row["collected_at"], licence, said)
        return found

    def _still_says(self, item: Item, known: _Known) -> bool:
        """Whether what is said of an item is what its row has."""
        said = _digest_of_json([item.columns.get(name) for name in self._says])
        return said == known.said and (not item.licence or item.licence == known.licence)

    def run(
        self,
        items: Iterable[Item],
        fetcher: Fetcher,
        paranoid: bool,
        delete: bool,
        workers: int,
        progress: Callable[[int], None],
    ) -> Collected:
        fetcher.begin()
        with closing(self._fetched(self._wanted(items, paranoid), fetcher, workers)) as fetched:
            try:
                for count, (item, data) in enumerate(fetched, 1):
                    self._take(item, data)
                    if self._bytes >= limits.COLLECT_COMMIT_BYTES or len(self._rows) >= limits.COLLECT_COMMIT_ROWS:
                        self._commit()
                    progress(count + self.done.unchanged)
            finally:
                self._commit()
        gone = [path for path in self._known if path not in self._seen]
        self.done.gone = len(gone)
        if gone and delete and not self.done.failed and self.done.dataset is not None:
            ds = self.done.dataset
            self.done.dataset = ds.delete(
                keys=gone, message=f"collect: {len(gone):,} files are gone", author=self.author
            )
            self.done.removed = len(gone)
        if self.done.failed and len(self.done.failed) == len(self._seen):
            path, why = self.done.failed[0]
            raise SourceError(f"none of {len(self._seen):,} files could be collected; {path}: {why}")
        return self.done

    def _wanted(self, items: Iterable[Item], paranoid: bool) -> Iterator[Item]:
        for item in items:
            if item.path in self._seen:
                raise BadInput(f"two files would be row {item.path!r}; give them different paths")
            self._seen.add(item.path)
            known = self._known.get(item.path)
            if item.later:
                continue
            same = known is not None and known.tag == item.tag and self._still_says(item, known)
            if item.tag and same and not paranoid:
                self.done.unchanged += 1
            else:
                yield item

    def _fetched(
        self, items: Iterator[Item], fetcher: Fetcher, workers: int
    ) -> Generator[tuple[Item, bytes], None, None]:
        """In the order in which they arrive; failures are noted."""
        flying: dict[Future[bytes], Item] = {}
        pool = ThreadPoolExecutor(workers, thread_name_prefix="lepton-collect")
        try:
            while True:
                while len(flying) < 2 * workers and (item := next(items, None)) is not None:
                    flying[pool.submit(fetcher.fetch, item)] = item
                if not flying:
                    return
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    item = flying.pop(future)
                    try:
                        yield item, future.result()
                    except (SourceError, FileNotFoundError) as error:
                        if item.found and isinstance(item.place, Path) and not item.place.exists():
                            self._seen.discard(item.path)  # it went while others were read
                        else:
                            self.done.failed.append((item.path, str(error)))
        except BaseException:
            fetcher.stop()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, item: Item, data: bytes) -> None:
        digest, known = digest_of(data).hex(), self._known.get(item.path)
        content: bytes | str = data
        if self.kind == "text":
            try:
                content = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                self.done.failed.append((item.path, f"it is no UTF-8 text (byte {error.start}); collect it as file"))
                return
        same = known is not None and known.digest == digest
        said = known is not None and self._still_says(item, known)
        self.done.fetched_bytes += len(data)
        self.done.unchanged += same and said
        self.done.changed += known is not None and not (same and said)
        self.done.added += known is None
        if same and said and known is not None and known.tag == item.tag:
            return
        self._rows.append(
            {
                "path": item.path,
                _CONTENT[self.kind]: content,
                "bytes": len(data),
                "digest": digest,
                "source": item.source,
                "collected_at": known.collected_at if same and known is not None else self.clock(),
                "licence": item.licence or self.licence,
                "tag": item.tag,
                **item.columns,
            }
        )
        self._bytes += len(data)

    def _commit(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=self.schema)
        message = f"collect {len(self._rows):,} files"
        self._rows, self._bytes = [], 0
        self.done.dataset = put_rows(
            self.store, self.name, self.branch, self.done.dataset, table, ("path",), message, self.author
        )


def _digest_of_json(values: list[Any]) -> bytes:
    return digest_of(json.dumps(values, default=repr).encode())[:16]


def _other_kind(schema: pa.Schema, missing: str) -> str:
    """What to do about a column that a dataset does not have."""
    if missing in _CONTENT.values():
        for kind, name in _CONTENT.items():
            if name in schema.names:
                return f"its content was collected as {kind!r}: say --kind {kind} (kind={kind!r}) again"
    return "collect into another dataset, or add the column"


def head_of(store: Store, name: str, branch: str, schema: pa.Schema, key: tuple[str, ...]) -> Dataset | None:
    """The newest version, None when there is none. Raises BadInput, SchemaError: it is a tag, or no table that collected rows fit into."""
    writable_ref(store, "dataset", name, branch)
    ds = None
    with suppress(RefMissing):
        ds = Dataset.open(store, f"{name}@{branch}")
    if ds is None:
        return None
    if not ds.keyed or ds.identity != key:
        raise BadInput(f"{ds.label} is no table with the key {', '.join(key)}; collect into another dataset")
    for one in schema:
        at = ds.schema.get_field_index(one.name)
        if at < 0:
            raise SchemaError(f"{ds.label} has no column {one.name!r}; {_other_kind(ds.schema, one.name)}")
        if ds.schema.field(at).type != one.type:
            raise SchemaError(
                f"column {one.name!r} of {ds.label} is {ds.schema.field(at).type}, and would be {one.type}"
            )
    return ds


def put_rows(
    store: Store,
    name: str,
    branch: str,
    head: Dataset | None,
    table: pa.Table,
    key: tuple[str, ...],
    message: str,
    author: str = "",
) -> Dataset:
    """One commit: `table` makes the dataset, or its rows take the place of those with their keys."""
    if head is not None:
        return head.upsert(table, message=message, author=author)
    lineage = {"operation": "collect", "key": list(key)}
    source = Source(table.schema, key, lambda: iter(table.to_batches()), len(table), lineage, keyed=True)
    return write_dataset(store, name, source, message, branch, author=author)
