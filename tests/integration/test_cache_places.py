"""The hot cache in bad places: damaged, deleted, full, read-only, or not ours; and its commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_data import BUDGET, PROJECT, key_of, value_of

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.errors import BadInput
from tests.permissions import of_an_ordinary_user


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HotCache]:
    with HotCache(tmp_path / "cache", BUDGET, on_problem=pytest.fail) as made:
        yield made


# -- damage and bad places -------------------------------------------------------------------------------------------------


def test_no_damaged_value_is_served(cache: HotCache) -> None:
    """Whatever byte of a segment is altered behind the cache's back before a process looks: right bytes or a miss."""
    for number in range(20):
        cache.put(key_of(number), value_of(number, 400))
    cache.close()
    (segment,) = cache.path.glob("*.seg")
    data = bytearray(segment.read_bytes())
    rng = np.random.default_rng(1)
    for at in rng.integers(0, 20 * 512, 60).tolist():
        data[at] ^= 1 + int(rng.integers(255))
    segment.write_bytes(data)
    with HotCache(cache.path) as damaged:
        found = [damaged.get(key_of(number)) for number in range(20)]
        assert any(lease is None for lease in found)
        for number, lease in enumerate(found):
            assert lease is None or lease.data == value_of(number, 400)
            assert damaged.get_or_put(key_of(number), lambda n=number: value_of(n, 400)).data == value_of(number, 400)
            again = damaged.get(key_of(number))
            assert again is not None and again.data == value_of(number, 400), (
                "a fetched value takes the damaged one's place"
            )


@pytest.mark.parametrize("damage", ["empty", "short", "random", "other version"])
def test_a_damaged_table_is_made_anew(cache: HotCache, damage: str) -> None:
    cache.put(key_of(1), value_of(1))
    cache.close()
    table = cache.path / "table"
    data = table.read_bytes()
    bad = {"empty": b"", "short": data[:-8], "random": os.urandom(len(data)), "other version": b"LHCACHE9" + data[8:]}
    table.write_bytes(bad[damage])
    with HotCache(cache.path, BUDGET, on_problem=pytest.fail) as again:
        assert again.get(key_of(1)) is None and again.put(key_of(1), value_of(1))
        assert len(list(cache.path.glob("*.seg"))) == 1, "segments of the lost table are gone"


def test_a_table_with_damaged_words_serves_no_wrong_byte(cache: HotCache) -> None:
    """Whatever stands in the slots of segments and of the index: right bytes or misses, and values can be put."""
    for seed in range(8):
        for number in range(100):
            cache.put(key_of(number), value_of(number))
        cache.close()
        data = bytearray((cache.path / "table").read_bytes())
        rng = np.random.default_rng(seed)
        words = np.frombuffer(data, np.uint64)
        first = (
            512 if seed % 4 < 2 else 512 + 4 * limits.CACHE_SEGMENTS_MAX
        )  # the slots of segments, too, or the index alone
        used = np.flatnonzero(words[first:]) + first
        for at in rng.choice(used, len(used) // 3).tolist():
            words[at] = rng.choice(words[used]) if seed % 2 else rng.integers(1 << 63)
        (cache.path / "table").write_bytes(data)
        cache = HotCache(cache.path, BUDGET, on_problem=pytest.fail)
        for number in range(150):
            assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
        cache.clear()
        assert cache.put(key_of(1), value_of(1)) and cache.stats()["pinned_bytes"] == 0
    cache.close()


def test_after_a_restart_of_the_machine_values_stay_and_nothing_is_added_to_old_segments(
    cache: HotCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import leptonstore.cache.directory as directory

    cache.put(key_of(1), value_of(1))
    cache.close()
    monkeypatch.setattr(directory, "boot_id", lambda: 12345)
    with HotCache(cache.path) as again:
        found = again.get(key_of(1))
        assert found is not None and found.data == value_of(1)
        before = {segment: segment.read_bytes() for segment in again.path.glob("*.seg")}
        assert again.put(key_of(2), value_of(2)) and len(list(again.path.glob("*.seg"))) == 2
        assert all(segment.read_bytes() == data for segment, data in before.items())


def test_segments_that_somebody_deleted_are_misses(cache: HotCache) -> None:
    for number in range(20):
        cache.put(key_of(number), value_of(number))
    for segment in cache.path.glob("*.seg"):
        segment.unlink()
    for number in range(20):
        assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
    for number in range(1000):
        cache.put(key_of(number), value_of(number))
    stats = cache.stats()
    files = sum(segment.stat().st_size for segment in cache.path.glob("*.seg"))
    assert files == stats["linked_bytes"] > BUDGET / 2, "what is not there takes no room for ever"


def test_a_read_only_directory_is_a_cache_that_misses(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    problems: list[str] = []
    with of_an_ordinary_user(), HotCache(tmp_path / "cache", BUDGET, on_problem=problems.append) as cache:
        check_unusable(cache, problems)
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_is_a_cache_that_misses(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    problems: list[str] = []
    with HotCache(tmp_path / "cache", BUDGET, on_problem=problems.append) as cache:
        check_unusable(cache, problems)


def check_unusable(cache: HotCache, problems: list[str]) -> None:
    assert not cache.usable
    for number in range(3):
        assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
        assert cache.get(key_of(number)) is None and not cache.put(key_of(number), b"")
    assert cache.plan([key_of(1)]) == 0 and cache.stats() == {} and cache.clear() == 0
    assert len(problems) == 1 and str(cache.path) in problems[0], problems


def test_without_a_listener_there_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with HotCache(tmp_path / "cache", BUDGET) as cache:
            cache.get_or_put(key_of(1), lambda: b"")
    assert len(caught) == 1 and "is not used" in str(caught[0].message)


@pytest.mark.parametrize("unsafe", ["link", "writable by others"])
def test_a_directory_that_others_control_is_not_used(tmp_path: Path, unsafe: str) -> None:
    place = tmp_path / "cache"
    if unsafe == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        place.chmod(0o777)
    problems: list[str] = []
    with HotCache(place, BUDGET, on_problem=problems.append) as cache:
        check_unusable(cache, problems)


def test_values_of_encrypted_stores_stay_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import leptonstore.cache.directory as directory

    assert directory.filesystem_of(Path("/proc")) == "proc" or directory.filesystem_of(Path("/dev/shm")) == "tmpfs"
    monkeypatch.setattr(directory, "_RAM", {directory.filesystem_of(tmp_path)})
    HotCache(tmp_path / "one", BUDGET, ram_only=True).close()
    monkeypatch.setattr(directory, "_RAM", {"no such filesystem"})
    with pytest.raises(BadInput, match="RAM"):
        HotCache(tmp_path / "two", BUDGET, ram_only=True)


def test_a_full_device_is_told_once_and_reading_goes_on(cache: HotCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's answer is imitated here; `test_a_full_tmpfs` asks a real one where the test may mount."""
    problems: list[str] = []
    cache._on_problem = problems.append

    def full(file: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    cache.put(key_of(0), value_of(0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        for number in range(50):
            assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
    assert len(problems) == 1 and "No space left" in problems[0], problems
    assert cache.get(key_of(0)) is not None
    assert any(cache.put(key_of(number), value_of(number)) for number in range(400)), "space came back"


@pytest.mark.requires_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_read_only_filesystem_is_a_cache_that_misses(tmp_path: Path) -> None:
    """Also where a cache was before."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", place], check=False).returncode:
        pytest.skip("may not mount")
    problems: list[str] = []
    try:
        with HotCache(place / "cache", BUDGET, on_problem=pytest.fail) as cache:
            cache.put(key_of(1), value_of(1))
        del cache  # with its mapping, which may be written through
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        with HotCache(place / "cache", BUDGET, on_problem=problems.append) as cache:
            check_unusable(cache, problems)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.requires_root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_a_full_tmpfs(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=False).returncode:
        pytest.skip("may not mount")
    problems: list[str] = []
    try:
        with HotCache(place / "cache", 8 << 20, ram_only=True, on_problem=problems.append) as cache:
            for number in range(100):
                assert cache.get_or_put(key_of(number), lambda n=number: value_of(n)).data == value_of(number)
            assert sum(cache.get(key_of(number)) is not None for number in range(100)) > 10
        assert len(problems) == 1 and "takes no new values" in problems[0]
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("budget", [0, 1000, 1 << 60])
def test_budgets_out_of_bounds_are_refused(tmp_path: Path, budget: int) -> None:
    with pytest.raises(BadInput, match="hot cache of"):
        HotCache(tmp_path / "cache", budget)


# -- the command line ------------------------------------------------------------------------------------------------------


def lepton(*arguments: object) -> tuple[int, Any]:
    """Exit code and the JSON, or the message; run as the command's own module, wherever it is installed."""
    code = "import sys; from leptonstore.cli import cache, runtime; sys.exit(runtime.run(cache.command, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr


def test_commands_fill_show_and_empty_a_cache(tmp_path: Path) -> None:
    import pyarrow as pa

    from leptonstore import Store
    from leptonstore.dataset.source import Source
    from leptonstore.dataset.write import write_dataset

    place = tmp_path / "cache"
    with Store.create(tmp_path / "store") as store:
        rng = np.random.default_rng(0)
        table = pa.table({"label": list(range(100)), "image": [rng.bytes(20_000) for _ in range(100)]})
        write_dataset(store, "photos", Source(table.schema, ("label",), lambda: iter(table.to_batches())))
    code, message = lepton("stats", "--cache", place, "--json")
    assert code == 3 and "no hot cache" in message and not place.exists()
    common = ("--store", tmp_path / "store", "--cache", place, "--json")
    code, told = lepton("warm", "photos", "--size", "8MiB", *common)
    assert code == 0 and told["complete"] and told["put"] >= 100 and told["put_bytes"] > 2_000_000
    code, again = lepton("warm", "photos", *common)
    assert code == 0 and again["put"] == 0 and again["there"] == told["put"]
    code, stats = lepton("stats", "--cache", place, "--json")
    assert (
        code == 0
        and stats["values"] == told["put"]
        and stats["hits"] == told["put"]
        and stats["budget_bytes"] == 8 << 20
    )
    code, cleared = lepton("clear", "--cache", place, "--json")
    assert code == 0 and cleared["freed_bytes"] == stats["linked_bytes"] and cleared["pinned_bytes"] == 0
    code, part = lepton("warm", "photos", "--column", "label", *common)
    assert code == 0 and 1 <= part["put"] < 100
    code, small = lepton("warm", "photos", "--size", "1MiB", *common)
    assert code == 0 and not small["complete"] and small["put"] > 10
    code, message = lepton("warm", "photos", "--column", "nothing", *common)
    assert code == 2 and "no column" in message
