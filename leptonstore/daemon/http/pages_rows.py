"""The rows of a version: by number, or those that a condition is true for; one row with all of its values; one value as a file."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.responses import Response

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http.media import drawn_type
from leptonstore.daemon.http.pages_ask import Ask
from leptonstore.daemon.http.pages_names import PLURALS
from leptonstore.daemon.http.pages_render import HEADERS, Whole
from leptonstore.daemon.http.pages_values import gallery_of, table_of, values_of
from leptonstore.dataset import Dataset
from leptonstore.dataset.diff import LargeValue, python_values
from leptonstore.dataset.filtering import filtered
from leptonstore.dataset.predicate import Predicate
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, LeptonError, NotFound
from leptonstore.process import columns, images
from leptonstore.process.gallery import text_column

_SANDBOX = {**HEADERS, "content-security-policy": "sandbox; default-src 'none'"}


@dataclass(frozen=True)
class Found:
    """What a search found: rows, the first row that was not looked at (None: all were), and whether time ran out."""

    rows: list[int]
    next: int | None
    hurried: bool


def rows(ask: Ask) -> Response:
    """A page of rows."""
    name, commit = ask.version()
    ds = ask.seen.dataset(name, commit)
    where = ask.query.get("where", "").strip()
    if len(where) > bounds.WHERE_CHARS_MAX:
        raise BadInput(f"a condition has at most {bounds.WHERE_CHARS_MAX:,} characters")
    start = ask.number("from")
    total = len(ds)
    problem, found = "", Found([], None, False)
    if start >= total > 0 and not where:
        start, problem = (
            (total - 1) // bounds.ROWS_PAGE * bounds.ROWS_PAGE,
            f"Row {start:,} is not there: there are {total:,}.",
        )
    if where:
        try:
            found = search(ds, where, start)
        except BadInput as error:
            problem = ask.desk.told(error)
    else:
        end = min(start + bounds.ROWS_PAGE, total)
        found = Found(list(range(start, end)), end if end < total else None, False)
    visual = bool(columns.image_columns(ds.schema)) or (total > 0 and text_column(ds) is not None)
    view = ask.query.get("view") or ("gallery" if visual else "table")
    content: dict[str, Any] = {"gallery": None, "table": None}
    if found.rows:
        content |= (
            {"gallery": gallery_of(ds, found.rows)}
            if view == "gallery" and visual
            else {"table": table_of(ds, found.rows)}
        )
    return ask.page(
        "rows.html.j2", kind=name.kind, plural=PLURALS[name.kind], name=name, commit=commit, total=total, start=start,
        where=Whole(where), found=found, problem=problem, view=view, visual=visual, page=bounds.ROWS_PAGE,
        columns=[_quoted(name) for name in ds.schema.names[: bounds.COLUMNS_MAX]], **content,
    )  # fmt: skip


def _quoted(name: str) -> str:
    """A column as a condition names it."""
    return name if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) else '"' + name.replace('"', '""') + '"'


def search(ds: Dataset, where: str, start: int) -> Found:
    """The first rows from `start` on that a condition is true for; as far as SEARCH_S goes. Raises BadInput."""
    predicate = Predicate(where, ds.schema)
    until, found = time.monotonic() + bounds.SEARCH_S, list[int]()
    at = start
    while at < len(ds):
        end = min(at + bounds.SEARCH_STEP_ROWS, len(ds))
        part = ds.select(np.arange(at, end, dtype=np.int64))
        for positions, _ in filtered(part, predicate, None):
            found += (positions + at).tolist()
            if len(found) > bounds.ROWS_PAGE:
                return Found(found[: bounds.ROWS_PAGE], found[bounds.ROWS_PAGE], False)
        at = end
        if at < len(ds) and time.monotonic() > until:
            return Found(found, at, True)
    return Found(found, None, False)


def row(ask: Ask) -> Response:
    """One row."""
    name, commit = ask.version()
    ds = ask.seen.dataset(name, commit)
    number = int(ask.path["row"])
    if number >= len(ds):
        raise NotFound(f"row {number:,} is not there: this version has {len(ds):,} rows")
    return ask.page(
        "row.html.j2", kind=name.kind, plural=PLURALS[name.kind], name=name, commit=commit, row=number, total=len(ds),
        values=values_of(ds, number), page=bounds.ROWS_PAGE,
        columns_left_out=max(0, len(ds.schema) - bounds.SCHEMA_COLUMNS_MAX),
    )  # fmt: skip


def value(ask: Ask) -> Response:
    """One value, as a picture where it is one, else as a file to save. It never changes, for its version does not."""
    name, commit = ask.version()
    ds = ask.seen.dataset(name, commit)
    number, column = int(ask.path["row"]), int(ask.path["column"])
    if number >= len(ds) or column >= len(ds.schema):
        raise NotFound("there is no such value")
    field = ds.schema.field(column)
    image = columns.as_images(field) if semantic_of(field) == "image" else None
    if image is not None and image.shape is not None:
        array = ds.take_stored(np.asarray([number]), field.name).values
        if array.null_count:
            raise NotFound("this value is null")
        return _file(images.encode(np.array(columns.tensor_values(array)[0]), "PNG"), "image/png")
    data = _bytes(ds, number, field)
    if image is None:
        return _file(data, "application/octet-stream", f"{name.name}-{number}-{column}")
    kind = drawn_type(bytes(data[:12]))
    if kind is not None:
        return _file(data, kind)
    try:
        return _file(images.encode(images.decode(data, field.name), "PNG"), "image/png")
    except LeptonError:
        raise BadInput(f"column {field.name!r} of row {number:,} holds no picture that can be drawn") from None


def _bytes(ds: Dataset, number: int, field: pa.Field) -> bytes:
    """Raises BadInput, NotFound."""
    if not (columns.is_binary(field.type) or pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
        raise BadInput(f"column {field.name!r} holds no files")
    found = python_values(ds.take_stored(np.asarray([number]), field.name), field.type)[0]
    if found is None:
        raise NotFound("this value is null")
    size = found.size if isinstance(found, LargeValue) else len(found)
    if size > bounds.VALUE_BYTES_MAX:
        raise BadInput(f"this value has {size:,} bytes: `lepton get` writes it to a file")
    if isinstance(found, LargeValue):
        return bytes(ds.chunks.get(bytes.fromhex(found.digest)))
    return found.encode() if isinstance(found, str) else bytes(found)


def _file(data: bytes, kind: str, name: str = "") -> Response:
    headers = {**_SANDBOX, "cache-control": "private, max-age=3600"}
    if name:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        headers["content-disposition"] = f'attachment; filename="{safe}"'
    return Response(data, media_type=kind, headers=headers)
