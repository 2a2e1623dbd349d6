"""Passes whose driver is killed in mid-run (tests/crash/engine_kill.py)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from engine_steps import texts
from process_data import write

from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect

ROWS = 30_000


def run(url: str, kind: str, row: int = -1, delay_s: float = 0.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).parent / "engine_kill.py"), url, kind, str(row), str(delay_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("kind", "kills"), [("native", 3), ("ray", 1)])
def test_a_killed_driver_leaves_nothing_but_garbage_and_the_next_run_makes_the_commit(
    tmp_path: Path, kind: str, kills: int
) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
    table = texts(ROWS, long_every=300)
    for name in ("disturbed", "undisturbed"):
        with Store.create(tmp_path / name) as store:
            write(store, "texts", table, ("id",))
    expected = run(str(tmp_path / "undisturbed"), "native").stdout
    chance = random.Random(kind)
    url = str(tmp_path / "disturbed")
    for _ in range(kills):
        killed = run(url, kind, chance.randrange(ROWS), chance.random() * 0.1)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with Store.open(url) as store:
            assert list(store.state.refs) == ["dataset/texts/main"]
    again = run(url, kind)
    assert again.stdout == expected and len(expected) == 65, again.stderr
    with Store.open(url) as store:
        _collected(store)
        assert not check_store(store, read_data=True).problems
        assert set(store.tier.packs()) == set(store.state.packs)
        assert collect(store, dry_run=True).condemned == 0


def _collected(store: Store) -> None:
    """Collect garbage when nobody who died is taken to be alive any more."""
    for _ in range(600):
        if not collect(store).spared:
            return
        time.sleep(0.1)
    raise AssertionError("workers outlived their driver")
