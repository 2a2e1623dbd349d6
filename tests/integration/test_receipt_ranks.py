"""Real ranks merge their receipts: one document for all, and a rank that is elsewhere is named on each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loader_data import make_table

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from loaders.receipt import Receipt

pytest.importorskip("torch")

RANKS = 3


def test_ranks_merge_their_notes(tmp_path: Path, source_of: Callable[..., Source]) -> None:
    with Store.create(tmp_path / "store") as store:
        write_dataset(store, "samples", source_of(make_table(200), ("id",)))
    command = [sys.executable, Path(__file__).with_name("receipt_run.py"), tmp_path]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    merged = [Receipt.from_dict(one["merged"]) for one in told]
    assert merged == [merged[0]] * RANKS and merged[0].steps == 4
    assert [(note.position, note.reason) for note in merged[0].notes] == [
        (10 * place, f"rank {place % RANKS}") for place in range(4 * RANKS)
    ]
    assert [len(one["own"]["notes"]) for one in told] == [4] * RANKS
    assert "rank 1 has 5 steps" in told[0]["refused"] and "this rank's 4" in told[0]["refused"]
    assert all("rank 0 has 4 steps" in one["refused"] for one in told[1:])
