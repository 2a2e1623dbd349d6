"""Rows of training that stand on a held-out side, too: an evaluation would then measure memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import SchemaError
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import Found
from leptonstore.process.checks.copies import ContentCheck, Rows, codes, contradictions, copies
from leptonstore.process.findings import findings_table


@dataclass(frozen=True)
class Leakage(ContentCheck):
    """Rows that have their equal on a more held-out side of the split: test before any other side, and that before train.

    What is found stands on the more exposed side, so that dropping it keeps an evaluation whole and costs training the copy. A row that
    stands on no side counts as held out, less than test.

    group: a column whose values must not stand on two sides (a patient, a speaker, a document); then `columns` does not count.
    score: how many rows of the held-out side it gives away. other: the first of them. group of a finding: the lowest row concerned.
    """

    name: ClassVar[str] = "check.leakage"
    group: str = ""

    def content(self, schema: pa.Schema) -> tuple[str, ...]:
        """The group, or the content."""
        return (self.group,) if self.group else super().content(schema)

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """As ContentCheck. Raises SchemaError when there is no split."""
        if self.split not in schema.names:
            raise SchemaError(
                f"{self.name} compares sides of a split and there is no column {self.split!r}; name it in `split`"
            )
        return super().looks_at(schema)

    def find_in(self, features: pa.Table) -> Found:
        """Of each content the rows that are not on its most held-out side."""
        content, side, label = (features[name].combine_chunks() for name in ("content", "side", "label"))
        side_of, sides = codes(side)
        # Sides of equal exposure (two validation sets) are told apart by their names, so that no content stays on both.
        rank = np.empty(len(sides), np.int64)
        rank[sorted(range(len(sides)), key=lambda at: (chosen.exposure(sides[at]), sides[at]))] = np.arange(len(sides))
        found = copies(content, rank=rank[side_of])
        first, group = found.first, found.group
        held_out = side_of[first] == side_of[found.rows]
        given_away, lowest = np.bincount(group, held_out), _lowest(found.rows, found.starts)
        away = np.flatnonzero(~held_out)
        away = away[np.argsort(found.rows[away])]
        rows, others, which = found.rows[away], first[away], group[away]
        what = f"the same {self.group}" if self.group else "an equal row"
        more = [""] * len(rows) if self.group else contradictions(label, others, rows)
        details = [
            f"{what} stands in {sides[at] or 'no split'}{said}"
            for at, said in zip(side_of[others].tolist(), more, strict=True)
        ]
        column = ", ".join(self.columns)
        return Found(findings_table(self.tag, column, rows, details, given_away[which], others, lowest[which]))


def _lowest(rows: Rows, starts: NDArray[np.bool_]) -> Rows:
    """The lowest row of each group."""
    return np.minimum.reduceat(rows, np.flatnonzero(starts)) if len(rows) else rows
