"""Maintenance of a served store from the command line: it runs as a job of the daemon, with the same results and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from leptonstore.cli.group import lepton
from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import BadInput, NotFound, StoreFull
from leptonstore.store import Store, check_store
from leptonstore.testing import daemon
from tests.integration.test_check_tiers import flip

WAIT_S = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Served]:
    place = tmp_path_factory.mktemp("served")
    Store.create(place / "store").close()
    names = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, str(place))
        with daemon.running(place / "store", folder=place) as made:
            yield made


@pytest.fixture
def url(served: daemon.Served, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LEPTON_TOKEN", served.token)
    return served.url


def call(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(lepton, [*arguments, "--store", url], standalone_mode=False)


def told(url: str, *arguments: str) -> dict[str, Any]:
    result = call(url, *arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout.strip().split("\n")[-1])
    return found


def write(store: Store, name: str, rows: int) -> None:
    table = pa.table({"id": range(rows), "data": pa.array([os.urandom(2_000) for _ in range(rows)], pa.large_binary())})
    write_dataset(store, name, Source(table.schema, ("id",), lambda: iter(table.to_batches())))


def test_gc_and_check_say_what_they_say_of_a_path(url: str, served: daemon.Served) -> None:
    place = served.told["store"]
    with Store.open(place) as store:
        write(store, "a", 200)
        store.put(b"of no version" * 1_000)
        store.flush()
    assert told(url, "gc", "--dry-run")["packs_removed"] == 1
    done = told(url, "gc")
    assert done["packs_removed"] == 1 and done["bytes_freed"] > 0
    assert "packs, " in call(url, "gc").output
    found = told(url, "check", "--read-data")
    assert found["clean"] and found["read_share"] == 1.0
    assert "versions" in call(url, "check").output


def test_check_of_a_damaged_store_ends_with_4_and_names_the_rows(url: str, served: daemon.Served) -> None:
    place = Path(served.told["store"])
    with Store.open(place) as store:
        write(store, "b", 200)
        pack = max(store.state.packs, key=lambda one: store.state.packs[one].bytes)
        path = place / "packs" / pack[:2] / f"{pack}.pack"
        before = path.read_bytes()
        flip(path)
        expected = [problem.line() for problem in check_store(store, True).problems]
    result = call(url, "check", "--read-data")
    assert result.return_value == 4 and all(line in result.output for line in expected)
    path.write_bytes(before)
    assert call(url, "check", "--read-data").return_value == 0


def test_the_quota_of_a_dataset_binds_clients_of_the_daemon(url: str) -> None:
    with Store.open(url) as store:
        write(store, "q", 50)
        assert told(url, "quota", "q", "--set", "150KiB")["used_bytes"] > 100_000
        with pytest.raises(StoreFull, match="quota of dataset 'q'"):
            write(store, "q", 100)
        assert told(url, "quota", "q", "--none")["quota_bytes"] is None
        write(store, "q", 100)


def test_jobs_are_listed_started_stopped_and_scheduled(url: str) -> None:
    job = told(url, "jobs", "start", "scrub", "-o", "bytes_per_s=1", "-o", "heal=no")
    assert job["state"] == "running" and job["options"] == {"bytes_per_s": 1, "heal": False}
    assert job["id"] in call(url, "jobs", "ls").output
    stopped = told(url, "jobs", "stop", job["id"])
    assert stopped["state"] in ("stopping", "stopped")
    while next(one for one in told(url, "jobs", "ls")["jobs"] if one["id"] == job["id"])["state"] == "stopping":
        pass
    assert "every 24 hours, when idle" in call(url, "jobs", "schedule", "gc", "--every", "24", "--idle").output
    assert next(kind for kind in told(url, "jobs", "ls")["kinds"] if kind["name"] == "gc")["schedule"]["idle"]
    assert told(url, "jobs", "schedule", "gc", "--none")["schedule"] is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("stop", "none"), NotFound),
        (("start", "scrub", "-o", "speed=1"), BadInput),
        (("start", "scrub", "-o", "bytes_per_s=x"), BadInput),
        (("start", "scrub", "-o", "bytes_per_s=-1"), BadInput),
        (("schedule", "gc", "--every", "0"), BadInput),
    ],
)
def test_what_makes_no_sense_is_refused(url: str, arguments: tuple[str, ...], error: type[Exception]) -> None:
    assert isinstance(call(url, "jobs", *arguments).exception, error)


def test_a_store_without_a_daemon_has_a_schedule_and_no_jobs(store: Store) -> None:
    assert told(store.url, "jobs", "schedule", "index", "--every", "1")["schedule"]["every_hours"] == 1.0
    assert isinstance(call(store.url, "jobs", "ls").exception, BadInput)


def test_ctrl_c_stops_the_job(url: str, served: daemon.Served) -> None:
    with Store.open(url) as store:
        write(store, "large", 20_000)
    code = "import sys; from leptonstore.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "check", "--read-data", "--store", url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    with Store.open(url) as store:
        while not any(job["kind"] == "check" and job["state"] == "running" for job in _jobs(store)):
            assert process.poll() is None, "it ended before it could be interrupted"
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=WAIT_S)[1]
        assert process.returncode == 130 and "is told to stop" in said, said
        assert next(job for job in _jobs(store) if job["kind"] == "check")["state"] == "stopped"


def _jobs(store: Store) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.link.act("jobs")["jobs"]  # type: ignore[attr-defined]
    return found


def test_an_erasure_is_refused_before_its_rows_are_looked_for_and_the_user_is_asked(
    url: str, served: daemon.Served
) -> None:
    with Store.open(served.told["store"]) as store:
        write(store, "kept", 3)
    result = call(url, "erase", "kept", "--where", "id = 1")
    assert isinstance(result.exception, BadInput) and "behind a daemon" in str(result.exception)
    assert "rows in" not in result.output


def test_doctor_takes_no_url_for_a_path(url: str) -> None:
    assert told(url, "doctor")["places"]["store"] == url
    assert "free" not in told(url, "doctor")["places"]
