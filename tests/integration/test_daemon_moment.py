"""What a daemon tells of the log is of one moment, whatever other threads learn meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.service import Service
from leptonstore.digest import digest_of
from leptonstore.store import RefUpdate, Store
from leptonstore.store.log import LogState, RefRecord
from leptonstore.store.wire.messages import Request

READER = Principal("r", "reader", (Grant(Scope.READ),))


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_copy_of_a_state_does_not_change_with_it() -> None:
    record = RefRecord("0" * 64, 1, 1, "a", "h", {})
    state = LogState(sequence=1, refs={"dataset/a/main": record}, forgotten={"1" * 64}, gone={"2" * 32})
    copy = state.copy()
    assert copy == state and copy.gone == state.gone
    state.refs["dataset/b/main"] = record
    state.forgotten.clear()
    state.gone.clear()
    assert list(copy.refs) == ["dataset/a/main"] and copy.forgotten and copy.gone


def test_a_state_that_is_told_while_refs_are_added_is_no_bug(tmp_path: Path, often: None) -> None:
    # RuntimeError: dictionary changed size during iteration; seen in the soak.
    with Store.create(tmp_path / "store") as store, Store.open(tmp_path / "store") as writer:
        commit = writer.put(b"not looked at").hex()
        refs = tuple(RefUpdate(f"dataset/d{number}/main", None, commit) for number in range(400))
        writer.publish("test", lambda state: refs)
        service, over, wrong = Service(store), threading.Event(), []

        def ask() -> None:
            while not over.is_set():
                try:
                    service.act(READER, Request("state", {}))
                except BaseException as error:
                    wrong.append(error)
                    return

        asking = [threading.Thread(target=ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        for number in range(60):
            name = f"dataset/e{number}/main"
            writer.publish("test", lambda state, name=name: (RefUpdate(name, None, commit),))
        over.set()
        for thread in asking:
            thread.join()
        service.close()
    assert not wrong
    assert digest_of(b"not looked at").hex() == commit
