"""Existing tests over again, with every store that they make or open behind a daemon: a served store keeps what they promise of a store.

    from test_dataset import *
    from remote_conformance import behind_a_daemon, leave_out

    leave_out(globals(), "looks into packs", "test_a_read_of_damaged_bytes_…")

`Store.create(path)` makes the store, serves it in this process, and gives a RemoteStore; `Store.open(path)` opens another client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from remote_data import TOKEN, serving

from leptonstore.store import CheckReport, Store, check_store
from leptonstore.store.remote_store import RemoteStore

_create, _open = Store.create, Store.open


class Behind:
    """What is served, by the real path of the store."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self._urls: dict[str, str] = {}
        self._stores: dict[str, Store] = {}

    def create(self, url: str | Path, *arguments: Any, **options: Any) -> Store:
        _create(url, *arguments, **options).close()
        return self.serve(url, options.get("cache_dir"), options.get("unlock"))

    def open(self, url: str | Path, cache_dir: Path | None = None, unlock: Any = None) -> Store:
        place = os.path.realpath(url)
        if place in self._urls:
            return RemoteStore.open_url(self._urls[place], cache_dir)
        if str(url).startswith("lepton://"):
            return RemoteStore.open_url(str(url), cache_dir)
        return _open(url, cache_dir, unlock)

    def check(self, store: Store, *arguments: Any, **options: Any) -> CheckReport:
        """`check_store` of what is served."""
        return check_store(self._stores.get(store.url, store), *arguments, **options)

    def serve(self, url: str | Path, cache_dir: Path | None, unlock: Any = None) -> RemoteStore:
        store = self._ends.enter_context(_open(url, cache_dir, unlock))
        again = lambda: _open(url, cache_dir, unlock)  # noqa: E731
        served = self._ends.enter_context(serving(store, open_store=again)).url
        self._urls[os.path.realpath(url)], self._stores[served] = served, store
        return RemoteStore.open_url(served, cache_dir)


@pytest.fixture(autouse=True)
def behind_a_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    monkeypatch.setenv("LEPTON_TOKEN", TOKEN)
    with ExitStack() as ends:
        behind = Behind(ends)
        monkeypatch.setattr(Store, "create", behind.create)
        monkeypatch.setattr(Store, "open", behind.open)
        for name, module in list(sys.modules.items()):
            if name.rpartition(".")[2].startswith("test_") and hasattr(module, "check_store"):
                monkeypatch.setattr(module, "check_store", behind.check)
        yield behind


def leave_out(tests: dict[str, Any], why: str, *names: str) -> None:
    """Of the tests that a module imported, those that are not of a served store: `why`. An unknown name is an error."""
    assert why
    for name in names:
        del tests[name]
