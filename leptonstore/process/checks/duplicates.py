"""Rows whose content is that of an earlier row, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.process.checks.check import Found
from leptonstore.process.checks.copies import ContentCheck, codes, contradictions, copies
from leptonstore.process.findings import findings_table


@dataclass(frozen=True)
class Duplicates(ContentCheck):
    """Rows that repeat an earlier row of the same side of the split; the first one has no finding. Across sides it is check.leakage's.

    Where there is no split all rows are one side. score: how many rows have this content. other, group: the first of them. detail: also
    whether the labels contradict each other.
    """

    name: ClassVar[str] = "check.duplicates"

    def find_in(self, features: pa.Table) -> Found:
        """All rows of a content and side but the first."""
        content, side, label = (features[name].combine_chunks() for name in ("content", "side", "label"))
        found = copies(content, within=codes(side)[0])
        again = np.flatnonzero(~found.starts)
        again = again[np.argsort(found.rows[again])]
        rows, others, group = found.rows[again], found.first[again], found.group
        scores = np.bincount(group)[group[again]].astype(np.float64)
        details = ["repeats an earlier row" + more for more in contradictions(label, others, rows)]
        return Found(findings_table(self.tag, ", ".join(self.columns), rows, details, scores, others, others))
