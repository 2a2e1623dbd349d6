"""Ranks that share a process group read the same version of a dataset that grows, whichever each of them has met."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ranks import run_ranks

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store

pytest.importorskip("torch")

from loaders import Order

ROWS = 200


def joined(ranks: list[list[list[int]]]) -> list[int]:
    """The global batches, one after another."""
    return list(chain.from_iterable(chain.from_iterable(zip(*ranks, strict=True))))


def test_rank_0_decides_and_all_read_the_same(tmp_path: Path, store: Store, source_of: Callable[..., Source]) -> None:
    write_dataset(store, "samples", source_of(pa.table({"id": np.arange(ROWS)}), ("id",)))
    store.close()
    ranks = run_ranks("follow_run.py", tmp_path, 3)
    expected = [Order(count, 0, epoch).rows_at(0, count).tolist() for epoch, count in enumerate((210, 260, 267))]
    assert [joined([rank["epochs"][epoch] for rank in ranks]) for epoch in range(2)] == expected[:2]
    restored = [joined([rank["restored"][epoch] for rank in ranks]) for epoch in range(2)]
    assert restored == [expected[1][30:], expected[2]]
    mixed = joined([rank["mixed"] for rank in ranks])
    assert len(mixed) == ROWS + 20 and set(mixed[60:]) == set(range(20)) and len(set(mixed[:60])) > 30
    assert "BadInput: samples@main is at version" in ranks[0]["refused"]
    assert all("rank 0 could not find the next version" in rank["refused"] for rank in ranks[1:])
