"""What import and export of WebDataset share: how columns become files of a sample, and back.

A sample is the files of one key: "0001.image.jpg", "0001.label.cls". A column is written as <column>.<ending>; the
endings are those that the webdataset library decodes:

    encoded image   the codec's (jpg, png, ...)     class label   cls    text   txt    other integers   index
    bytes           bin                             numbers in a tensor  npy           all else         json

Each archive begins with a file "__lepton_schema__", which webdataset skips: the schema and the columns' names, so that
an import gives back the table as it was. A cell without a value has no file.
"""

from __future__ import annotations

import json
import re

import pyarrow as pa

from leptonstore.dataset.plain import decode_schema, encode_schema
from leptonstore.dataset.schema import CODEC, class_names, semantic_of, tensor_shape
from leptonstore.errors import SourceError
from leptonstore.format.page import is_variable

KEY = "__key__"
SCHEMA_MEMBER = "__lepton_schema__"
NOTHING = "null"  # the ending of the empty file of a sample whose cells are all null
IMAGE_ENDINGS = {"jpeg": "jpg", "png": "png", "bmp": "bmp", "gif": "gif", "webp": "webp", "tiff": "tif"}
_ENDING = {"text": "txt", "class": "cls", "integer": "index", "bytes": "bin", "npy": "npy", "json": "json"}
_WORD = re.compile(r"[a-z0-9_-]+")
_MEMBER = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)")  # as webdataset splits names: at the first dot of the last part


def split_member(name: str) -> tuple[str, str] | None:
    """(key, ending in lower case), None for a file that belongs to no sample."""
    match = _MEMBER.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def kind_of(field: pa.Field) -> str:
    """How the cells of a column are written: image, text, class, integer, bytes, npy or json."""
    data_type, kinds = field.type, pa.types
    if tensor_shape(field) is not None:
        numbers = kinds.is_integer(data_type.value_type) or kinds.is_floating(data_type.value_type)
        return "npy" if numbers else "json"
    if is_variable(data_type):
        if kinds.is_string(data_type) or kinds.is_large_string(data_type):
            return "text"
        return "image" if semantic_of(field) == "image" else "bytes"
    if kinds.is_integer(data_type):
        return "integer" if class_names(field) is None else "class"
    return "json"


def ending_of(field: pa.Field) -> str | None:
    """The last part of the ending of a column's files; None where it depends on the value (images of mixed codecs)."""
    kind = kind_of(field)
    if kind == "image":
        return IMAGE_ENDINGS.get((field.metadata or {}).get(CODEC, b"").decode())
    return _ENDING[kind]


def column_words(schema: pa.Schema) -> list[str]:
    """For each column the part of the ending that stands for it: its name, or "columnN" where that could be none."""
    return [
        name if _WORD.fullmatch(name) and name != NOTHING else f"column{at}" for at, name in enumerate(schema.names)
    ]


def encode_carried(schema: pa.Schema) -> bytes:
    """The content of SCHEMA_MEMBER."""
    words = dict(zip(column_words(schema), schema.names, strict=True))
    return json.dumps({"schema": encode_schema(schema), "columns": words}, ensure_ascii=True, sort_keys=True).encode()


def decode_carried(data: bytes, where: str) -> tuple[pa.Schema, dict[str, str]]:
    """(schema, word -> column), which anybody may have written. Raises SourceError."""
    try:
        value = json.loads(data)
        schema = decode_schema(value["schema"], where)
        words = value["columns"]
        if not isinstance(words, dict) or sorted(map(str, words.values())) != sorted(schema.names):
            raise ValueError("columns")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{where} has a damaged {SCHEMA_MEMBER}; write it again", where) from None
    return schema, words
