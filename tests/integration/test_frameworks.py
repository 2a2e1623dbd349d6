"""Two ranks of Lightning, Accelerate and transformers' Trainer: each row once, in batches, whoever shares them out."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.store import Store
from leptonstore.testing.ports import free_ports

ROWS = 48  # two ranks, batches of six: no rank is topped up with rows that another one has
SECONDS_MAX = 240  # importing transformers on a busy machine takes most of it
HERE = Path(__file__).parent


@pytest.fixture
def place(tmp_path: Path, source_of: Callable[..., Source]) -> Path:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        columns = {
            "id": pa.array(np.arange(ROWS)),
            "score": pa.array(np.arange(ROWS, dtype=np.float32)),
            "text": pa.array([None if row % 7 == 0 else str(row) for row in range(ROWS)]),
        }
        write_dataset(store, "rows", source_of(pa.table(columns), ("id",)))
    return tmp_path


def two_ranks(name: str, place: Path) -> list[dict[str, Any]]:
    """What each rank wrote. Fails with what one printed, when one fails."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    (port,) = free_ports(1)
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",  # how Lightning knows that its ranks were started for it
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)]),
    }
    outputs = [place / f"rank{rank}.json" for rank in range(2)]
    logs = [place / f"rank{rank}.log" for rank in range(2)]
    ranks = []
    for rank in range(2):
        command = [sys.executable, str(HERE / "framework_ranks.py"), name, str(place / "store"), str(outputs[rank])]
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with logs[rank].open("wb") as log:
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=place))
    ends = {os.pidfd_open(rank.pid): rank for rank in ranks}
    try:
        while ends and not any(rank.poll() for rank in ranks):  # one that fails leaves the other waiting for it
            ended, _, _ = select.select(list(ends), [], [], SECONDS_MAX)
            assert ended, "the ranks hang:\n" + "\n".join(log.read_text()[-2000:] for log in logs)
            for end in ended:
                ends.pop(end).wait()
                os.close(end)
    finally:
        for end in ends:
            os.close(end)
        for rank in ranks:
            rank.kill()
            rank.wait()
    for rank, log in zip(ranks, logs, strict=True):
        assert rank.returncode in (0, -9), log.read_text()[-4000:]  # -9: it waited for the one that failed
    assert all(rank.returncode == 0 for rank in ranks)
    return [json.loads(output.read_text()) for output in outputs]


def rows_of(case: dict[str, Any]) -> list[int]:
    return list(chain.from_iterable(batch["ids"] for batch in case["seen"]))


def check(ranks: list[dict[str, Any]], name: str, passes: int = 1, gathers: bool = True) -> None:
    """Each row once a pass over both ranks, batches of six, never a row alone; rows and values of a batch belong together."""
    cases = [rank[name] for rank in ranks]
    assert Counter(chain.from_iterable(rows_of(case) for case in cases)) == dict.fromkeys(range(ROWS), passes), name
    for case in cases:
        assert {len(batch["ids"]) for batch in case["seen"]} == {6}, name
        assert len(case["seen"]) == passes * ROWS // 12, name
        doubled = "tuple" in name or "hook" in name or name == "dispatched"
        for batch in case["seen"]:
            assert batch["second"] == [(2 if doubled else 1) * row for row in batch["ids"]], name
            assert batch["kinds"][:2] == ["torch.int64", "torch.float32"], name
        assert case["reads"]["alone"] == 0 and set(case["reads"]["batches"]) <= {6}, name
        assert bool(case["reads"]["batches"]) == gathers or name == "dispatched", name


def test_lightning(place: Path) -> None:
    ranks = two_ranks("lightning", place)
    check(ranks, "rebuilt", passes=2)
    check(ranks, "rebuilt in a hook", passes=2)
    check(ranks, "rebuilt with a tuple", passes=2)
    check(ranks, "not rebuilt", passes=2, gathers=False)
    check(ranks, "predicting")
    for rank in ranks:
        for name in ("rebuilt and resumed", "not rebuilt and resumed"):
            assert rank[name]["rest"] == rank[name]["whole"] and len(rank[name]["rest"]) == 5


def test_accelerate(place: Path) -> None:
    ranks = two_ranks("accelerate", place)
    check(ranks, "prepared", passes=2)
    check(ranks, "prepared with a tuple")
    check(ranks, "dispatched")
    check(ranks, "not prepared", passes=2, gathers=False)


def test_transformers(place: Path) -> None:
    ranks = two_ranks("transformers", place)
    check(ranks, "dataset", passes=2)
    check(ranks, "prepared loader", passes=2)
    check(ranks, "own loader", passes=2, gathers=False)
