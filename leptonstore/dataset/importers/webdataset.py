"""Import of WebDataset: tar archives (plain or .gz) in which the files of one key, one after another, are a sample.

SRC is one archive, a directory of them, or a pattern such as shards/train-{000000..000004}.tar; a URL too. __key__ holds
the keys. Archives of `lepton export` carry their schema, and the table comes back as it was. For all others the columns
are the endings of the first samples (limits.WDS_PROBE_*), every one of them nullable:

    jpg png gif ...            image, as it is          txt text caption transcript    text
    cls count index id ...     int64                    json jsn                       text, which holds JSON
    npy                        tensor, if the first samples have one shape and type    all else   bytes, never unpickled

"0001.left.jpg" is the column "left"; where several endings would share a name, columns keep their whole endings. An
ending that the first samples lack is refused: say with `extensions` which ones to read (others are then passed over).
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.importers.image_folder import CODECS
from leptonstore.dataset.importers.reading import (
    files_in,
    lineage_of,
    open_unpacked,
    require_regular_file,
    root_of_place,
    unpacking,
)
from leptonstore.dataset.importers.tables import identity_columns
from leptonstore.dataset.importers.tar import read_tar
from leptonstore.dataset.npy_format import column_of, field_of, parse_array
from leptonstore.dataset.places import Place, UrlPlace, place_of
from leptonstore.dataset.plain import fixed_row_bytes, parse_cells
from leptonstore.dataset.schema import CODEC, SEMANTIC, path_field, tensor_shape
from leptonstore.dataset.source import Referred, Source
from leptonstore.dataset.webdataset_format import (
    KEY,
    NOTHING,
    SCHEMA_MEMBER,
    decode_carried,
    kind_of,
    split_member,
)
from leptonstore.errors import BadInput, SchemaError, SourceError
from leptonstore.store.references import Spot
from leptonstore.tiers.external import ExternalReader, Stamp, open_external

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_TEXT = {"txt", "text", "caption", "transcript", "json", "jsn"}
_INTEGERS = {"cls", "cls2", "class", "count", "index", "inx", "id"}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass
class _Sample:
    """The files of one key: ending -> content."""

    key: str
    shard: Place
    files: dict[str, bytes] = field(default_factory=dict)
    bytes: int = 0
    spots: dict[str, Spot] = field(default_factory=dict)  # where the files stand, in an import by reference


@dataclass(frozen=True)
class _Layout:
    """The columns, and the one that each ending goes to. carried: the archives say so themselves."""

    schema: pa.Schema
    columns: dict[str, str]
    carried: bool
    kinds: dict[str, str]

    def column(self, ending: str) -> str | None:
        """The column of a file, None when there is none."""
        return self.columns.get(ending) or (self.columns.get(ending.rpartition(".")[0]) if self.carried else None)


def open_source(
    path: Place,
    key: str | Sequence[str] | None = None,
    extensions: Sequence[str] | None = None,
    reference: bool = False,
) -> Source:
    """__key__, and a column for each ending.

    key: the columns that identify a row (default: __key__). extensions: the endings to read, such as ("jpg", "cls").
    reference: images, texts and bytes stay in the archives (plain ones of one folder), and the store keeps where that is.
    Reads the first samples. Raises SourceError (no samples, a damaged archive, a path that leads out, a link, a device, a
    file twice, a value that does not fit; with archive and file) and SchemaError.
    """
    shards = shards_of(path)
    for shard in shards:
        require_regular_file(shard)
    notes: list[str] = []
    wanted = None if extensions is None else {ending.lower().lstrip(".") for ending in extensions}
    layout = _layout_of(path, shards, wanted, notes)
    return Source(
        layout.schema,
        identity_columns(layout.schema, key if key is not None else KEY if KEY in layout.schema.names else None),
        lambda: (batch for batch, _ in _spotted(shards, layout, wanted)),
        referred=_referred(path, shards, layout, wanted) if reference else None,
        lineage={"format": "webdataset", "files": [lineage_of(shard) for shard in shards]},
        notes=notes,
    )


def _referred(path: Place, shards: list[Place], layout: _Layout, wanted: set[str] | None) -> Referred:
    folder = shards[0].parent
    if any(str(shard.parent) != str(folder) for shard in shards):
        raise SourceError(
            f"{path}: archives that are referred to must lie in one folder; import it without --reference", str(path)
        )
    root = root_of_place(folder)
    return Referred(root, lambda: _spotted(shards, layout, wanted, open_external(root)))


def is_pattern(path: str) -> bool:
    """Whether a path stands for several."""
    return _BRACES.search(path) is not None


def shards_of(path: Place) -> list[Place]:
    """The archives that a path stands for, in order. Raises SourceError, BadInput."""
    text = path.url if isinstance(path, UrlPlace) else str(path)
    if is_pattern(text) and not path.exists():
        return [place_of(each) for each in _expanded(text)]
    if not path.is_dir():
        return [path]
    found = files_in(path, SUFFIXES)
    if not found:
        raise SourceError(f"{path} holds no *.tar; check the path", str(path))
    return found


def _expanded(text: str) -> list[str]:
    """{000..003} and {a,b}, also several of them."""
    found = [text]
    while (match := _BRACES.search(found[0])) is not None:
        numbers = _RANGE.fullmatch(match[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            count = last - first + 1
            words: Sequence[str] = [
                f"{n:0{len(numbers[1])}}" for n in range(first, min(last, first + limits.SOURCE_SHARDS_MAX) + 1)
            ]
        else:
            words = match[1].split(",")
            count = len(words)
        if count < 1 or count * len(found) > limits.SOURCE_SHARDS_MAX:
            raise BadInput(
                f"{text} stands for {max(0, count) * len(found)} files; 1 to {limits.SOURCE_SHARDS_MAX} are accepted"
            )
        found = [_BRACES.sub(word, each, count=1) for each in found for word in words]
    return found


# -- samples -----------------------------------------------------------------------------------------------------


def _samples(
    shards: list[Place],
    wanted: set[str] | None,
    passed: list[str] | None = None,
    objects: ExternalReader | None = None,
) -> Iterator[_Sample]:
    """Files grouped by key; `passed` collects files that belong to no sample. objects: of an import by reference."""
    for shard in shards:
        sample: _Sample | None = None
        with unpacking(shard), open_unpacked(shard) as stream:
            stamp = None if objects is None else _stamp_of(objects, shard, stream)
            for name, data, offset in read_tar(stream, str(shard)):
                if name == SCHEMA_MEMBER or (name.startswith("__") and name.split("/")[0].endswith("__")):
                    continue  # as webdataset does
                split = split_member(name)
                if split is None or name.rpartition("/")[2].startswith("."):
                    if passed is not None:
                        passed.append(f"{shard.name}: {name}")
                    continue
                key, ending = split
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key, shard)
                if wanted is not None and ending not in wanted:
                    continue
                if ending in sample.files:
                    raise SourceError(f"{shard} holds {name!r} twice; pack it again", str(shard))
                sample.files[ending] = data
                if stamp is not None:
                    sample.spots[ending] = Spot(_name_below(shard), offset, stamp)
                sample.bytes += len(data)
                if sample.bytes > 2 * limits.SOURCE_VALUE_BYTES_MAX:
                    raise SourceError(
                        f"{shard}: sample {key!r} has more than {2 * limits.SOURCE_VALUE_BYTES_MAX} bytes; split it",
                        str(shard),
                    )
            if sample is not None:
                yield sample


def _name_below(shard: Place) -> str:
    """An archive's name in its folder; behind a link of the same folder, that of the file itself."""
    if isinstance(shard, UrlPlace):
        return shard.name
    return os.path.relpath(os.path.realpath(shard), os.path.realpath(shard.parent))


def _stamp_of(objects: ExternalReader, shard: Place, stream: object) -> Stamp:
    if isinstance(stream, gzip.GzipFile):
        raise SourceError(
            f"{shard} is compressed: its files do not stand in it as they are; import it without --reference",
            str(shard),
        )
    return objects.stamp(_name_below(shard))


def _spotted(
    shards: list[Place], layout: _Layout, wanted: set[str] | None, objects: ExternalReader | None = None
) -> Iterator[tuple[pa.RecordBatch, dict[str, list[Spot | None]]]]:
    """Batches, and where the values of columns stand that are the bytes of files."""
    samples: list[_Sample] = []
    size, fixed = 0, fixed_row_bytes(layout.schema)
    for sample in _samples(shards, wanted, objects=objects):
        length = max(sample.bytes, fixed)
        full = len(samples) >= limits.IMPORT_BATCH_ROWS_MAX or size + length > limits.IMPORT_BATCH_BYTES_MAX
        if samples and full:
            yield _to_arrow(samples, layout), _spots_of(samples, layout)
            samples, size = [], 0
        samples.append(sample)
        size += length
    if samples:
        yield _to_arrow(samples, layout), _spots_of(samples, layout)


def _spots_of(samples: list[_Sample], layout: _Layout) -> dict[str, list[Spot | None]]:
    verbatim = [name for name, kind in layout.kinds.items() if kind in ("image", "bytes", "text")]
    found: dict[str, list[Spot | None]] = {name: [None] * len(samples) for name in verbatim}
    for row, sample in enumerate(samples):
        for ending, spot in sample.spots.items():
            name = layout.column(ending)
            if name in found:
                found[name][row] = spot
    return found


def _to_arrow(samples: list[_Sample], layout: _Layout) -> pa.RecordBatch:
    cells: dict[str, list[bytes | None]] = {name: [None] * len(samples) for name in layout.schema.names}
    for row, sample in enumerate(samples):
        for ending, data in sample.files.items():
            name = layout.column(ending)
            if name is None:
                if layout.carried and ending == NOTHING:
                    continue
                raise SourceError(
                    f"{sample.shard}: sample {sample.key!r} has a file .{ending}, which the first samples do not have; say "
                    "with extensions which endings to read",
                    str(sample.shard),
                )
            cells[name][row] = data
    columns = []
    for column in layout.schema:
        if column.name == KEY:
            columns.append(pa.array([sample.key for sample in samples], column.type))
        else:
            columns.append(_column(samples, column, layout.kinds[column.name], cells[column.name]))
    return pa.RecordBatch.from_arrays(columns, schema=layout.schema)


def _column(samples: list[_Sample], column: pa.Field, kind: str, cells: list[bytes | None]) -> pa.Array:
    try:
        array = _decoded(column, kind, cells)
        array.validate(full=True)
    except (ValueError, pa.ArrowException, SourceError, OverflowError) as error:
        raise _at_sample(samples, column, kind, cells, error) from None
    if not column.nullable and array.null_count:
        sample = samples[array.is_null().index(True).as_py()]
        raise SourceError(
            f"{sample.shard}: sample {sample.key!r} has no file of column {column.name!r}; pack it again",
            str(sample.shard),
        )
    return array


def _at_sample(
    samples: list[_Sample], column: pa.Field, kind: str, cells: list[bytes | None], error: Exception
) -> SourceError:
    """Which sample it was: one after the other, as this one is the last thing that is done."""
    for sample, cell in zip(samples, cells, strict=True):
        try:
            _decoded(column, kind, [cell]).validate(full=True)
        except (ValueError, pa.ArrowException, SourceError, OverflowError) as found:
            why = " ".join(str(found).split())
            return SourceError(
                f"{sample.shard}: sample {sample.key!r}, column {column.name!r} ({column.type}): {why}; correct it",
                str(sample.shard),
            )
    return SourceError(f"{samples[0].shard}: column {column.name!r}: {error}", str(samples[0].shard))


def _decoded(column: pa.Field, kind: str, cells: list[bytes | None]) -> pa.Array:
    if kind in ("image", "bytes"):
        return pa.array(cells, column.type)
    if kind == "text":
        return pa.array([None if cell is None else cell.decode() for cell in cells], column.type)
    if kind in ("class", "integer"):
        return pa.array([None if cell is None else int(cell[:40]) for cell in cells], column.type)
    if kind == "npy":
        return _tensors(column, cells)
    return parse_cells(cells, column.type)


def _tensors(column: pa.Field, cells: list[bytes | None]) -> pa.Array:
    shape = tensor_shape(column) or ()
    dtype = np.dtype(column.type.value_type.to_pandas_dtype())
    values = np.zeros((len(cells), *shape), dtype)
    for row, cell in enumerate(cells):
        if cell is not None:
            array = parse_array(cell, "its file")
            if array.shape != shape or array.dtype.newbyteorder("=") != dtype:
                raise SourceError(
                    f"an array of {array.dtype} of shape {array.shape}; the column has {dtype} of shape {shape}"
                )
            values[row] = array
    whole = column_of(column, values)
    if None not in cells:
        return whole
    mask = pa.array([cell is None for cell in cells])
    storage = pa.FixedSizeListArray.from_arrays(whole.storage.values, type=column.type.storage_type, mask=mask)
    return pa.ExtensionArray.from_storage(column.type, storage)


# -- columns -----------------------------------------------------------------------------------------------------


def _carried(shard: Place) -> tuple[pa.Schema, dict[str, str]] | None:
    with unpacking(shard), open_unpacked(shard) as stream:
        first = next(read_tar(stream, str(shard)), None)
    return decode_carried(first.data, str(shard)) if first is not None and first.name == SCHEMA_MEMBER else None


def _layout_of(path: Place, shards: list[Place], wanted: set[str] | None, notes: list[str]) -> _Layout:
    carried = _carried(shards[0])
    if carried is not None and wanted is None:
        schema, words = carried
        for shard in shards[1:]:
            if _carried(shard) != carried:
                raise SourceError(f"{shard} and {shards[0].name} were exported with different schemas", str(shard))
        return _Layout(schema, words, True, {column.name: kind_of(column) for column in schema})
    probe: list[_Sample] = []
    size = 0
    passed: list[str] = []
    for sample in _samples(shards, wanted, passed):
        probe.append(sample)
        size += sample.bytes
        if size > limits.WDS_PROBE_BYTES or len(probe) >= limits.WDS_PROBE_ROWS:
            break
    if not probe:
        raise SourceError(f"{path} holds no samples (files such as 0001.jpg); check the path", str(path))
    if passed:
        notes.append(f"files that belong to no sample were left out, such as {passed[0]}")
    endings = sorted({ending for sample in probe for ending in sample.files})
    endings = sorted(wanted) if wanted is not None else endings
    if not endings:
        raise SourceError(f"{path}: no sample has any file that is to be read", str(path))
    names = _names_of(endings)
    fields, kinds = [path_field(KEY)], {}
    for ending in endings:
        values = [sample.files[ending] for sample in probe if ending in sample.files]
        column, kinds[names[ending]] = _field_of(names[ending], ending, values)
        fields.append(column)
    try:
        return _Layout(pa.schema(fields), names, False, kinds)
    except pa.ArrowException as error:
        raise SchemaError(f"{path}: {error}") from None


def _is_known(ending: str) -> bool:
    return ending in CODECS or ending in _TEXT or ending in _INTEGERS or ending in ("npy", "bin")


def _names_of(endings: list[str]) -> dict[str, str]:
    """Ending -> column: "left.jpg" is "left" unless something else would be, too."""
    short = {}
    for ending in endings:
        head, _, last = ending.rpartition(".")
        short[ending] = head if head and _is_known(last) else ending
    taken = list(short.values())
    return {ending: name if taken.count(name) == 1 and name != KEY else ending for ending, name in short.items()}


def _field_of(name: str, ending: str, values: list[bytes]) -> tuple[pa.Field, str]:
    """The column of an ending, and how its cells are read."""
    last = ending.rpartition(".")[2]
    if last in CODECS:
        return pa.field(name, pa.large_binary(), metadata={SEMANTIC: b"image", CODEC: CODECS[last].encode()}), "image"
    if last in _TEXT:
        return pa.field(name, pa.string()), "text"
    if last in _INTEGERS:
        return pa.field(name, pa.int64()), "integer"
    if last == "npy" and values:
        arrays = []
        for value in values:
            try:
                arrays.append(parse_array(value, name))
            except SourceError:
                break  # pickled, or not .npy at all: its bytes are kept
        shapes: set[Any] = {(array.shape, array.dtype.newbyteorder("=")) for array in arrays}
        if (
            len(arrays) == len(values)
            and len(shapes) == 1
            and arrays[0].ndim
            and arrays[0].size
            and arrays[0].dtype.kind in "iuf"
        ):
            return field_of(name, arrays[0].dtype, arrays[0].shape, name).with_nullable(True), "npy"
    return pa.field(name, pa.large_binary()), "bytes"
