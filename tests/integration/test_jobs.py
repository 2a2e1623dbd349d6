"""The jobs of a daemon: what is promised to whoever starts, watches and stops them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from leptonstore.daemon.access import Grant, Principal
from leptonstore.daemon.jobs import Jobs, JobState
from leptonstore.daemon.maintenance import bounds
from leptonstore.daemon.maintenance.kinds import KINDS
from leptonstore.daemon.maintenance.requests import act
from leptonstore.daemon.maintenance.work import Kind, Option, Work
from leptonstore.daemon.operations import Scope
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.errors import BadInput, Conflict, NotFound, StoreFull, TooBusy
from leptonstore.store import Store
from leptonstore.store.wire.messages import Request

ADMIN = Principal("1", "ann", (Grant(Scope.ADMIN),))
END_S = 30  # of everything that a test waits for


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    made = Jobs(lambda: Store.open(store.url))
    yield made
    assert made.close(END_S)


class Gate:
    """A kind of job that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "gate") -> None:
        self.began, self.go_on, self.seen = threading.Event(), threading.Event(), []  # type: Any, Any, list[Any]
        monkeypatch.setitem(KINDS, name, Kind(name, "waits", self._run, {"many": Option(int, 3, "steps", 0, 9)}))

    def _run(self, store: Store, work: Work) -> dict[str, Any]:
        self.seen.append(store)
        work.tell(1, work.options["many"], "steps", "at the gate")
        self.began.set()
        while not self.go_on.is_set():
            work.wait(0.005)
        return {"through": True}


def test_a_collection_runs_and_tells_what_it_did(store: Store, jobs: Jobs, source_of: Callable[..., Any]) -> None:
    write_dataset(store, "kept", source_of(pa.table({"id": range(3000)}), ("id",)))
    with Store.open(store.url) as other:
        other.put(b"needed by nobody" * 1000)
        other.flush()
    done = jobs.wait(jobs.start("gc", {}, "ann").id, END_S)
    assert (done.state, done.error, done.by) == (JobState.DONE, "", "ann")
    assert done.result["packs_removed"] == 1 and done.result["bytes_freed"] > 0
    assert done.ended is not None and done.ended >= done.began
    store.refresh()
    assert len(Dataset.open(store, "kept")) == 3000


def test_a_job_that_runs_is_listed_with_its_progress_and_stops_when_told(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    job = jobs.start("gate", {"many": 5}, "ann")
    assert gate.began.wait(END_S)
    shown = jobs.list()[0]
    assert (shown.id, shown.state, shown.progress, shown.note) == (
        job.id,
        JobState.RUNNING,
        (1, 5, "steps"),
        "at the gate",
    )
    assert jobs.stop(job.id).state in (JobState.STOPPING, JobState.STOPPED)
    ended = jobs.wait(job.id, END_S)
    assert ended.state is JobState.STOPPED and not ended.result
    assert jobs.stop(job.id) == ended  # once more does nothing


def test_one_of_a_kind_at_a_time_at_one_daemon_and_at_several(
    store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    other = Jobs(lambda: Store.open(store.url))
    job = jobs.start("gate", by="ann")
    for daemon in (jobs, other):
        with pytest.raises(Conflict, match="ann"):
            daemon.start("gate")
    assert [found["kind"] for found in other.elsewhere()] == ["gate"] and not jobs.elsewhere()
    other.wait(other.start("gc").id, END_S)  # another kind may
    gate.go_on.set()
    assert jobs.wait(job.id, END_S).state is JobState.DONE
    assert other.wait(other.start("gate").id, END_S).state is JobState.DONE
    assert other.close(END_S) and not jobs.elsewhere()


def test_a_job_never_uses_the_store_object_of_anybody_else(
    store: Store, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.go_on.set()
    for _ in range(2):
        jobs.wait(jobs.start("gate").id, END_S)
    assert len({id(found) for found in (store, *gate.seen)}) == 3


@pytest.mark.parametrize(
    ("error", "told"), [(StoreFull("the disk is full"), "the disk is full"), (ValueError("/secret"), "internal error")]
)
def test_a_job_that_fails_says_why_and_what_is_a_bug_leaks_nothing(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(store: Store, work: Work) -> dict[str, Any]:
        raise error

    monkeypatch.setitem(KINDS, "fails", Kind("fails", "fails", fail))
    done = jobs.wait(jobs.start("fails").id, END_S)
    assert done.state is JobState.FAILED and told in done.error and "/secret" not in done.error
    assert jobs.wait(jobs.start("fails").id, END_S).state is JobState.FAILED  # its lock is free


def test_a_daemon_that_ends_stops_its_jobs_and_starts_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, jobs = Gate(monkeypatch), Jobs(lambda: Store.open(store.url))
    job = jobs.start("gate")
    assert gate.began.wait(END_S) and jobs.close(END_S)
    assert jobs.get(job.id).state is JobState.STOPPED
    with pytest.raises(TooBusy):
        jobs.start("gc")


def test_jobs_are_bounded_in_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [Gate(monkeypatch, f"gate{number}") for number in range(bounds.JOBS_AT_A_TIME_MAX + 1)]
    jobs = Jobs(lambda: Store.open(store.url))
    for number in range(bounds.JOBS_AT_A_TIME_MAX):
        jobs.start(f"gate{number}")
    with pytest.raises(TooBusy):
        jobs.start(f"gate{len(gates) - 1}")
    assert jobs.close(END_S)
    monkeypatch.setattr(bounds, "JOBS_KEPT", 2)
    more = Jobs(lambda: Store.open(store.url))
    gates[0].go_on.set()
    ids = [more.wait(more.start("gate0").id, END_S).id for _ in range(5)]
    assert [job.id for job in more.list()] == ids[:1:-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kind": 1},
        {"kind": "nothing"},
        {"kind": ["gc"]},
        {"kind": "gc", "options": []},
        {"kind": "gc", "options": {"repack": 1}},
        {"kind": "gc", "options": {"repack": None}},
        {"kind": "gc", "options": {"x" * 10_000: True}},
        {"kind": "gc", "more": 1},
    ],
)
def test_a_job_of_wrong_arguments_is_refused_and_starts_nothing(jobs: Jobs, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as told:
        act(jobs, ADMIN, Request("job", arguments))
    assert len(str(told.value)) < 300
    assert not jobs.list()


def test_numbers_of_a_job_are_in_their_range(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    Gate(monkeypatch)
    for value in (-1, 10, 1.5, True, "1", float("nan")):
        with pytest.raises(BadInput):
            jobs.start("gate", {"many": value})


def test_the_operations_start_list_and_stop(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    started = act(jobs, ADMIN, Request("job", {"kind": "gate"}))["job"]
    assert gate.began.wait(END_S)
    told = act(jobs, ADMIN, Request("jobs"))
    assert told["elsewhere"] == [] and [job["id"] for job in told["jobs"]] == [started["id"]]
    assert told["jobs"][0]["progress"] == {"done": 1, "total": 3, "unit": "steps"} and told["jobs"][0]["by"] == "ann"
    act(jobs, ADMIN, Request("stop", {"job": started["id"]}))
    assert jobs.wait(started["id"], END_S).state is JobState.STOPPED
    with pytest.raises(NotFound):
        act(jobs, ADMIN, Request("stop", {"job": "../../etc"}))
    with pytest.raises(BadInput):
        act(jobs, ADMIN, Request("stop", {"job": 1}))


def test_a_lock_of_a_daemon_that_was_killed_holds_nobody_up(store: Store, jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "jobs"
    folder.mkdir()
    body = {"kind": "gc", "job": "x", "by": "ann", "host": "gone", "pid": 1, "began": 0.0}
    (folder / ("0" * 32)).write_bytes(store.documents.encode("job", body))  # nobody holds it
    assert jobs.wait(jobs.start("gc").id, END_S).state is JobState.DONE
