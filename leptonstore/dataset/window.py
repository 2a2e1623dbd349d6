"""A window over the rows of a dataset: cells as short text, read where somebody looks.

Blocks of BROWSE_BLOCK_ROWS rows of one column are read when they are asked for, and the newest BROWSE_BLOCKS_MAX are kept. Columns that
nobody looks at are not read, nor are large values that are no text: their size stands in the page. Memory does not grow with the dataset.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore import limits
from leptonstore.dataset import values
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.schema import class_names, semantic_of
from leptonstore.dataset.shown import shown
from leptonstore.dataset.values import Column


class RowWindow:
    """Cells of the rows of a view. Any thread may read; what was read is there for all."""

    def __init__(self, ds: Dataset) -> None:
        self.ds = ds
        self.fields = list(ds.schema)
        self._blocks: OrderedDict[tuple[int, int], list[str]] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, row: int, column: int) -> str | None:
        """The text of a value, None while it has not been read."""
        block, at = divmod(row, limits.BROWSE_BLOCK_ROWS)
        with self._lock:
            found = self._blocks.get((block, column))
            if found is None:
                return None
            self._blocks.move_to_end((block, column))
            return found[at]

    def missing(self, first: int, stop: int, columns: Iterable[int]) -> list[tuple[int, int]]:
        """The (block, column) of rows [first, stop) that have not been read."""
        step = limits.BROWSE_BLOCK_ROWS
        stop = min(stop, len(self.ds))
        blocks = range(first // step, -(-stop // step)) if first < stop else range(0)
        with self._lock:
            return [(block, column) for block in blocks for column in columns if (block, column) not in self._blocks]

    def read(self, block: int, column: int) -> None:
        """Read one block of a column. Raises ChunkMissing or ChunkCorrupt, and its cells say so from then on."""
        step = limits.BROWSE_BLOCK_ROWS
        rows = np.arange(block * step, min((block + 1) * step, len(self.ds)), dtype=np.int64)
        field = self.fields[column]
        cells = ["(cannot be read)"] * len(rows)
        try:
            with self.ds.errors_at(int(rows[0]), field.name):
                cells = self._cells(self.ds.take_stored(rows, field.name), field)
        finally:
            self._keep(block, column, cells)

    def _keep(self, block: int, column: int, cells: list[str]) -> None:
        with self._lock:
            self._blocks[block, column] = cells
            while len(self._blocks) > limits.BROWSE_BLOCKS_MAX:
                self._blocks.popitem(last=False)

    def _cells(self, column: Column, field: pa.Field) -> list[str]:
        most = limits.BROWSE_CELL_CHARS_MAX
        if column.references is None:
            if isinstance(column.values.type, pa.FixedShapeTensorType):
                kind = f"{column.values.type.value_type} {'x'.join(map(str, column.values.type.shape))}"
                return ["-" if null else kind for null in column.values.is_null().to_pylist()]
            return [shown(value, field, most) for value in column.values.to_pylist()]
        sizes, is_text = column.referenced_sizes().tolist(), _is_text(field.type)
        cells = []
        for at, elsewhere in enumerate(column.references.tolist()):
            if elsewhere and not (is_text and sizes[at] <= limits.BROWSE_VALUE_BYTES_MAX):
                cells.append(f"{sizes[at]:,} bytes{' of text' if is_text else ''}")
                continue
            one = values.resolve(self.ds.chunks, column.slice(at, at + 1), field.type)
            cells.append(shown(one[0].as_py(), field, most))
        return cells

    def find(
        self,
        text: str,
        start: int,
        backwards: bool = False,
        told: Callable[[int], bool] = lambda row: True,
    ) -> int | None:
        """The first row from `start` on (or before it, backwards) with `text` in a string, a label's name or a number; None: there is none.

        Case counts when `text` has a capital. told: is called with the row that was reached, some thousand rows at a time; False ends the
        search. Reads strings, labels and numbers of the rows on the way, and nothing else. Raises ChunkMissing or ChunkCorrupt.
        """
        searched = [field for field in self.fields if _Sought.fits(field)]
        if not searched or not text:
            return None
        sought = _Sought(text)
        step, rows = limits.BROWSE_SEARCH_ROWS, len(self.ds)
        at = start
        while (at > 0) if backwards else (at < rows):
            first, stop = (max(0, at - step), at) if backwards else (at, min(rows, at + step))
            table = self.ds.take(np.arange(first, stop, dtype=np.int64), columns=[field.name for field in searched])
            hits = np.zeros(stop - first, np.bool_)
            for column, field in zip(table.columns, searched, strict=True):
                hits |= sought.hits(column, field)
            found = np.flatnonzero(hits)
            if len(found):
                return first + int(found[-1 if backwards else 0])
            at = first if backwards else stop
            if not told(at):
                return None
        return None


class _Sought:
    """What is looked for, in each kind of column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.ignore_case = text == text.lower()

    @staticmethod
    def fits(field: pa.Field) -> bool:
        """Whether a column is searched at all."""
        kinds = pa.types
        number = kinds.is_integer(field.type) or kinds.is_floating(field.type)
        path = semantic_of(field) == "path" and (kinds.is_binary(field.type) or kinds.is_large_binary(field.type))
        return bool(_is_text(field.type) or number or path)

    def hits(self, column: pa.ChunkedArray, field: pa.Field) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows have it."""
        names = class_names(field)
        if names is not None:
            fitting = [at for at, name in enumerate(names) if self._in(name)]
            found = pc.is_in(column, pa.array(fitting, field.type))
        else:
            if not _is_text(column.type):
                kinds = pa.types
                binary = kinds.is_binary(column.type) or kinds.is_large_binary(column.type)
                if binary:
                    return np.array([self._in(one.decode("utf-8", "replace")) for one in column.to_pylist()], np.bool_)
                column = column.cast(pa.float64() if kinds.is_float16(column.type) else column.type).cast(pa.string())
            found = pc.match_substring(column, self.text, ignore_case=self.ignore_case)
        return np.asarray(pc.fill_null(found, False).to_numpy(), np.bool_)

    def _in(self, name: str) -> bool:
        return self.text in (name.lower() if self.ignore_case else name)


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))
