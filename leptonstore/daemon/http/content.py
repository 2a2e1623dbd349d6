"""Read-only content for browsers, caches and curl: what there is, versions, rows, values, files, chunks.

    /content, /content/KIND                          names and their branches and tags
    /content/chunks/DIGEST                           the value of that digest                    immutable
    /content/KIND/NAME@REF                           schema, rows, commit                        immutable when REF is a whole digest,
    /content/KIND/NAME@REF/rows?start&stop&columns   rows, as JSON or an Arrow stream            else ETag: the commit, no-cache
    /content/KIND/NAME@REF/rows/N/COLUMN             one value with its media type
    /content/KIND/NAME@REF/files/PATH                a file, or what is in a folder

Every function runs in a thread that may block, raises LeptonErrors, and returns something to send. What the principal may not see is
not there. Nothing of a store's content is ever sent as something that a browser runs: pictures, plain text, JSON and bytes to save.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from starlette.responses import Response

from leptonstore.daemon.arguments import Arguments
from leptonstore.daemon.http import bounds
from leptonstore.daemon.http.ask import Ask, number_of
from leptonstore.daemon.http.media import BINARY, JSON, is_stored_bytes, media_of, media_of_name, npy_of
from leptonstore.daemon.http.sending import ARROW_STREAM, ArrowStream, Ranged, Source
from leptonstore.daemon.http.work import Work
from leptonstore.daemon.operations import Operation, Scope
from leptonstore.daemon.reading import CHUNK, CHUNK_LIST
from leptonstore.daemon.service import Service
from leptonstore.daemon.tables import dataset_named
from leptonstore.dataset import Dataset
from leptonstore.dataset.mounted import Mounted, StoredBytes, mount
from leptonstore.dataset.plain import python_values, to_plain
from leptonstore.dataset.refs import MAIN, list_refs
from leptonstore.dataset.schema import class_names, semantic_of, shown_type
from leptonstore.digest import Buffer, Digest
from leptonstore.errors import BadInput, ChunkMissing, NotFound, RefMissing
from leptonstore.format import pack as lpk
from leptonstore.format.commit import KINDS
from leptonstore.store.wire.messages import Request
from leptonstore.store.wire.records import FOUND
from leptonstore.web.accept import chosen

Reader = Callable[[int, int], Iterator[Buffer]]
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROW_MAX = 10**18 - 1
_VARY = "authorization, accept"


class Content:
    """Of one daemon. Any thread."""

    def __init__(self, service: Service, work: Work) -> None:
        self._service, self._work = service, work
        self._guard = threading.Lock()
        self._mounts: OrderedDict[tuple[str, str], Mounted] = OrderedDict()
        self._making: dict[tuple[str, str], threading.Lock] = {}

    # -- what there is ---------------------------------------------------------------------------------------------

    def names(self, ask: Ask, operation: Operation) -> Response:
        """Every name of a kind (or of all) that the principal may read, with its branches and tags."""
        ask.principal.require(operation)
        ask.known()
        kinds = KINDS if "kind" not in ask.path else (_kind_of(ask),)
        self._service.reading.refresh()
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for kind in kinds:
            for info in list_refs(self._service.store, kind):
                if ask.principal.may(Scope.READ, info.name):
                    told = {"name": info.branch, "commit": info.commit, "tag": info.tag, "time_s": info.time_s}
                    found.setdefault((kind, info.name), []).append(told)
        names = [{"kind": kind, "name": name, "refs": refs} for (kind, name), refs in found.items()]
        return _json({"store": self._service.name, "names": names}, {"cache-control": "no-cache", "vary": _VARY})

    def version(self, ask: Ask, operation: Operation) -> Ranged:
        """What a version is."""
        ask.known()
        ds, fixed = self._opened(ask, operation)
        commit = ds.commit_object
        told = {
            "kind": commit.kind,
            "name": ds.name,
            "ref": ask.path["version"].partition("@")[2] or MAIN,
            "commit": ds.commit,
            "rows": len(ds),
            "plain_bytes": commit.plain_bytes,
            "message": commit.message,
            "parents": [parent.hex() for parent in commit.parents],
            "keyed": commit.keyed,
            "identity": list(commit.identity),
            "columns": [_column(field) for field in ds.schema],
        }
        return self._whole(ask, json.dumps(told, ensure_ascii=False).encode(), JSON, ds.commit, fixed)

    # -- rows ------------------------------------------------------------------------------------------------------

    def rows(self, ask: Ask, operation: Operation) -> Ranged | ArrowStream:
        """Rows [start, stop): all of them as an Arrow stream, or a page of them as JSON."""
        ask.known("start", "stop", "columns")
        ds, fixed = self._opened(ask, operation)
        names = _columns_of(ask, ds)
        count = len(ds)
        start = ask.number("start", 0, count)
        if chosen(ask.accept, (JSON, ARROW_STREAM)) == ARROW_STREAM:
            stop = min(max(start, ask.number("stop", count, _ROW_MAX)), count)
            told = {"dataset": f"{ds.name}@{ds.commit}", "kind": _kind_of(ask), "start": start, "stop": stop}
            if names is not None:
                told["columns"] = names
            schema, batches = self._service.stream(ask.principal, Request("rows", told))
            headers = self._cached(ask, fixed) | {"etag": f'"{ds.commit}-arrow"'}
            return ArrowStream(schema, batches, self._work, headers)
        stop = max(start, ask.number("stop", start + bounds.JSON_ROWS_DEFAULT, _ROW_MAX))
        stop = min(stop, start + bounds.JSON_ROWS_MAX, count)
        data = _page(ds, names, start, stop, ask.url_path)
        return self._whole(ask, data, JSON, f"{ds.commit}-json", fixed)

    def value(self, ask: Ask, operation: Operation) -> Ranged:
        """One value: bytes and text as they are, tensors as .npy, anything else as JSON."""
        ask.known()
        ds, fixed = self._opened(ask, operation)
        name = ask.path["column"]
        if name not in ds.schema.names:
            raise NotFound(f"there is no column {name[:100]!r} in this version")
        row = number_of(ask.path["row"], "a row", 0, _ROW_MAX)
        if row >= len(ds):
            raise NotFound(f"row {row:,} is not there: this version has {len(ds):,} rows")
        field = ds.schema.field(name)
        if is_stored_bytes(field.type):
            stored = StoredBytes(ds, row, name)
            if stored.size is None:
                raise _null(row, name)
            media = media_of(field, stored.read(0, 16))
            headers = self._cached(ask, fixed)
            if media == BINARY:
                headers["content-disposition"] = f'attachment; filename="{_safe(f"{ds.name}-{row}-{name}")}"'
            return self._sent(ask, Source(stored.size, ds.commit, media, _in_pieces(stored.read), headers))
        column = ds.take([row], [name]).column(0).combine_chunks()
        if column.null_count:
            raise _null(row, name)
        if column.nbytes > bounds.VALUE_BYTES_MAX:
            raise BadInput(f"this value has {column.nbytes:,} bytes; ask for its row as an Arrow stream")
        if isinstance(field.type, pa.FixedShapeTensorType):
            return self._whole(ask, npy_of(column), "application/x-npy", ds.commit, fixed)
        data = json.dumps(_finite(python_values(to_plain(column))[0]), ensure_ascii=False).encode()
        return self._whole(ask, data, JSON, ds.commit, fixed)

    # -- files -----------------------------------------------------------------------------------------------------

    def files(self, ask: Ask, operation: Operation) -> Ranged:
        """A file of a version, or what is in a folder of it."""
        ask.known()
        ds, fixed = self._opened(ask, operation)
        path = ask.path.get("path", "").strip("/")
        mounted = self._mounted(ds)
        entry = mounted.entry(path)
        if entry is None:
            raise NotFound("there is no such file in this version")
        if entry.is_file:
            media = media_of_name(entry.name)
            headers = self._cached(ask, fixed)
            if media == BINARY:
                headers["content-disposition"] = f'attachment; filename="{_safe(entry.name)}"'
            read = _in_pieces(mounted.reader(path))
            return self._sent(ask, Source(entry.size, ds.commit, media, read, headers))
        entries = mounted.entries(path)
        told = {
            "path": _printable(path),
            "entries": [
                {"name": _printable(each.name), "type": "file" if each.is_file else "folder", "size": each.size}
                | {"href": f"{ask.url_path}/{quote(each.name, errors='surrogateescape')}"}
                for each in entries[: bounds.FILES_LISTED_MAX]
            ],
            "more": max(0, len(entries) - bounds.FILES_LISTED_MAX),
        }
        return self._whole(ask, json.dumps(told, ensure_ascii=False).encode(), JSON, ds.commit, fixed)

    def _mounted(self, ds: Dataset) -> Mounted:
        key = (ds.name, ds.commit)
        with self._guard:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # one makes it; the others wait for that rather than doing it again
            try:
                found = self._mounts.get(key) or self._mount(ds)
            finally:
                with self._guard:
                    self._making.pop(key, None)
            with self._guard:
                self._mounts[key] = found
                self._mounts.move_to_end(key)
                while len(self._mounts) > bounds.MOUNTS_MAX:
                    self._mounts.popitem(last=False)
        return found

    def _mount(self, ds: Dataset) -> Mounted:
        if len(ds) > bounds.FILES_MAX and {"path", "data"} <= set(ds.schema.names):
            raise BadInput(f"this version has {len(ds):,} files; over {bounds.FILES_MAX:,} ask for its rows")
        return mount(ds)

    # -- chunks ----------------------------------------------------------------------------------------------------

    def chunk(self, ask: Ask, operation: Operation) -> Ranged:
        """The value of a digest, whole, however it is stored."""
        ask.principal.require(operation)
        ask.known()
        text = ask.path["digest"]
        if not _DIGEST.fullmatch(text):
            raise BadInput("a digest has 64 hex digits, in lower case")
        digest = bytes.fromhex(text)
        read: Reader
        found = np.frombuffer(self._act(ask, "find", digest), FOUND)[0]
        if not found["kind"]:
            raise ChunkMissing(text)
        size = int(found["plain"])
        if found["kind"] == CHUNK:
            read = _Pieces(self, ask, ((digest, size),))
        else:
            kind, data = self._get(ask, digest)
            if kind == CHUNK_LIST:
                pieces = lpk.parse_chunk_list(bytes(data)).pieces
                read, size = _Pieces(self, ask, pieces), sum(length for _, length in pieces)
            else:
                read, size = _in_pieces(lambda start, stop: data[start:stop]), len(data)
        headers = self._cached(ask, True) | {"content-disposition": f'attachment; filename="{text}"'}
        return self._sent(ask, Source(size, text, BINARY, read, headers))

    def piece(self, ask: Ask, digest: Digest) -> memoryview:
        """The bytes of a chunk. Raises ChunkMissing, ChunkCorrupt."""
        return self._get(ask, digest)[1]

    def _act(self, ask: Ask, op: str, payload: bytes) -> bytes:
        answer = self._service.act(ask.principal, Request(op, {}, payload))
        assert isinstance(answer, bytes)
        return answer

    def _get(self, ask: Ask, digest: Digest) -> tuple[int, memoryview]:
        _, batches = self._service.stream(ask.principal, Request("get", {"whole": True}, digest))
        batch = next(batches)
        return batch.column(0)[0].as_py(), memoryview(batch.column(1)[0].as_buffer())

    # -- for all of them -------------------------------------------------------------------------------------------

    def _opened(self, ask: Ask, operation: Operation) -> tuple[Dataset, bool]:
        """The version that a path names, and whether it names it for ever. Raises NotPermitted, NotFound, BadInput."""
        kind, spec = _kind_of(ask), ask.path["version"]
        ask.principal.require(operation, dataset_named(spec))
        self._service.reading.refresh()
        ds = self._service.tables.dataset(ask.principal, Arguments("content", {"dataset": spec, "kind": kind}))
        if ds.commit_object.kind != kind:
            raise RefMissing(f"there is no {kind} {spec[:100]!r}")
        return ds, spec == f"{ds.name}@{ds.commit}"

    def _whole(self, ask: Ask, data: bytes, media: str, tag: str, fixed: bool) -> Ranged:
        return Ranged(Source.of(data, tag, media, self._cached(ask, fixed)), self._work)

    def _sent(self, ask: Ask, source: Source) -> Ranged:
        return Ranged(source if ask.method == "HEAD" else source.made_ready(bounds.SEND_BYTES), self._work)

    def _cached(self, ask: Ask, fixed: bool) -> dict[str, str]:
        """Who may keep it, and for how long. What needs a credential is for its holder alone: a shared cache would hand it to others."""
        whose = "public" if ask.anonymous else "private"
        kept = f"{whose}, max-age={bounds.IMMUTABLE_S}, immutable" if fixed else f"{whose}, no-cache"
        return {"cache-control": kept, "vary": _VARY}


class _Pieces:
    """A value in pieces: those that a range covers, one at a time."""

    def __init__(self, content: Content, ask: Ask, pieces: tuple[tuple[Digest, int], ...]) -> None:
        self._content, self._ask, self._pieces = content, ask, pieces

    def __call__(self, start: int, stop: int) -> Iterator[Buffer]:
        at = 0
        for digest, length in self._pieces:
            if at >= stop:
                break
            if at + length > start:
                yield self._content.piece(self._ask, digest)[max(0, start - at) : stop - at]
            at += length


def _in_pieces(read: Callable[[int, int], Buffer]) -> Reader:
    """A function that reads a range at once, as one that reads it in steps."""
    step = 4 * bounds.SEND_BYTES

    def pieces(start: int, stop: int) -> Iterator[Buffer]:
        for first in range(start, stop, step):
            yield read(first, min(first + step, stop))

    return pieces


def _kind_of(ask: Ask) -> str:
    kind = ask.path["kind"]
    if kind not in KINDS:
        raise NotFound(f"there is nothing of the kind {kind[:40]!r}; there are {', '.join(KINDS)}, and chunks")
    return kind


def _columns_of(ask: Ask, ds: Dataset) -> list[str] | None:
    """?columns=a,b and ?columns=a&columns=b, and a name with a comma as it stands."""
    given = ask.query.get("columns")
    if given is None:
        return None
    there = set(ds.schema.names)
    names = [name for text in given for name in ([text] if text in there else text.split(","))]
    for name in names:
        if name not in there:
            raise BadInput(f"there is no column {name[:100]!r} in this version")
    return list(dict.fromkeys(names))


def _page(ds: Dataset, names: list[str] | None, start: int, stop: int, url: str) -> bytes:
    """Rows as JSON. Bytes and tensors are links to their values, which are not read for it."""
    fields = ds.fields(names)
    linked = {field.name for field in fields if is_linked(field.type)}
    told = [field.name for field in fields if field.name not in linked]
    rows: list[str] = []
    size, at = 0, start
    while at < stop and size < bounds.JSON_BYTES_MAX:
        end = min(stop, at + 64)
        values = (
            [python_values(to_plain(column.combine_chunks())) for column in ds.take(range(at, end), told).columns]
            if told
            else []
        )
        for number in range(at, end):
            row: dict[str, Any] = {}
            for field in fields:
                if field.name in linked:
                    row[field.name] = {"href": f"{url}/{number}/{quote(field.name, safe='')}"}
                else:
                    row[field.name] = _finite(values[told.index(field.name)][number - at])
            rows.append(json.dumps(row, ensure_ascii=False))
            size += len(rows[-1])
            if size >= bounds.JSON_BYTES_MAX:
                break
        at = start + len(rows)
    after = "null" if at >= len(ds) else str(at)
    return f'{{"start": {start}, "stop": {at}, "of": {len(ds)}, "next": {after}, "rows": [{", ".join(rows)}]}}'.encode()


def is_linked(data_type: pa.DataType) -> bool:
    """Whether values of a type are too many or no text: JSON has a link to them."""
    return bool(
        isinstance(data_type, pa.FixedShapeTensorType)
        or pa.types.is_binary(data_type)
        or pa.types.is_large_binary(data_type)
        or pa.types.is_fixed_size_binary(data_type)
    )


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and the infinities; they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return value


def _column(field: pa.Field) -> dict[str, Any]:
    told: dict[str, Any] = {"name": field.name, "type": shown_type(field.type), "nullable": field.nullable}
    if semantic_of(field):
        told["semantic"] = semantic_of(field)
    names = class_names(field)
    return told if names is None else told | {"classes": names}


def _null(row: int, name: str) -> NotFound:
    return NotFound(f"column {name[:100]!r} of row {row:,} is null")


def _safe(name: str) -> str:
    """For a header, and for whoever saves it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".") or "value"


def _printable(name: str) -> str:
    """A name of a file need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _json(value: Any, headers: dict[str, str]) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), media_type=JSON, headers=headers)
