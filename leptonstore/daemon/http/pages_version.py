"""One version: what it is, its columns, what it takes, samples, and where it comes from. A model's or checkpoint's is a list of files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_names import PLURALS
from leptonstore.daemon.http.pages_values import FileRow, files_of, gallery_of, table_of
from leptonstore.daemon.operations import Scope
from leptonstore.dataset import Dataset, DatasetStats
from leptonstore.dataset.lineage import Link, lineage
from leptonstore.dataset.schema import class_names, semantic_of, shown_type
from leptonstore.process import charts, columns
from leptonstore.process.gallery import text_column
from leptonstore.process.report import Version
from leptonstore.process.report_graph import graphs
from leptonstore.process.report_view import lineage as lineage_rows

SAMPLES = 24


@dataclass(frozen=True)
class ColumnRow:
    """A column as the schema table shows it. stats: what it takes, once that is measured."""

    name: str
    type: str
    semantic: str
    nullable: bool
    key: bool
    classes: tuple[str, ...]
    stats: Mapping[str, Any] | None
    width: float


def version(ask: Ask) -> Response:
    """The page of a version."""
    name, commit = ask.version()
    found = ask.seen.commit(commit)
    ds = ask.seen.dataset(name, commit)
    stats = ask.desk.measures.stats(ds)
    parents = ask.seen.parents(commit)
    links, more = _links(ask, name.kind, f"{name.name}@{commit}")
    files: list[FileRow] | None = None
    samples: dict[str, Any] = {}
    if name.kind != "dataset" and {"path", "data"} <= set(found.schema.names):
        files = files_of(ds)
    elif found.rows:
        samples = _samples(ds)
    entries = lineage_rows([Version(name.name, commit, parents, found.message, found.lineage)])[0]["entries"]
    return ask.page(
        "version.html.j2", kind=name.kind, plural=PLURALS[name.kind], name=name, commit=commit, found=found, parents=parents,
        published=ask.seen.published().get(commit), refs=ask.seen.refs_at(name, commit),
        forgotten=commit in ask.seen.store.state.forgotten, schema=_schema(found.schema, found.identity, stats),
        columns_left_out=max(0, len(found.schema) - bounds.SCHEMA_COLUMNS_MAX), stats=stats,
        measuring=ask.desk.measures.measuring(commit), storage=_storage(stats), files=files, samples=samples,
        graphs=graphs(links, more), links=links, lineage=entries[: bounds.LINEAGE_ENTRIES_MAX],
        metrics=next((ref.metrics for ref in ask.seen.refs_at(name, commit) if ref.metrics), {}),
    )  # fmt: skip


def _schema(schema: pa.Schema, identity: tuple[str, ...], stats: DatasetStats | None) -> list[ColumnRow]:
    sizes = stats.columns if stats else {}
    peak = max((one["stored_bytes"] for one in sizes.values()), default=0) or 1
    return [
        ColumnRow(
            field.name, shown_type(field.type), semantic_of(field), field.nullable, field.name in identity,
            tuple(class_names(field) or ()), sizes.get(field.name),
            round(sizes[field.name]["stored_bytes"] / peak * 100, 2) if field.name in sizes else 0.0,
        )
        for field in list(schema)[: bounds.SCHEMA_COLUMNS_MAX]
    ]  # fmt: skip


def _storage(stats: DatasetStats | None) -> list[dict[str, Any]]:
    """Three bars on one scale: all values, each once, as stored."""
    if stats is None:
        return []
    peak = max(stats.logical_bytes, stats.unique_bytes, stats.stored_bytes, 1)
    unique, stored = (
        before / after if after else 1.0
        for before, after in ((stats.logical_bytes, stats.unique_bytes), (stats.unique_bytes, stats.stored_bytes))
    )
    steps = [
        ("All values", stats.logical_bytes, "plain"),
        (
            "Each value once",
            stats.unique_bytes,
            f"{charts.as_ratio(unique)} smaller" if unique >= 1.005 else "nothing repeats",
        ),
        ("As stored", stats.stored_bytes, f"{charts.as_ratio(stored)} smaller" if stored >= 1.005 else "with metadata"),
    ]
    return [
        {"name": name, "bytes": size, "note": note, "width": round(size / peak * 100, 2)} for name, size, note in steps
    ]


def _samples(ds: Dataset) -> dict[str, Any]:
    """The first rows: pictures or texts where there are some, else a table."""
    rows = list(range(min(SAMPLES, len(ds))))
    if columns.image_columns(ds.schema) or text_column(ds) is not None:
        return {"gallery": gallery_of(ds, rows)}
    return {"table": table_of(ds, rows[:10])}


def _links(ask: Ask, kind: str, spec: str) -> tuple[list[Link], int]:
    """Where it comes from, without what `ask.who` may not see."""
    seen = ask.seen
    links, more = seen.keep(
        ("lineage", kind, spec),
        lambda: lineage(seen.store, spec, kind, bounds.LINEAGE_LINKS_MAX),
        seen.sequence(),
    )
    shown = []
    for at, link in enumerate(links):
        if at == 0 or ask.who.may(Scope.READ, link.name.partition("@")[0]):
            refs = tuple(ref for ref in link.refs if ask.who.may(Scope.READ, ref.partition("@")[0]))
            shown.append(replace(link, refs=refs))
    if len(shown) < len(links):
        there = {link.digest for link in shown}
        more = len({origin.commit for link in shown for origin in link.origins} - there)
    return shown, more
