"""Existing tests over again, with every store that they make or open behind a daemon: a served store keeps what they promise of a store.

    from test_dataset import *
    from remote_conformance import behind_a_daemon

`Store.create(path)` makes the store, serves it in this process, and gives a RemoteStore; `Store.open(path)` opens another client.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from remote_data import TOKEN, serving

from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore

_create, _open = Store.create, Store.open


class Behind:
    """What is served, by the real path of the store."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self._urls: dict[str, str] = {}

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

    def serve(self, url: str | Path, cache_dir: Path | None, unlock: Any = None) -> RemoteStore:
        store = self._ends.enter_context(_open(url, cache_dir, unlock))
        again = lambda: _open(url, cache_dir, unlock)  # noqa: E731
        served = self._ends.enter_context(serving(store, open_store=again)).url
        self._urls[os.path.realpath(url)] = served
        return RemoteStore.open_url(served, cache_dir)


@pytest.fixture(autouse=True)
def behind_a_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    monkeypatch.setenv("LEPTON_TOKEN", TOKEN)
    with ExitStack() as ends:
        behind = Behind(ends)
        monkeypatch.setattr(Store, "create", behind.create)
        monkeypatch.setattr(Store, "open", behind.open)
        yield behind
