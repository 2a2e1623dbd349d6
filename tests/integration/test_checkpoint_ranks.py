"""Checkpoints from several gloo ranks: one set of cells whatever the sharding, one commit, and no half of one when a rank fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import SECONDS_MAX, run_ranks

from leptonstore.dataset import list_refs
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from trainers.checkpoint import branch_of, load


def make_store(folder: Path) -> None:
    Store.create(folder / "store", cache_dir=folder / "cache").close()


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_sharding_is_the_same_checkpoint_and_loads_into_every_other(tmp_path: Path, ranks: int) -> None:
    make_store(tmp_path)
    told = run_ranks("checkpoint_run.py", tmp_path, ranks, str(ranks), "shardings")
    assert all(one["right"] for one in told)
    assert told[0]["added"][0] > 0 and not any(told[0]["added"][1:]), "another sharding added bytes"
    assert len(told[0]["commits"]) == 1 and all(one["commits"] == told[0]["commits"] for one in told)
    assert told[0]["scalars"] == {"scaler/scale": 2.0, **{f"rng/rank-{rank}/of": rank for rank in range(ranks)}}
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        before = {path: load(store, "run").cells(path) for path in load(store, "run").paths}
        collect(store)
        saved = load(store, "run")
        saved.verify()
        assert {path: saved.cells(path) for path in saved.paths} == before
        assert [int(saved.tensor(f"rng/rank-{rank}/cpu")[0]) for rank in range(ranks)] == list(range(ranks))


def test_a_rank_that_cannot_save_is_an_error_on_all_and_no_checkpoint(tmp_path: Path) -> None:
    make_store(tmp_path)
    told = run_ranks("checkpoint_run.py", tmp_path, 2, "2", "failing")
    for rank, one in enumerate(told):
        outcomes, refs = one["told"][::2], one["told"][1::2]
        assert "'model/x' of the state is a builtins.object" in outcomes[0] and ("rank 1" in outcomes[0]) == (rank == 0)
        assert outcomes[1].startswith("full:") and outcomes[2] == "saved"
        assert refs == [branch_of(1), branch_of(1), f"{branch_of(1)},{branch_of(4)}"]


@pytest.mark.parametrize("after_s", [0.15, 0.4])
def test_a_rank_that_is_killed_leaves_whole_checkpoints_only(tmp_path: Path, after_s: float) -> None:
    make_store(tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_AFTER_S": str(after_s)}
    command = [sys.executable, Path(__file__).with_name("checkpoint_run.py"), tmp_path, "2", "killed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    told = json.loads((tmp_path / "0.json").read_text())
    assert told["error"] and not (tmp_path / "1.json").exists(), done.stderr
    with Store.open(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        refs = [ref.branch for ref in list_refs(store, "checkpoint", "run")]
        assert set(map(branch_of, told["saved"])) <= set(refs)
        for branch in refs:
            load(store, "run", int(branch[5:])).verify()
        collect(store)
        for branch in refs[-2:]:
            load(store, "run", int(branch[5:])).verify()
        assert not check_store(store, read_data=True).problems


def test_ranks_save_to_an_object_store(
    tmp_path: Path,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Store.create(bucket_url, cache_dir=tmp_path / "cache").close()
    monkeypatch.setenv("STORE_URL", bucket_url)
    told = run_ranks("checkpoint_run.py", tmp_path, 2, "2", "shardings")
    assert all(one["right"] for one in told) and not any(told[0]["added"][1:])
