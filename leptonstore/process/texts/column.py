"""The column of texts that a check or an operation looks at, and its characters as one array."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, SchemaError, listed
from leptonstore.process.checks.chosen import is_text


def text_column(schema: pa.Schema, wanted: str | None, who: str) -> str:
    """The column that `who` (an operation) looks at: the one that it names, or the only one of texts that there is.

    A column that is declared to be text goes before other strings. Raises SchemaError.
    """
    strings = [field.name for field in schema if is_text(field.type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise SchemaError(f"{who}: there is no column {wanted!r}; columns of texts: {listed(strings, 'none')}")
        if wanted not in strings:
            raise SchemaError(f"{who}: column {wanted!r} is {schema.field(wanted).type}, not text; name another one")
        return wanted
    meanings = {name: semantic_of(schema.field(name)) for name in strings}  # a path is none
    declared = [name for name in strings if meanings[name] == "text"] or [
        name for name in strings if not meanings[name]
    ]
    if not declared:
        raise SchemaError(f"{who}: there is no column of texts")
    if len(declared) > 1:
        raise SchemaError(f"{who}: several columns are texts; say which one with column = ({listed(declared)})")
    return declared[0]


def number_in(who: str, parameter: str, value: Any, least: float, most: float = math.inf) -> None:
    """Raises BadInput for what is no number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        until = "" if most == math.inf else f" to {most}"
        raise BadInput(f"{who}: {parameter} is a number from {least}{until}, not {value!r}")


def whole_number_in(who: str, parameter: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raises BadInput for what is no whole number from `least` to `most`."""
    number_in(who, parameter, value, least, most)
    if not isinstance(value, int):
        raise BadInput(f"{who}: {parameter} is a whole number, not {value!r}")


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 word", "2 words"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


@dataclass(frozen=True)
class Characters:
    """The characters of n texts, one text after the other.

    codes:   code points, uint8 where all are ASCII, else uint32.
    offsets: int64, n + 1: text i is codes[offsets[i] : offsets[i + 1]]. Nulls are empty.
    """

    codes: NDArray[Any]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each text."""
        return np.diff(self.offsets)

    def count(self, where: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many characters of each text `where` is true for."""
        running = np.zeros(len(where) + 1, np.int64)
        np.cumsum(where, out=running[1:])
        return np.diff(running[self.offsets])


def characters(array: pa.Array) -> Characters:
    """Of a column of strings (valid UTF-8, as stored ones are: pages are checked)."""
    whole = array.cast(pa.large_string())
    if whole.null_count:
        whole = pc.fill_null(whole, "")
    if not len(whole):
        return Characters(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    _, offsets_buffer, data = whole.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    begin, end = int(offsets[0]), int(offsets[-1])
    if begin == end:
        return Characters(np.zeros(0, np.uint8), np.zeros(len(whole) + 1, np.int64))
    codes: NDArray[Any] = np.frombuffer(data, np.uint8)[begin:end]
    if not bool((codes & 0x80).any()):
        return Characters(codes, offsets - begin)
    lengths = pc.utf8_length(whole).to_numpy()
    wide = np.frombuffer(codes.tobytes().decode().encode("utf-32-le"), np.uint32)
    return Characters(wide, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))


def blocks(array: pa.Array, bytes_max: int) -> list[tuple[int, pa.Array]]:
    """Stretches of a column of about `bytes_max` bytes (a longer text is one alone), with the position of their first text."""
    lengths = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(lengths)
    found, first = [], 0
    while first < len(array):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + bytes_max, "right")))
        last = min(last, first + (1 << 16))
        found.append((first, array.slice(first, last - first)))
        first = last
    return found
