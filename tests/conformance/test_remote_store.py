"""A served store is a Store: what reads and writes versions cannot tell it from one that lies here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_data import Served, served

from leptonstore.store import Store
from leptonstore.store.remote_store import RemoteStore
from leptonstore.testing.chunks import ChunkReaderSuite


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(tmp_path, monkeypatch) as one:
        yield one


@pytest.fixture
def remote(there: Served) -> Iterator[RemoteStore]:
    with there.open() as store:
        yield store


class TestChunks(ChunkReaderSuite):
    """A RemoteStore reads chunks as every other reader does."""

    @pytest.fixture(autouse=True)
    def behind(self, there: Served) -> None:
        self._there = there.store

    @pytest.fixture
    def store(self, remote: RemoteStore) -> Any:
        return remote

    @pytest.fixture
    def reader(self, remote: RemoteStore) -> Any:
        return remote

    def damage(self, store: Store, digest: bytes) -> None:
        self._there.refresh()
        place = self._there.locate(digest)
        assert place is not None
        path = next((Path(self._there.url) / "packs").rglob(f"{place.pack}.pack"))
        data = bytearray(path.read_bytes())
        data[place.row.end - 100] ^= 1
        path.write_bytes(data)
