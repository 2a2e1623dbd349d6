"""The store on a real directory: what was acknowledged is there, what is damaged is named, races are typed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from leptonstore.dataset import write_files
from leptonstore.digest import digest_of
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    Conflict,
    FormatDamaged,
    FormatTooNew,
    StoreFull,
    StoreMissing,
)
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.tiers import durable

SMALL, LARGE = b"hello", random.Random(1).randbytes(9_000_000)


def _fill(store: Store) -> list[bytes]:
    names = [store.put(SMALL), store.put(b"x" * 100_000), store.put(LARGE)]
    store.flush()
    return names


def test_what_was_put_is_read_back_before_and_after_a_flush_and_by_others(store: Store) -> None:
    names = [store.put(SMALL), store.put(LARGE)]
    assert [store.get(name) for name in names] == [SMALL, LARGE]
    assert Store.open(store.url).has(names[0]) is False, "not published yet"
    store.flush()
    assert [store.get(name) for name in names] == [SMALL, LARGE]
    assert Store.open(store.url).get(names[1]) == LARGE
    assert names[1] == digest_of(LARGE)


def test_the_same_bytes_are_kept_once(store: Store) -> None:
    _fill(store)
    before = store.new_bytes
    _fill(store)
    assert store.new_bytes == before


def test_a_large_value_shares_its_pieces_after_an_insert(store: Store) -> None:
    _fill(store)
    before = store.new_bytes
    store.put(LARGE[:4_000_000] + b"inserted" + LARGE[4_000_000:])
    assert store.new_bytes - before < len(LARGE) * 0.6


def test_a_reader_learns_what_another_writer_published(store: Store) -> None:
    reader = Store.open(store.url)
    name = store.put(b"later")
    store.flush()
    assert reader.get(name) == b"later"
    with pytest.raises(ChunkMissing):
        reader.get(digest_of(b"never"))


def test_deleting_the_index_changes_nothing(store: Store) -> None:
    names = _fill(store)
    url = store.url
    store.close()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    with Store.open(url) as again:
        assert again.get(names[2]) == LARGE and check_store(again, True).clean


def test_a_garbage_index_is_rebuilt(store: Store) -> None:
    names = _fill(store)
    path = store._index.path / "data.mdb"
    store.close()
    path.write_bytes(random.Random(2).randbytes(20_000))
    with Store.open(store.url) as again:
        assert again.get(names[0]) == SMALL


def test_an_index_of_a_longer_history_is_not_believed(store: Store, tmp_path: Path) -> None:
    """A store restored from an older copy: the index knows packs that are gone."""
    _fill(store)
    shutil.copytree(store.url, tmp_path / "old")
    name = store.put(b"after the copy")
    store.flush()
    store.close()
    shutil.rmtree(store.url)
    shutil.move(tmp_path / "old", store.url)
    with Store.open(store.url) as restored:
        assert restored.get(digest_of(SMALL)) == SMALL
        with pytest.raises(ChunkMissing):
            restored.get(name)


def test_a_forked_child_reads_and_writes_on_its_own(store: Store) -> None:
    names = _fill(store)
    pending = store.put(b"the parent's")
    child = os.fork()
    if child == 0:
        ok = store.get(names[2]) == LARGE and not store.has(pending)
        store.put(b"the child's")
        store.flush()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.flush()
    assert store.get(pending) == b"the parent's" and store.get(digest_of(b"the child's")) == b"the child's"


def test_of_two_writers_of_one_ref_one_wins_and_the_other_is_told(store: Store) -> None:
    other = Store.open(store.url)
    update = RefUpdate("dataset/a/main", None, "11" * 32)
    store.publish("commit", lambda state: (update,))
    with pytest.raises(Conflict, match="another writer"):
        other.publish("commit", lambda state: (RefUpdate("dataset/a/main", None, "22" * 32),))
    assert other.state.refs["dataset/a/main"].commit == "11" * 32


def test_eight_processes_race_for_the_log_and_each_entry_has_one_winner(store: Store) -> None:
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            with Store.open(store.url) as mine:
                for at in range(10):
                    mine.put(f"{number} {at}".encode())
                    mine.flush()
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    store.refresh()
    assert store.state.sequence == 80 and len(store.state.packs) == 80
    assert all(store.get(digest_of(f"{n} {at}".encode())) for n in range(8) for at in range(10))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_any_flipped_byte_of_a_pack_is_found_by_check(store: Store) -> None:
    files = {"a.txt": b"text " * 50, "b.bin": random.Random(3).randbytes(40_000)}
    write_files(store, "model", "m", files.items(), {})
    rng = random.Random(4)
    for pack in list(store.tier.packs()):
        path = store.home.path_of(pack)
        whole = path.read_bytes()
        for at in {0, 40, 127, len(whole) - 1, *rng.sample(range(len(whole)), 25)}:
            _flip(path, at)
            report = check_store(store, read_data=True)
            assert not report.clean and report.problems[0].pack == pack, at
            assert any(problem.places for problem in report.problems), at
            path.write_bytes(whole)
    assert check_store(store, read_data=True).clean


def test_a_read_that_touches_a_flipped_byte_names_the_chunk(store: Store) -> None:
    name = _fill(store)[1]
    place = store.locate(name)
    assert place is not None
    _flip(store.home.path_of(place.pack), place.row.offset + 70)
    with pytest.raises(ChunkCorrupt) as caught:
        store.get(name)
    assert caught.value.digest == name.hex() and caught.value.pack == place.pack


@pytest.mark.parametrize("length", [0, 100, 200, -1, -80])
def test_a_truncated_pack_is_named_and_the_rest_is_read(store: Store, length: int) -> None:
    first = store.put(b"first pack")
    store.flush()
    second = store.put(b"second pack" * 50)
    store.flush()
    place = store.locate(second)
    assert place is not None
    path = store.home.path_of(place.pack)
    path.write_bytes(path.read_bytes()[:length])
    store.close()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    with Store.open(store.url) as again:
        assert place.pack in again.damaged_packs
        assert again.get(first) == b"first pack"
        assert [problem.pack for problem in check_store(again).problems] == [place.pack]


def test_not_a_store_a_newer_store_and_a_damaged_config_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="does not exist; create a store with `lepton init"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(StoreMissing, match="is not a store"):
        Store.open(tmp_path)
    with pytest.raises(BadInput, match="already"):
        Store.create(store.url)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        Store.create(tmp_path / "full")
    with pytest.raises(BadInput, match="no tier for nowhere://"):
        Store.open("nowhere://bucket/store")
    config = Path(store.url) / "config"
    good = config.read_bytes()
    config.unlink()
    config.write_bytes(good.replace(b" 1.0 ", b" 9.1 "))
    with pytest.raises(FormatTooNew, match=r"format 9\.1"):
        Store.open(store.url)
    config.write_bytes(good[:-5])
    with pytest.raises(FormatDamaged, match="config of"):
        Store.open(store.url)


def test_a_missing_or_altered_log_entry_is_named(store: Store) -> None:
    for at in range(3):
        store.put(f"{at}".encode())
        store.flush()
    entry = Path(store.url) / "log" / f"{2:020d}"
    good = entry.read_bytes()
    entry.unlink()
    with pytest.raises(FormatDamaged, match="log entry 2"):
        Store.open(store.url)
    entry.write_bytes(good.replace(b"packs", b"pucks"))
    with pytest.raises(FormatDamaged, match="log entry 2"):
        Store.open(store.url)


def test_snapshots_keep_opening_short_and_say_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonstore.limits.LOG_SNAPSHOT_EVERY", 5)
    for at in range(12):
        store.publish("commit", lambda state, at=at: (RefUpdate(f"dataset/d{at}/main", None, f"{at:064x}"),))
    assert store.home.documents("snapshots") == [f"{5:020d}", f"{10:020d}"]
    with Store.open(store.url) as again:
        assert again.state == store.state
    _flip(Path(store.url) / "snapshots" / f"{10:020d}", 200)
    with Store.open(store.url) as again:
        assert again.state == store.state, "a damaged snapshot only costs time"


def test_a_full_disk_is_one_clear_error_and_nothing_is_half_visible(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _fill(store)
    left = 1_000_000
    real = os.pwritev

    def pwritev(fd: int, data: list[memoryview], offset: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(28, "No space left on device")
        left -= sum(len(part) for part in data)
        return real(fd, data, offset)

    monkeypatch.setattr(durable.os, "pwritev", pwritev)
    with pytest.raises(StoreFull, match="no space left"):
        store.put(random.Random(9).randbytes(8_000_000))
        store.flush()
    monkeypatch.undo()
    url = store.url
    store.close()
    assert list((Path(url) / "tmp").iterdir()) == []
    with Store.open(url) as again:
        assert check_store(again, True).clean and again.get(names[2]) == LARGE


@pytest.mark.requires_root
def test_a_really_full_device(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", place], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        with Store.create(place / "store") as full:
            name = full.put(SMALL)
            full.flush()
            with pytest.raises(StoreFull, match="no space left on the device"):
                full.put(LARGE)
                full.flush()
            full.close()
            with Store.open(place / "store") as again:
                assert again.get(name) == SMALL and check_store(again, True).clean
    finally:
        subprocess.run(["umount", place], check=True)
