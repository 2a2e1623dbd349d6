"""Real ranks merge their receipts: one document for all, and a rank that is elsewhere is named on each of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from loader_data import make_table
from ranks import run_ranks

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from loaders.receipt import Receipt

pytest.importorskip("torch")

RANKS = 3


def test_ranks_merge_their_notes(tmp_path: Path, source_of: Callable[..., Source]) -> None:
    with Store.create(tmp_path / "store") as store:
        write_dataset(store, "samples", source_of(make_table(200), ("id",)))
    told = run_ranks("receipt_run.py", tmp_path, RANKS)
    merged = [Receipt.from_dict(one["merged"]) for one in told]
    assert merged == [merged[0]] * RANKS and merged[0].steps == 4
    assert [(note.position, note.reason) for note in merged[0].notes] == [
        (10 * place, f"rank {place % RANKS}") for place in range(4 * RANKS)
    ]
    assert [len(one["own"]["notes"]) for one in told] == [4] * RANKS
    assert "rank 1 has 5 steps" in told[0]["refused"] and "this rank's 4" in told[0]["refused"]
    assert all("rank 0 has 4 steps" in one["refused"] for one in told[1:])
