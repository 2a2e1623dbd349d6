"""Shared fixtures: every test gets an index cache and a store of its own; a real S3 server; a small dataset that can be learnt."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import settings

from leptonstore.dataset import Dataset, Source
from leptonstore.store import Store
from tests.integration.seaweed import bucket_url, s3_server

__all__ = ["bucket_url", "s3_server"]
pytest_plugins = ("tests.parallel", "tests.reruns", "tests.skips")

# What a shell runs in the background ignores Ctrl-C, and so do all children of it. Tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine decides nothing: what must be quick has a bound of its own. In CI examples are the same each time, so that a change
# answers for what it changed; everywhere else they are new each time.
settings.register_profile("lepton", deadline=None)
settings.register_profile("lepton-ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("lepton-ci" if os.environ.get("LEPTON_CI") else "lepton")


_MODULES_NEW_MIN = 100  # since the last time, that are worth a whole search
_modules_seen = 0


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_not_searched_for_cycles() -> None:
    """What modules hold stays to the end of a process that runs hundreds of files: a fifth of the time of all unit tests went into Python's
    looking through it, again and again. What tests make is still searched."""
    global _modules_seen
    if len(sys.modules) >= _modules_seen + _MODULES_NEW_MIN or not gc.get_freeze_count():  # 0: somebody let all go
        _modules_seen = len(sys.modules)
        gc.collect()
        gc.freeze()


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
