"""Rows that are alike, side by side: groups of findings, and what differs between their texts.

A group is what a check calls one (`group`), or rows that findings join to each other by `other`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.process.clean import CleanReport
from leptonstore.process.gallery import Sample, sample_rows

COMPARED_WORDS_MAX = 400  # of two texts whose differences are marked: the time grows with their product

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Cluster:
    """Rows that a check holds to be alike: the first ones of `rows`, the one that the others repeat first."""

    check: str
    rows: int
    samples: Sequence[Sample]


def pick_clusters(
    ds: Dataset,
    report: CleanReport,
    count: int = limits.REPORT_CLUSTERS_MAX,
    each: int = limits.REPORT_CLUSTER_ROWS_MAX,
) -> tuple[list[Cluster], int]:
    """(at most `count` groups of at most `each` rows, the largest of every check in turn; how many there are).

    `ds` is the version that was searched.
    """
    checks = list(report.counts())
    by_check: list[list[tuple[str, list[int]]]] = []
    for check in checks:
        groups = _grouped(report.findings.filter(pc.field("check") == check))
        if groups:
            by_check.append([(check, one) for one in sorted(groups, key=lambda one: (-len(one), one[0]))])
    total = sum(len(one) for one in by_check)
    turns = [one[at] for at in range(count) for one in by_check if at < len(one)][:count]
    chosen = sorted(turns, key=lambda one: checks.index(one[0]))  # the groups of one check together
    shown = [(check, row, row == members[0]) for check, members in chosen for row in members[:each]]
    rows = [row for _, row, _ in shown]
    details = _details(report.findings, rows)
    captions = ["" if first else details.get((check, row), "") for check, row, first in shown]
    samples = iter(sample_rows(ds, rows, captions))
    found = []
    for check, members in chosen:
        some = [next(samples) for _ in members[:each]]
        found.append(Cluster(check, len(members), some))
    return found, total


def _details(findings: pa.Table, rows: list[int]) -> dict[tuple[str, int], str]:
    """What was said of some rows, by check."""
    some = findings.filter(pc.is_in(findings["row"], pa.array(rows, pa.int64())))
    return {(one["check"], one["row"]): one["detail"] for one in some.select(["check", "row", "detail"]).to_pylist()}


def _grouped(findings: pa.Table) -> list[list[int]]:
    """The groups of one check with two rows or more; in each the rows without a finding first (the one that is kept), then by row."""
    rows = findings["row"].to_numpy()
    ones, others = [], []
    for name in ("other", "group"):
        named = np.asarray(findings[name].is_valid().to_numpy(), np.bool_)
        ones.append(rows[named])
        others.append(findings[name].drop_null().to_numpy())
    groups = _components(np.concatenate(ones), np.concatenate(others))
    found = set(rows.tolist())
    return [sorted(members, key=lambda row: (row in found, row)) for members in groups if len(members) > 1]


def _components(ones: Rows, others: Rows) -> list[list[int]]:
    """Connected rows, each list ascending; by union and find."""
    above: dict[int, int] = {}

    def root(row: int) -> int:
        above.setdefault(row, row)
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    for one, other in zip(ones.tolist(), others.tolist(), strict=True):
        first, second = sorted((root(one), root(other)))
        above[second] = first
    groups: dict[int, list[int]] = {}
    for row in sorted(above):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def marked(first: str, other: str) -> list[tuple[str, float]]:
    """The pieces of `other`, those that `first` does not have marked with 1. Word by word; all of it unmarked where texts are long."""
    ours, theirs = _words(first), _words(other)
    if len(ours) > COMPARED_WORDS_MAX or len(theirs) > COMPARED_WORDS_MAX:
        return [(other, 0.0)]
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    pieces = [("".join(theirs[a:b]), 0.0 if kind == "equal" else 1.0) for kind, _, _, a, b in blocks]
    return [piece for piece in pieces if piece[0]]


def _words(text: str) -> list[str]:
    """Words with the space behind them: joined they are the text."""
    words: list[str] = []
    for part in text.split(" "):
        words.append(part + " ")
    words[-1] = words[-1][:-1]
    return words
