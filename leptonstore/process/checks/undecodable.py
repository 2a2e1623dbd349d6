"""Encoded images that are empty, truncated, damaged, too large or no image at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from leptonstore.process import images
from leptonstore.process.checks import image_columns
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.checks.image_facts import facts_of
from leptonstore.process.findings import findings_table, joined


@dataclass(frozen=True)
class Undecodable(RowCheck):
    """Files that do not decode as a whole; the detail says which of it, beginning with "truncated" where the end is missing.

    A JPEG that a lenient decoder half-shows is found, too (images.decode_whole). Nulls are check.nulls'.

    columns: of encoded images; default: all.
    """

    name: ClassVar[str] = "check.undecodable"
    columns: Sequence[str] = ()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Columns of encoded images."""
        return tuple(one.name for one in image_columns.chosen(self.name, schema, self.columns, encoded_only=True))

    def libraries(self) -> dict[str, str]:
        """The decoders."""
        return images.decoders()

    def find(self, batch: pa.RecordBatch) -> Found:
        """Decodes every file, in a few threads."""
        found = []
        for name in self.looks_at(batch.schema):
            rows, files = image_columns.present_files(batch.column(name))
            wrong = [(row, fact.trouble) for row, fact in zip(rows, facts_of(files), strict=True) if fact.trouble]
            details = [trouble for _, trouble in wrong]
            found.append(findings_table(self.tag, name, [row for row, _ in wrong], details))
        return Found(joined(found))
