"""What was read of which pack, remembered on this host by all of its processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from leptonstore import limits
from leptonstore.store import Store
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.reads import FILE, add_reads, halve_reads, load_reads
from tests.integration.test_tiering import fill, place, readable, reopened
from tests.integration.test_tiering import store as store

PROCESSES, ROUNDS = 4, 50


def _add(path: Path) -> None:
    for _ in range(ROUNDS):
        add_reads(path, Counter({"a": 1, f"b{os.getpid()}": 2}))


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each read the file, added its own and replaced the file: one of two lost its reads."""
    path = tmp_path / "new" / FILE
    spawn = multiprocessing.get_context("spawn")
    running = [spawn.Process(target=_add, args=(path,)) for _ in range(PROCESSES)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    found = load_reads(path)
    assert found.pop("a") == PROCESSES * ROUNDS
    assert list(found.values()) == [2 * ROUNDS] * PROCESSES
    assert {each.name for each in path.parent.iterdir()} == {FILE, f"{FILE}.lock"}


def test_what_cannot_be_read_or_written_counts_as_nothing(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"{ torn")
    assert load_reads(path) == Counter()
    add_reads(path, Counter({"a": 3}))
    assert load_reads(path) == {"a": 3}
    halve_reads(path)
    assert load_reads(path) == {"a": 1}
    (tmp_path / "file").write_bytes(b"")
    add_reads(tmp_path / "file" / FILE, Counter({"a": 3}))  # no error: reading goes on


@pytest.fixture
def far(store: Store, tmp_path: Path) -> Store:
    fill(store)
    place(store, tmp_path, watermark=0)
    apply_moves(store, plan_for(store).moves)
    return store


def test_a_process_that_is_killed_has_told_what_it_read(
    far: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told when a store was closed, so that a training run that was killed had read nothing."""
    monkeypatch.setattr(limits, "READS_SAVE_BYTES", 100_000)
    monkeypatch.setattr(limits, "READS_SAVE_S", 0.0)
    path = far.cache_path(FILE)
    assert not load_reads(path)
    child = os.fork()
    if not child:
        try:
            readable(far)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    read = load_reads(path).total()
    assert read > 12 * 40_000 - 100_000 - 80_000


def test_a_child_does_not_tell_again_what_its_parent_read(far: Store, tmp_path: Path) -> None:
    opened = reopened(far, tmp_path)
    readable(opened)
    child = os.fork()
    if not child:
        try:
            os._exit(bool(opened.tier.take_reads()))
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert opened.tier.take_reads()


def test_reads_are_saved_no_oftener_than_it_is_worth(
    far: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READS_SAVE_BYTES", 1)
    opened = reopened(far, tmp_path)
    saved: list[int] = []
    opened.tier.save_reads = lambda: saved.append(1)
    readable(opened)
    assert not saved  # READS_SAVE_S have not passed
