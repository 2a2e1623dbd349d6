"""Commands that read a dataset through the hot cache: which cache they take, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

from leptonstore.cache import HotCache
from leptonstore.cli import cache as cache_commands
from leptonstore.cli.cache import cache_choice
from leptonstore.dataset import Dataset
from leptonstore.store import Store
from leptonstore.store.keys import KeyFile
from tests.integration.test_cached_dataset import counted
from tests.integration.training_data import write_patterns
from trainers.commands import train


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's usual place, in this test; nothing is said in the environment."""
    monkeypatch.setattr(cache_commands, "usual_place", lambda: tmp_path / "usual")
    monkeypatch.delenv("LEPTON_CACHE")
    return tmp_path / "usual"


def test_a_cache_is_used_that_was_named_or_that_is_there(
    tmp_path: Path, usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "named"
    assert cache_choice(None, None, False) is None, "no cache is made that nobody asked for"
    assert cache_choice(named, None, False) == (named, None)
    assert cache_choice(None, 1 << 20, False) == (usual, 1 << 20)
    HotCache(usual, 1 << 20).close()
    assert cache_choice(None, None, False) == (usual, None), "that of `lepton cache warm`"
    assert cache_choice(None, None, True) is None
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "environment"))
    assert cache_choice(None, None, False) == (tmp_path / "environment", None)
    assert cache_choice(named, 5, False) == (named, 5)
    monkeypatch.setenv("LEPTON_CACHE", "none")
    assert cache_choice(None, None, False) is None and cache_choice(named, None, False) == (named, None)
    with pytest.raises(click.UsageError):
        cache_choice(named, None, True)


def run(store: Store, *options: object) -> Result:
    words = ["patterns", "--store", store.url, "--epochs", "2", "--batch-size", "10", "--json"]
    return CliRunner().invoke(train, [*words, *map(str, options)], catch_exceptions=False)


def test_training_through_a_cache_is_the_same_training(store: Store, tmp_path: Path) -> None:
    write_patterns(store)
    plain = json.loads(run(store).stdout)
    done = run(store, "--cache", tmp_path / "cache", "--cache-size", "8MiB", "--run-name", "cached")
    assert done.exit_code == 0 and json.loads(done.stdout)["val_loss"] == plain["val_loss"]
    with HotCache(tmp_path / "cache") as cache:
        stats = cache.stats()
        assert stats["values"] >= 2 and stats["budget_bytes"] == 8 << 20, "arenas of both views, at least"
    again = run(store, "--cache", tmp_path / "cache", "--run-name", "again")
    assert again.exit_code == 0
    with HotCache(tmp_path / "cache") as cache:
        assert cache.stats()["puts"] == stats["puts"], "nothing was decoded again"


def test_a_cache_that_cannot_be_used_is_one_line(store: Store, tmp_path: Path) -> None:
    write_patterns(store)
    (tmp_path / "file").write_text("in the way")
    done = run(store, "--cache", tmp_path / "file")
    said = [line for line in done.stderr.split("\n") if "hot cache" in line]
    assert done.exit_code == 0 and len(said) == 1, done.stderr
    assert said[0].startswith("lepton: warning: hot cache ") and said[0].endswith("name another directory")


def test_what_warm_read_of_an_encrypted_store_is_found_by_its_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
    (tmp_path / "key").write_bytes(bytes(range(64)))
    with Store.create(tmp_path / "sealed", unlock=KeyFile(bytes(range(64)))) as sealed:
        write_patterns(sealed)
    words = ["warm", "patterns", "--store", str(tmp_path / "sealed"), "--key-file", str(tmp_path / "key")]
    words += ["--cache", str(tmp_path / "cache"), "--size", "4MiB"]
    done = CliRunner().invoke(cache_commands.command, words, catch_exceptions=False)
    assert done.exit_code == 0
    with Store.open(tmp_path / "sealed", unlock=KeyFile(bytes(range(64)))) as sealed:
        tier = counted(sealed)
        through = Dataset.open(sealed, "patterns").cached(tmp_path / "cache")
        _ = through.schema
        seen = tier.bytes
        assert through.to_arrow().num_rows == 71 and tier.bytes == seen
