"""The daemon dies, drains or meets a full disk while clients push: what was acknowledged is there, each client learns what became of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bench.soak import rows_of
from leptonstore import limits
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import CommitExpired, StoreFull, TierUnavailable, TooBusy
from leptonstore.store import Store, check_store
from leptonstore.testing import daemon
from tests.crash.daemon_kill import ROLES

PROJECT = Path(__file__).resolve().parents[2]
WAIT_S = 60


def write(store: Store, name: str, rows: pa.Table) -> str:
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {})
    return write_dataset(store, name, source).commit


def whole(place: Path, cache: Path) -> Store:
    """The store itself, looked at without a daemon."""
    store = Store.open(place, cache)
    report = check_store(store, read_data=True)
    assert report.clean, [problem.line() for problem in report.problems]
    return store


def test_kill_9_of_the_daemon_loses_no_push_that_was_acknowledged() -> None:
    """See tests/crash/daemon_kill.py; with 50 kills: `python -m tests.crash.daemon_kill`."""
    command = [sys.executable, "-m", "tests.crash.daemon_kill", "--kills", "3", "--seed", "1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout.strip().split("\n")[-1])
    assert told["wrong"] == []
    assert told["kills"] == 3 and told["in_flight"] >= 1 and told["acknowledged"] > len(ROLES)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[daemon.Served]:
    """A daemon that a test ends."""
    Store.create(tmp_path / "store").close()
    made = daemon.start(tmp_path / "store", folder=tmp_path, environment={"PYTHONPATH": str(PROJECT)})
    yield made
    made.kill()


@pytest.fixture
def dying(served: daemon.Served) -> daemon.Served:
    """Kills itself between the first publication and its answer; started again, it is a usual one."""
    served.stop()
    usual = served.command[2]
    served.command[2] = "import sys; from tests.crash.daemon_kill import serve_dying; sys.exit(serve_dying())"
    served.restart()
    served.command[2] = usual
    return served


def test_a_client_whose_answer_is_lost_learns_that_its_version_was_published(
    dying: daemon.Served, tmp_path: Path
) -> None:
    process = dying.process
    assert process is not None
    with Store.open(dying.url) as store, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, store, "a", rows_of(1))
        assert process.wait(WAIT_S) == -signal.SIGKILL, "it did not die"
        dying.restart()
        commit = writing.result(WAIT_S)  # as if nothing had been
        assert store.state.refs["dataset/a/main"].commit == commit
        write(store, "a", rows_of(2))
    dying.stop()
    with whole(tmp_path / "store", tmp_path / "look") as there:
        assert [body["action"] for body in there.history()].count("commit") == 2  # once each
        assert Dataset(there, "a", "main", commit).to_arrow().equals(rows_of(1))


def test_a_client_that_reaches_nobody_afterwards_is_not_told_that_nothing_was_published(
    dying: daemon.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WIRE_RETRY_S", 0.2)
    with Store.open(dying.url) as store:
        with pytest.raises(TierUnavailable, match="nobody tells whether this was published"):
            write(store, "a", rows_of(1))
        dying.restart()
        store.refresh()
        assert Dataset.open(store, "a").to_arrow().equals(rows_of(1))
        write(store, "a", rows_of(2))


def test_sigterm_lets_a_push_end_and_the_next_one_is_told_to_wait(
    served: daemon.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WIRE_RETRY_S", 0.2)
    acknowledged: list[tuple[str, str, int]] = []
    ended: list[Exception] = []
    some = threading.Event()
    store = Store.open(served.url)

    def push() -> None:
        seed = 0
        try:
            while True:
                acknowledged.append((f"a{seed}", write(store, f"a{seed}", rows_of(seed)), seed))
                seed += 1
                some.set()
        except Exception as error:
            ended.append(error)

    pushing = threading.Thread(target=push)
    pushing.start()
    assert some.wait(WAIT_S)
    assert served.stop() == 0, served.said()
    pushing.join(WAIT_S)
    assert not pushing.is_alive() and isinstance(ended[0], (TooBusy, TierUnavailable, CommitExpired)), ended
    with whole(tmp_path / "store", tmp_path / "look") as there:
        for name, commit, seed in acknowledged:
            assert Dataset(there, name, "main", commit).to_arrow().equals(rows_of(seed))
        assert len(acknowledged) <= len(there.state.refs) <= len(acknowledged) + 1
        assert set(there.tier.packs()) <= set(there.state.packs), "a drained daemon leaves nothing behind"
    served.restart()
    write(store, "later", rows_of(99))
    store.close()


def test_a_full_disk_in_the_middle_of_a_push_is_told_and_the_daemon_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    rng = np.random.default_rng(0)
    large = pa.table({"id": range(300), "data": pa.array([rng.bytes(100_000) for _ in range(300)], pa.large_binary())})
    try:
        Store.create(place / "store").close()
        with daemon.running(place / "store", folder=tmp_path) as served, Store.open(served.url) as store:
            small = write(store, "a", rows_of(1))
            with pytest.raises(StoreFull) as told:
                write(store, "b", large)
            assert str(tmp_path) not in str(told.value)
            assert set(store.state.refs) == {"dataset/a/main"}
            assert Dataset.open(store, "a").to_arrow().equals(rows_of(1))
            subprocess.run(["mount", "-o", "remount,size=80m", str(place)], check=True)
            write(store, "b", large)
            assert Dataset.open(store, "b").to_arrow().equals(large)
        with whole(place / "store", tmp_path / "look") as store:
            assert store.state.refs["dataset/a/main"].commit == small
    finally:
        subprocess.run(["umount", str(place)], check=True)
