"""Under torchrun, a rank that dies ends the others with one line; started again, all go on from the newest checkpoint by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from training_data import write_patterns

from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.metrics import read_metrics

OPTIONS = [
    *("--epochs", "3", "--batch-size", "10", "--threads", "1", "--device", "cpu", "--checkpoint-every", "3"),
    *("--model", "elastic_model:network", "--run-name", "mine"),
]


def torchrun(place: Path, die: bool, *more: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Two ranks that train on the store in `place`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "--max-restarts",
        str(restarts),
        "-m",
        "trainers",
        "patterns",
        "--store",
        str(place / "store"),
        *OPTIONS,
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent), "DIE": str(int(die))}
    environment["XDG_CACHE_HOME"] = str(place / "cache")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def losses(log: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_metrics(log) if event["event"] == "step"]


def test_ranks_that_torchrun_starts_again_finish_the_run(tmp_path: Path) -> None:
    logs, commits, told = {}, {}, {}
    for name in ("whole", "killed"):
        place = tmp_path / name
        with Store.create(place / "store", cache_dir=place / "cache") as store:
            write_patterns(store)
        logs[name] = place / "log.jsonl"
        done = torchrun(place, name == "killed", "--metrics", str(logs[name]), "--auto-resume", restarts=1)
        assert done.returncode == 0, done.stderr
        told[name] = [line for line in done.stderr.splitlines() if line.startswith("lepton:")]
        with Store.open(place / "store", cache_dir=place / "cache") as store:
            commits[name] = checkpoints.load(store, "mine").commit
    assert len(losses(logs["whole"])) == 15
    assert losses(logs["killed"]) == losses(logs["whole"])
    assert commits["killed"] == commits["whole"]
    assert [event["step"] for event in read_metrics(logs["killed"]) if event["event"] == "resume"] == [6]
    # Rank 0 says one line: what it met, or that torchrun told it to stop, whichever came first.
    assert told["whole"] == [] and len(told["killed"]) <= 1
    assert all("another rank has ended" in line or "interrupted" in line for line in told["killed"])
