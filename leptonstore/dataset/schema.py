"""Semantic types: what a column means beside its Arrow type, kept in Arrow field metadata.

    key of field metadata      value
    lepton.semantic            "image" | "class_label" | "text" | "tokens" | "path"  (absent: nothing beyond the Arrow type)
    lepton.codec               image: "jpeg", "png" … as encoded, or "mixed"
    lepton.names               class_label: JSON list; the label is an index into it
    lepton.inline_bytes        strings, bytes: longer values are chunks of their own (default 16 KiB)
    lepton.part_bytes          strings, bytes: about how large a page may be before it is cut (default 24 KiB)
    lepton.numbers             bytes: a value is an array of such numbers ("int16"), little-endian, in C order; its shape stands elsewhere

Fixed-shape tensors are Arrow's own extension type `pa.fixed_shape_tensor(value_type, shape)`; an image that is
already decoded is such a tensor of uint8 with semantic "image" (H x W or H x W x C). Tokens are lists of integers.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.errors import SchemaError

SEMANTIC = b"lepton.semantic"
CODEC = b"lepton.codec"
NAMES = b"lepton.names"
INLINE_BYTES = b"lepton.inline_bytes"
PART_BYTES = b"lepton.part_bytes"
NUMBERS = b"lepton.numbers"

# Numbers of a column of arrays, as Arrow calls them -> bytes of one.
NUMBER_BYTES = {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}
NUMBER_BYTES |= {"halffloat": 2, "float": 4, "double": 8}


SEMANTICS = ("image", "class_label", "text", "tokens", "path")


def check_semantics(schema: pa.Schema) -> None:
    """Whether each column can mean what its metadata says. Raises SchemaError, naming the column. Others' words are let be."""
    for field in schema:
        semantic, data_type = semantic_of(field), field.type
        fits, wanted = {
            "image": (
                _is_bytes(data_type) or isinstance(data_type, pa.FixedShapeTensorType),
                "bytes or a fixed-shape tensor",
            ),
            "class_label": (pa.types.is_integer(data_type), "integers"),
            "text": (_is_text(data_type), "strings"),
            "tokens": (_is_tokens(data_type), "lists of integers"),
            "path": (_is_text(data_type) or _is_bytes(data_type), "strings or bytes"),
        }.get(semantic, (True, ""))
        if not fits:
            raise SchemaError(
                f"column {field.name!r} has semantic {semantic!r}, which is for {wanted}, and type {data_type}"
            )
        if array_planes(field) is not None and not _is_bytes(data_type):
            raise SchemaError(f"column {field.name!r} says that it holds arrays as bytes, and has type {data_type}")


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _is_tokens(data_type: pa.DataType) -> bool:
    kinds = pa.types
    lists = kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type)
    return bool(lists and kinds.is_integer(data_type.value_type))


def tensor_field(name: str, value_type: pa.DataType, shape: tuple[int, ...], semantic: str = "") -> pa.Field:
    """A non-null fixed-shape tensor column; `shape` is that of one row."""
    metadata = {SEMANTIC: semantic.encode()} if semantic else None
    return pa.field(name, pa.fixed_shape_tensor(value_type, list(shape)), nullable=False, metadata=metadata)


def image_field(name: str, codec: str = "mixed") -> pa.Field:
    """A column of encoded images (the file's bytes); `codec` is what all rows share, else "mixed"."""
    return pa.field(name, pa.large_binary(), nullable=False, metadata={SEMANTIC: b"image", CODEC: codec.encode()})


def class_label_field(name: str, names: list[str]) -> pa.Field:
    """A column of class indices (uint8 up to 256 classes, else int32) with the names of the classes."""
    value_type = pa.uint8() if len(names) <= 256 else pa.int32()
    metadata = {SEMANTIC: b"class_label", NAMES: json.dumps(names, ensure_ascii=False).encode()}
    return pa.field(name, value_type, nullable=False, metadata=metadata)


def text_field(name: str, nullable: bool = True) -> pa.Field:
    """A column of text for people and models, which is not a name or a code."""
    return pa.field(name, pa.string(), nullable=nullable, metadata={SEMANTIC: b"text"})


def tokens_field(name: str, value_type: pa.DataType | None = None) -> pa.Field:
    """A column of lists of token numbers (int32 unless told otherwise), of any length."""
    return pa.field(name, pa.list_(value_type or pa.int32()), nullable=False, metadata={SEMANTIC: b"tokens"})


def array_field(name: str, value_type: pa.DataType) -> pa.Field:
    """A column of arrays of any shape, as the bytes of their numbers (little-endian, C order); the shape is for another column.

    For volumes and images of more than 8 bits: large values are stored as byte planes where that is smaller. Raises SchemaError.
    """
    made = pa.field(name, pa.large_binary(), nullable=False, metadata={NUMBERS: str(value_type).encode()})
    array_planes(made)
    return made


def path_field(name: str) -> pa.Field:
    """A column of relative paths with forward slashes."""
    return pa.field(name, pa.string(), nullable=False, metadata={SEMANTIC: b"path"})


def inline_bytes(field: pa.Field) -> int:
    """The longest value, in bytes, that stands in a page. Raises SchemaError."""
    return _bytes_of(field, INLINE_BYTES, limits.VALUE_INLINE_BYTES_MAX)


def part_bytes(field: pa.Field) -> int:
    """About how large a page of this column is, in bytes, where it is cut. Raises SchemaError."""
    return _bytes_of(field, PART_BYTES, limits.PAGE_PART_BYTES)


def array_planes(field: pa.Field) -> int | None:
    """Byte planes of a value in a column of arrays (0: numbers of one byte have none), None for any other column.

    Raises SchemaError for numbers that there are not.
    """
    text = (field.metadata or {}).get(NUMBERS)
    if text is None:
        return None
    width = NUMBER_BYTES.get(text.decode("utf-8", "replace"))
    if width is None:
        raise SchemaError(
            f"column {field.name!r} has {NUMBERS.decode()} {text!r}; it must be one of {', '.join(NUMBER_BYTES)}"
        )
    return width if width > 1 else 0


def _bytes_of(field: pa.Field, key: bytes, default: int) -> int:
    text = (field.metadata or {}).get(key)
    if text is None:
        return default
    value = int(text) if text.isdigit() else 0
    if not 1 <= value <= default:
        raise SchemaError(f"column {field.name!r} has {key.decode()} {text!r}; it must be from 1 to {default}")
    return value


def shown_type(data_type: pa.DataType) -> str:
    """An Arrow type, for people."""
    if isinstance(data_type, pa.FixedShapeTensorType):
        return f"tensor of {data_type.value_type}, {' x '.join(str(edge) for edge in data_type.shape)}"
    return str(data_type)


def semantic_of(field: pa.Field) -> str:
    """The semantic type of a column, "" when it has none."""
    return (field.metadata or {}).get(SEMANTIC, b"").decode()


def class_names(field: pa.Field) -> list[str] | None:
    """The names of a class-label column, None for any other column."""
    if semantic_of(field) != "class_label":
        return None
    names: Any = json.loads((field.metadata or {}).get(NAMES, b"[]"))
    return [str(name) for name in names]


def tensor_shape(field: pa.Field) -> tuple[int, ...] | None:
    """The shape of one row of a fixed-shape tensor column, None for any other column."""
    return tuple(field.type.shape) if isinstance(field.type, pa.FixedShapeTensorType) else None
