"""The power fails: whatever the disk kept of what was not synced, the store is clean and every promise is kept.

Each test also says that something was in flight; and each plausible mistake in writing a store is found.
"""

from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from leptonstore.store import Store, check_store

from . import runs
from .disk import Disk, Loss
from .faults import DISTURBED, FAULTS
from .power_loss import Verdict, examine
from .recording import ROOT, Data, Mark, Name, Recorder, Sync
from .runs import Run


def assert_kept(verdict: Verdict, disks_min: int) -> None:
    """No promise was broken, and the search was one."""
    assert not verdict.broken, "\n".join(verdict.broken)
    assert verdict.in_flight >= 0.9 * verdict.points > 0, "nothing was in flight"
    assert verdict.losing >= verdict.outcomes / 3, "hardly any outcome lost something"
    assert verdict.disks >= disks_min and verdict.continued >= 1


@pytest.mark.parametrize(
    ("name", "disks_min"), [("import", 14), ("commit", 7), ("delete", 3), ("gc", 40), ("repack", 20)]
)
def test_power_loss_at_every_sync_point(name: str, disks_min: int, tmp_path: Path) -> None:
    recording = runs.record(runs.RUNS[name], tmp_path / "run")
    assert_kept(examine(recording, tmp_path / "look"), disks_min)


@pytest.mark.parametrize("name", FAULTS)
def test_the_search_finds_what_somebody_might_get_wrong(name: str, tmp_path: Path) -> None:
    recording = runs.record(runs.import_once, tmp_path / "run", FAULTS[name])
    assert examine(recording, tmp_path / "look", broken_max=1).broken, "the fault went unnoticed"


def test_every_run_is_searched() -> None:
    """A run that is added is examined above, too."""
    marked = test_power_loss_at_every_sync_point.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert [name for name, _ in marked] == [*runs.RUNS]


@pytest.mark.parametrize("name", DISTURBED)
def test_the_search_finds_what_goes_wrong_between_processes(name: str, tmp_path: Path) -> None:
    calls = runs.record(runs.import_once, tmp_path / "calm").calls_after_names()
    for call in [*calls[-1:], *calls]:
        with suppress(runs.NothingInFlight):
            work = runs.DISTURBED_RUNS["import killed"].at(call)
            recording = runs.record(work, tmp_path / f"run-{call}", DISTURBED[name])
            if examine(recording, tmp_path / "look", broken_max=1).broken:
                return
    raise AssertionError("the fault went unnoticed")


@pytest.mark.parametrize("name", runs.DISTURBED_RUNS)
def test_names_that_another_process_made_are_not_believed_to_be_durable(name: str, tmp_path: Path) -> None:
    """A process is killed, or overtaken by another one, between making a name and syncing it; then the power fails."""
    disturbed = runs.DISTURBED_RUNS[name]
    calls = [
        call for call in runs.record(disturbed.first, tmp_path / "calm").calls_after_names() if call >= disturbed.skip
    ]
    total, done = Verdict(), 0
    for call in calls[:: disturbed.every]:
        with suppress(runs.NothingInFlight):
            total.add(examine(runs.record(disturbed.at(call), tmp_path / f"run-{call}"), tmp_path / "look"))
            done += 1
    assert done >= 0.8 * len(calls) / disturbed.every >= 2, "nothing was in flight"
    assert_kept(total, 40)


def test_an_index_that_knows_more_than_the_disk_kept_is_not_believed(tmp_path: Path) -> None:
    """The cache directory is on another device, which lost nothing."""
    kept: list[Path] = []

    def work(run: Run) -> None:
        runs.commit_on_top(run)
        kept.append(next(run.place.glob("cache-0-*")))

    recording = runs.record(work, tmp_path / "run")
    disk, rng = Disk(recording.ops), random.Random(3)
    opened = 0
    for at in rng.sample(disk.points(), 60):
        tree = disk.tree(at, Loss(frozenset()))
        if "store/config" not in tree or f"store/log/{4:020d}" in tree:
            continue
        shutil.rmtree(tmp_path / "run" / "disk")
        shutil.copytree(kept[0], tmp_path / "index", dirs_exist_ok=True)
        runs.write_tree(tree, tmp_path / "run" / "disk")
        with Store.open(tmp_path / "run" / "disk" / "store", tmp_path / "index") as store:
            assert check_store(store, read_data=True).clean, at
            opened += 1
        shutil.rmtree(tmp_path / "index")
    assert opened >= 10


@pytest.mark.parametrize("hint", [b"", b"\xff" * 40, b"99999\n", b"-1\n", b"0" * 5_000])
def test_a_torn_hint_is_ignored(hint: bytes, store: Store) -> None:
    name = store.put(b"kept")
    store.flush()
    (Path(store.url) / "HEAD").write_bytes(hint)
    with Store.open(store.url) as again:
        assert again.get(name) == b"kept" and check_store(again, read_data=True).clean
        again.put(b"more")
        again.flush()
    assert (Path(store.url) / "HEAD").read_bytes() == b"2\n"


# -- the model itself ------------------------------------------------------------------------------------------------


def test_the_model_of_a_disk_keeps_what_was_synced_and_nothing_else() -> None:
    ops = [
        Name(ROOT, "a", 1),
        Data(1, 0, b"first"),
        Sync(1),
        Data(1, 5, b" second"),
        Name(ROOT, "d", 2, is_folder=True),
        Mark("x"),
        Sync(ROOT),
        Name(2, "b", 1),
        Name(ROOT, "a", None),
    ]
    disk = Disk(ops)
    nothing = Loss(frozenset())
    assert disk.tree(3, nothing) == {}, "its bytes are durable, its name is not"
    assert disk.tree(3, Loss(frozenset({0}))) == {"a": b"first"}
    assert disk.tree(2, Loss(frozenset({0}))) == {"a": b""}, "a name without its bytes"
    assert disk.tree(7, nothing) == {"a": b"first", "d": None}
    assert disk.tree(9, Loss(frozenset({3, 7, 8}))) == {"d": None, "d/b": b"first second"}
    assert disk.tree(9, Loss(frozenset({3}), {3: (2, True)})) == {"a": b"first s" + bytes(5), "d": None}
    assert disk.tree(9, Loss(frozenset({3}), {3: (2, False)})) == {"a": b"first s", "d": None}
    assert disk.pending(9) == [3, 7, 8]


def test_the_model_moves_a_name_as_a_whole() -> None:
    ops = [Name(ROOT, "d", 1, is_folder=True), Name(1, "new", 2), Data(2, 0, b"x"), Name(ROOT, "old", 3), Sync(ROOT)]
    ops.append(Name(ROOT, "old", 2, origin=(1, "new")))
    disk = Disk(ops)
    before = disk.tree(6, Loss(frozenset({1, 2})))
    assert before == {"d": None, "d/new": b"x", "old": b""}
    assert disk.tree(6, Loss(frozenset({1, 2, 5}))) == {"d": None, "old": b"x"}


def test_the_recorder_refuses_writes_that_it_does_not_see(tmp_path: Path) -> None:
    with Recorder(tmp_path).installed(), pytest.raises(AssertionError, match="does not see"):
        (tmp_path / "x").open("w")

    def behind(run: Run) -> None:
        run.create()
        os.truncate(run.url / "config", 0)

    with pytest.raises(AssertionError, match=r"behind the recorder's back.*config"):
        runs.record(behind, tmp_path / "run")
