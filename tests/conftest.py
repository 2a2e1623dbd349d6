"""Shared fixtures: every test gets an index cache and a store of its own; a real S3 server; a small dataset that can be learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source
from leptonstore.store import Store
from tests.integration.seaweed import bucket_url, s3_server

__all__ = ["bucket_url", "s3_server"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's real cache and store are never touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.delenv("LEPTON_STORE", raising=False)
    monkeypatch.setenv("LEPTON_CACHE", "none")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store") as made:
        yield made


@pytest.fixture
def source_of() -> Callable[..., Source]:
    """A source over a table in memory: `source_of(table, identity, batch_rows=…)`."""

    def make(table: pa.Table, identity: tuple[str, ...], batch_rows: int = 1000, **lineage: object) -> Source:
        return Source(
            table.schema, identity, lambda: iter(table.to_batches(max_chunksize=batch_rows)), table.num_rows, lineage
        )

    return make


@pytest.fixture
def patterns(store: Store) -> Dataset:
    """50 + 21 rows of three classes (tests/integration/training_data.py)."""
    from training_data import write_patterns  # it needs torch, which most tests do without

    return write_patterns(store)
