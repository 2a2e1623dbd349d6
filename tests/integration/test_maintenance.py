"""What each kind of maintenance does to a real store, and that a stop, a crash or another daemon loses nothing of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.daemon.jobs import Job, Jobs, JobState
from leptonstore.daemon.maintenance import bounds, record
from leptonstore.daemon.maintenance.kinds import KINDS
from leptonstore.daemon.maintenance.pace import Pace
from leptonstore.daemon.maintenance.schedule import Plan, Schedule, due_at, no_setting, plan_of, plans, setting
from leptonstore.daemon.maintenance.scrub import PLACE
from leptonstore.daemon.maintenance.work import Kind, Work
from leptonstore.errors import BadInput, Conflict, Stopped
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.keys import KeyFile
from leptonstore.store.placement import HOME
from tests.crash.kill import started
from tests.integration.test_check_tiers import DAMAGES, a_data_pack, flip, path_of
from tests.integration.test_check_tiers import twice as twice
from tests.integration.test_tiering import fill, held, place, readable
from tests.integration.test_tiering import store as store

END_S = 60


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    made = Jobs(lambda: Store.open(store.url))
    yield made
    assert made.close(END_S)


def run(jobs: Jobs, kind: str, **options: Any) -> Mapping[str, Any]:
    job = jobs.wait(jobs.start(kind, options, "test").id, END_S)
    assert job.state is JobState.DONE, job.error
    return job.result


# -- check -------------------------------------------------------------------------------------------------------


def test_a_check_says_what_lepton_check_says(store: Store, jobs: Jobs, tmp_path: Path) -> None:
    fill(store)
    assert run(jobs, "check", read_data=1.0)["clean"]
    flip(path_of(tmp_path, HOME, a_data_pack(store)))
    told = run(jobs, "check", read_data=1)
    expected = check_store(store, True)
    assert not told["clean"] and told["damaged"] and told["problems"] == [one.line() for one in expected.problems]


def test_a_check_stops_while_it_walks_the_versions(store: Store) -> None:
    fill(store)
    work = Work(KINDS["check"].checked({}))
    work.stop()
    with pytest.raises(Stopped):
        KINDS["check"].run(store, work)


# -- scrub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", (HOME, "cold"))
@pytest.mark.parametrize("how", DAMAGES)
def test_a_scrub_heals_a_damaged_copy_from_another_tier(
    twice: Store, jobs: Jobs, tmp_path: Path, tier: str, how: str
) -> None:
    pack = a_data_pack(twice)
    DAMAGES[how][0](path_of(tmp_path, tier, pack))
    told = run(jobs, "scrub", bytes_per_s=0)
    assert (told["damaged"], told["healed"], told["clean"]) == (1, 1, True)
    assert pack in told["findings"][0] and tier in told["findings"][0] and "healed" in told["findings"][0]
    assert check_store(twice, True).clean  # by an object that had the damaged file open
    readable(twice)
    assert run(jobs, "scrub", bytes_per_s=0)["damaged"] == 0  # a new round


def test_a_scrub_that_may_not_heal_changes_nothing(twice: Store, jobs: Jobs, tmp_path: Path) -> None:
    path = path_of(tmp_path, "cold", a_data_pack(twice))
    flip(path)
    before = path.read_bytes()
    told = run(jobs, "scrub", bytes_per_s=0, heal=False)
    assert (told["damaged"], told["healed"], told["clean"]) == (1, 0, False) and path.read_bytes() == before


def test_what_no_tier_has_whole_is_a_finding_and_goes_on(store: Store, jobs: Jobs, tmp_path: Path) -> None:
    fill(store)
    flip(path_of(tmp_path, HOME, a_data_pack(store)))
    told = run(jobs, "scrub", bytes_per_s=0)
    assert (told["damaged"], told["healed"]) == (1, 0) and told["packs"] == len(store.state.packs)
    assert "lepton repair" in told["findings"][0]
    assert (
        next(kind for kind in jobs.kinds() if kind["name"] == "scrub")["last"]["result"]["findings"] == told["findings"]
    )


class Impatient(Work):
    """Is told to stop after so many packs."""

    def __init__(self, packs: int) -> None:
        super().__init__(KINDS["scrub"].checked({"bytes_per_s": 0}))
        self.packs = packs

    def tell(self, done: int, total: int = 0, unit: str = "", note: str | None = None) -> None:
        """As Work.tell."""
        if note is not None and note.startswith(f"{self.packs} packs"):
            self.stop()
        super().tell(done, total, unit, note)


@pytest.mark.parametrize("stop_after", range(6))
def test_a_scrub_goes_on_where_it_was_stopped_also_at_another_daemon(
    store: Store, tmp_path: Path, stop_after: int
) -> None:
    fill(store)
    first_pack = min(store.state.packs)
    flip(path_of(tmp_path, HOME, first_pack))
    with pytest.raises(Stopped):
        KINDS["scrub"].run(store, Impatient(stop_after))
    kept = record.read(store, PLACE)
    assert kept is not None and kept["packs"] == stop_after
    with Store.open(store.url, cache_dir=tmp_path / "elsewhere") as other:
        read: list[tuple[int, int]] = []
        work = Work(KINDS["scrub"].checked({"bytes_per_s": 0}))
        work.tell = lambda done, total=0, *more: read.append((done, total))  # type: ignore[method-assign]
        told = KINDS["scrub"].run(other, work)
    assert told["packs"] == len(store.state.packs) and told["damaged"] == 1 and first_pack in told["findings"][0]
    assert read[-1][0] == read[-1][1]
    skipped = sum(store.state.packs[pack].bytes for pack in sorted(store.state.packs)[:stop_after])
    assert read[0][0] >= skipped


def test_a_place_of_a_scrub_that_cannot_be_read_begins_a_new_round(store: Store, jobs: Jobs) -> None:
    fill(store)
    for body in ({"after": 7, "packs": "x", "findings": 1, "began": None}, {"after": "f" * 32}):
        record.write(store, PLACE, body)
        told = run(jobs, "scrub", bytes_per_s=0)
        assert told["clean"]
    store.home.replace_document(f"maintenance/{PLACE}", b"garbage")
    assert run(jobs, "scrub", bytes_per_s=0)["packs"] == len(store.state.packs)


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 5_000), st.lists(st.floats(0, 3), max_size=30))
def test_a_pace_is_never_exceeded(counts: list[int], rate: int, pauses: list[float]) -> None:
    """Whatever is read and however long it takes: from any moment to any later one, at most the pace, one credit and one step."""
    now = 0.0

    class Clocked(Work):
        def wait(self, seconds: float) -> None:
            nonlocal now
            now += max(0.0, seconds)

    pace, spent = Pace(Clocked({}), rate, lambda: now), [(0.0, 0)]
    for at, count in enumerate(counts):
        now += pauses[at] if at < len(pauses) else 0.0
        pace.spend(count)
        spent.append((now, spent[-1][1] + count))
    for first, (began, before) in enumerate(spent):
        for ended, after in spent[first + 1 :]:
            assert after - before <= (ended - began + bounds.PACE_CREDIT_S) * rate * (1 + 1e-9) + 1e-6


def test_a_job_that_waits_for_its_pace_stops_at_once() -> None:
    work = Work({})
    pace = Pace(work, 1)
    threading.Timer(0.05, work.stop).start()
    with pytest.raises(Stopped):
        pace.spend(10**9)


# -- tiers -------------------------------------------------------------------------------------------------------


def test_the_tier_policy_is_applied_and_can_be_stopped_between_packs(
    store: Store, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    place(store, tmp_path, watermark=50_000)
    assert run(jobs, "tiers", dry_run=True)["planned"] > 2 and not held(tmp_path / "cold")
    monkeypatch.setattr(bounds, "MOVES_BATCH", 1)

    class Hasty(Work):
        def tell(self, done: int, total: int = 0, unit: str = "", note: str | None = None) -> None:
            super().tell(done, total, unit, note)
            if note:
                self.stop()

    with pytest.raises(Stopped):
        KINDS["tiers"].run(store, Hasty(KINDS["tiers"].checked({})))
    assert len(held(tmp_path / "cold")) == 1
    store.refresh()
    readable(store)
    told = run(jobs, "tiers")
    assert told["moved"] > 1 and told["bytes_after"][HOME] <= 50_000
    store.refresh()
    readable(store)
    assert check_store(store, True).clean
    assert run(jobs, "tiers")["planned"] == 0


# -- index -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_completes_the_index_and_makes_opening_short(store: Store, jobs: Jobs, tmp_path: Path) -> None:
    fill(store)
    for number in range(bounds.SNAPSHOT_AFTER_ENTRIES):
        store.configure({"x": number})
    told = run(jobs, "index")
    assert told["sequence"] == told["indexed"] == told["snapshot"] == store.state.sequence
    assert store.home.documents("snapshots") == [f"{store.state.sequence:020d}"]
    (tmp_path / "store" / "log" / f"{2:020d}").rename(tmp_path / "an-old-entry")  # a snapshot spares reading it
    with Store.open(store.url, cache_dir=tmp_path / "new") as opened:
        assert opened.state == store.state
        readable(opened)
    assert run(jobs, "index")["snapshot"] == told["snapshot"]  # nothing new: none is written


def test_a_checkpoint_keeps_a_few_snapshots(store: Store) -> None:
    for number in range(bounds.SNAPSHOTS_KEPT + 2):
        store.configure({"x": number})
        assert store.checkpoint(1, bounds.SNAPSHOTS_KEPT) == store.state.sequence
    assert len(store.home.documents("snapshots")) == bounds.SNAPSHOTS_KEPT
    assert Store.open(store.url).state == store.state


# -- long-lived stores -------------------------------------------------------------------------------------------


def open_packs(place: Path) -> list[str]:
    """What this process has open of the packs below `place`."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if link.startswith(str(place)) and ".pack" in link]


def garbage(store: Store) -> bytes:
    """The digest of what no version needs."""
    with Store.open(store.url) as writer:
        digest = writer.put(b"of no version" * 1000)
        writer.flush()
    return digest


def test_who_stays_open_lets_go_of_the_files_that_a_collection_of_others_removed(store: Store, tmp_path: Path) -> None:
    """Otherwise the disk stays full for as long as the daemon lives."""
    assert store.get(garbage(store)) and open_packs(tmp_path)

    def collecting() -> None:
        with Store.open(store.url) as other:
            assert collect(other).packs_removed == 1

    assert os.waitpid(started(collecting, tmp_path / "errors"), 0)[1] == 0, (tmp_path / "errors").read_text()
    assert open_packs(tmp_path)[0].endswith(" (deleted)")
    store.refresh()
    assert not open_packs(tmp_path)


def test_jobs_and_sessions_of_a_process_share_the_descriptors_of_its_store(store: Store, tmp_path: Path) -> None:
    """A daemon has a store object for each client that writes: with 128 open packs each it would run out of descriptors."""
    fill(store)
    readable(store)
    before = len(open_packs(tmp_path))
    others = [Store.open(store.url) for _ in range(5)]
    for other in others:
        readable(other)
    assert len(open_packs(tmp_path)) == before > 0
    for one in (*others, store):
        one.close()
    assert not open_packs(tmp_path)
    readable(store)  # opened again


# -- schedules ---------------------------------------------------------------------------------------------------


def test_a_schedule_is_a_setting_of_the_store(store: Store) -> None:
    plan = Plan("gc", 24.0, True, {"repack": False})
    store.configure(setting(plan))
    with Store.open(store.url) as other:
        assert plans(other.state.settings) == {"gc": plan}
    store.configure(no_setting("gc"))
    assert plans(store.state.settings) == {}


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"every_hours": True},
        {"every_hours": "1"},
        {"every_hours": 0},
        {"every_hours": float("nan")},
        {"every_hours": 1, "idle": 1},
        {"every_hours": 1, "options": []},
        {"every_hours": 1, "options": {"repack": "x"}},
        {"every_hours": 1, "other": 1},
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_and_one_in_the_log_is_passed_over(store: Store, value: Any) -> None:
    with pytest.raises(BadInput):
        plan_of("gc", value)
    assert plans({"schedule/gc": value, "schedule/later": {"every_hours": 1}}) == {}


class Times:
    """A schedule with a clock of the test's, and what it started."""

    def __init__(self, store: Store) -> None:
        self.now, self.idle, self.started, self.refuse = 1e9, True, [], False  # type: ignore[var-annotated]
        self.schedule = Schedule(lambda: store, self._start, lambda: self.idle, lambda: self.now)

    def _start(self, kind: str, options: Mapping[str, Any]) -> None:
        if self.refuse:
            raise Conflict("another daemon is at it")
        self.started.append((kind, dict(options)))


def test_what_is_due_is_started_and_what_is_not_is_not(store: Store) -> None:
    times = Times(store)
    look = times.schedule.look
    assert look() == []
    store.configure(setting(Plan("gc", 2.0, False, {"repack": False})))
    assert look() == ["gc"] and times.started == [("gc", {"repack": False})]  # none is known: at once
    record.write(store, "gc", {"ended": times.now, "state": "done"})
    times.now += 3600
    assert look() == []
    times.now += 3601
    times.refuse = True
    assert look() == []
    times.refuse = False
    assert look() == ["gc"]
    store.configure(setting(Plan("gc", 2.0, True)))
    times.idle = False
    assert look() == []  # due for long, and not idle
    times.idle = True
    assert look() == ["gc"]


def test_one_that_failed_is_tried_again_soon_and_a_clock_that_is_wrong_stops_nothing() -> None:
    plan, now = Plan("gc", 24.0), 1e9
    assert due_at(plan, None, now) == now
    assert due_at(plan, {"ended": now, "state": "done"}, now) == now + 24 * 3600
    assert due_at(plan, {"ended": now, "state": "failed"}, now) == now + bounds.RETRY_AFTER_S
    assert due_at(plan, {"ended": now + 10 * bounds.CLOCK_SKEW_S, "state": "done"}, now) == now
    for ended in (None, "x", True):
        assert due_at(plan, {"ended": ended}, now) == now


def test_a_daemon_does_what_its_schedule_says_and_tells_when(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = threading.Event()

    def note(store: Store, work: Work) -> dict[str, Any]:
        ran.set()
        return {"did": 1}

    monkeypatch.setitem(KINDS, "note", Kind("note", "notes that it ran", note))
    store.configure(setting(Plan("note", 1.0)))
    jobs = Jobs(lambda: Store.open(store.url))
    jobs.begin_schedule(lambda: True, look_s=0.01)
    assert ran.wait(END_S)
    jobs.wait(jobs.list()[0].id, END_S)
    other = Jobs(lambda: Store.open(store.url, cache_dir=tmp_path / "elsewhere"))
    told = next(kind for kind in other.kinds() if kind["name"] == "note")
    assert told["last"]["result"] == {"did": 1} and told["last"]["by"] == "schedule"
    assert told["due"] == told["last"]["ended"] + 3600 and told["schedule"]["every_hours"] == 1.0
    assert jobs.close(END_S) and other.close(END_S)
    assert len(jobs.list()) == 1  # it was due once


def test_records_of_maintenance_are_no_part_of_the_store(store: Store, jobs: Jobs, tmp_path: Path) -> None:
    fill(store)
    for kind in ("gc", "scrub", "index"):
        run(jobs, kind)
    shutil.rmtree(tmp_path / "store" / "maintenance")
    with Store.open(store.url) as opened:
        assert check_store(opened, True).clean
    assert all(kind["last"] is None for kind in jobs.kinds())


def test_an_encrypted_store_shows_nothing_of_its_maintenance(tmp_path: Path) -> None:
    with Store.create(tmp_path / "sealed", unlock=KeyFile(b"0123456789abcdef" * 4)) as sealed:
        record.write(sealed, "gc", {"note": "a secret line"})
        assert record.read(sealed, "gc") == {"note": "a secret line"}
        assert b"secret" not in (tmp_path / "sealed" / "maintenance" / "gc").read_bytes()


def test_a_job_is_an_ordinary_job(jobs: Jobs) -> None:
    job = jobs.start("index")
    assert isinstance(job, Job) and jobs.wait(job.id, END_S).state is JobState.DONE
