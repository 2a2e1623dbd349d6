"""Images whose pixels are all equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.process import images
from leptonstore.process.checks import image_columns, image_measures
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.checks.image_facts import facts_of
from leptonstore.process.findings import findings_table, joined


@dataclass(frozen=True)
class Constant(RowCheck):
    """Images of one colour. Those of a single pixel are left alone, and so are files that do not decode: they are check.undecodable's.

    columns: of images, decoded or encoded; default: all.
    """

    name: ClassVar[str] = "check.constant"
    columns: Sequence[str] = ()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Columns of images."""
        return tuple(one.name for one in image_columns.chosen(self.name, schema, self.columns))

    def libraries(self) -> dict[str, str]:
        """The decoders."""
        return images.decoders()

    def find(self, batch: pa.RecordBatch) -> Found:
        """Encoded images are decoded, in a few threads."""
        found = []
        for column in image_columns.chosen(self.name, batch.schema, self.columns):
            array = batch.column(column.name)
            flat = list(_constant_files(array) if column.shape is None else _constant_tensors(array))
            details = [f"every pixel is {', '.join(str(value) for value in colour)}" for _, colour in flat]
            found.append(findings_table(self.tag, column.name, [row for row, _ in flat], details))
        return Found(joined(found))


def _constant_files(array: pa.Array) -> Iterator[tuple[int, tuple[int, ...]]]:
    rows, files = image_columns.present_files(array)
    for row, fact in zip(rows, facts_of(files), strict=True):
        if fact.colour is not None:
            yield row, fact.colour


def _constant_tensors(array: pa.Array) -> Iterator[tuple[int, tuple[int, ...]]]:
    for rows, pixels in image_columns.pixel_pieces(array):
        for at in np.flatnonzero(image_measures.constant(pixels)).tolist():
            yield int(rows[at]), tuple(np.atleast_1d(pixels[at, 0, 0]).tolist())
