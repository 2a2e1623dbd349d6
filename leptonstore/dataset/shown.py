"""Values as people see them in a line: in tables of the command line and of notebooks."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.schema import class_names, semantic_of

_CHARS_MAX = 40


def shown(value: Any, field: pa.Field | None = None, chars_max: int = _CHARS_MAX) -> str:
    """A value in one short line: bytes as their number, arrays as their shape, a class label with its name."""
    if value is None:
        return "-"
    names = class_names(field) if field is not None else None
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return one_line(f"{value} {names[value]}", chars_max)
    if isinstance(value, bytes) and field is not None and semantic_of(field) == "path":
        return one_line(os.fsdecode(value), chars_max)  # names of files are bytes that are mostly text
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {'x'.join(map(str, value.shape))}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(str(value), chars_max)


def one_line(text: str, chars_max: int = _CHARS_MAX) -> str:
    """Cut, and without characters that move a terminal's cursor: it came from data."""
    text = "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text[: 4 * chars_max])
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def many_lines(text: str) -> str:
    """All of it, with its lines, and without other characters that move a terminal's cursor."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text.replace("\r\n", "\n"))
