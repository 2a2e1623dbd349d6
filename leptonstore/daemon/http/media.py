"""What a value, or a file, is sent as. Nothing is sent as what a browser would run (HTML, SVG, scripts): that is plain text, or bytes."""

from __future__ import annotations

import mimetypes

import numpy as np
import pyarrow as pa

from leptonstore.dataset.npy_format import encode_header
from leptonstore.dataset.schema import semantic_of

JSON, TEXT, BINARY = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
# How a picture begins -> what it is: the raster formats that every browser draws.
_DRAWN = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)
_TIFF = (b"II*\x00", b"MM\x00*")
# Of files, by their names; anything else that is text is plain text.
_PASSIVE = frozenset({"application/pdf", "application/json", "text/csv", "text/tab-separated-values"})
_PASSIVE_FAMILIES = ("audio/", "video/", "font/")
_TABLES = mimetypes.MimeTypes()  # Python's own table, not the host's: the same answer on every host


def is_stored_bytes(data_type: pa.DataType) -> bool:
    """Whether values are bytes or text, which are kept as they are."""
    kinds = pa.types
    return bool(
        kinds.is_binary(data_type)
        or kinds.is_large_binary(data_type)
        or kinds.is_fixed_size_binary(data_type)
        or kinds.is_string(data_type)
        or kinds.is_large_string(data_type)
    )


def drawn_type(start: bytes) -> str | None:
    """Of a file that begins with `start` (12 bytes do): which of the formats that browsers draw it is."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    return next((media for magic, media in _DRAWN if start.startswith(magic)), None)


def media_of(field: pa.Field, start: bytes) -> str:
    """Of a value of bytes or text that begins with `start`."""
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return TEXT
    if semantic_of(field) == "image":
        return drawn_type(start) or ("image/tiff" if start.startswith(_TIFF) else BINARY)
    return BINARY


def media_of_name(name: str) -> str:
    """Of a file."""
    guessed, encoding = _TABLES.guess_type(name)
    if guessed is None or encoding is not None:
        return BINARY
    if guessed in _PASSIVE or guessed.startswith(_PASSIVE_FAMILIES):
        return guessed
    if guessed.startswith("image/"):
        return guessed if guessed != "image/svg+xml" else TEXT
    return TEXT if guessed.startswith("text/") else BINARY


def npy_of(column: pa.FixedShapeTensorArray) -> bytes:
    """The one tensor of a column as a .npy file."""
    array = np.ascontiguousarray(column.to_numpy_ndarray()[0])
    return encode_header(array.dtype, array.shape) + array.tobytes()
