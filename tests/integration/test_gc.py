"""Garbage collection on a real directory: what is needed stays readable, whatever happens at whatever moment; the rest goes.

A Collector does one step at a time, so that a test can stop after each of them and let a writer, a reader, another collection or a crash
come in between.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.forget import forget_all_but, forget_before
from leptonstore.dataset.refs import ancestry, delete_ref
from leptonstore.dataset.write import publish_commit, write_table
from leptonstore.digest import parse_hex
from leptonstore.errors import ChunkMissing, CommitExpired, Conflict, Damaged, LeptonError, RefMissing, StoreFull
from leptonstore.format import framed
from leptonstore.format.commit import Commit
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import Collector, GcReport, collect
from leptonstore.store.leases import LEASES, WRITERS, claimed_packs
from leptonstore.store.log import LogState
from leptonstore.store.publication import Work, publish

# Small pieces, so that a value of 100 KB is a chunk list.
CONFIG = StoreConfig(chunks=ChunkSizes(cut_above=64 << 10, min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10))


def rows_of(seed: int, rows: int = 2500) -> pa.Table:
    """Small values, values of their own, and a few that are cut into pieces: different for every seed."""
    rng = random.Random(seed)
    sizes = [100_000 if at % 1000 == 7 else 20_000 if at % 250 == 3 else 40 for at in range(rows)]
    return pa.table({"id": np.arange(rows) + seed * 10_000, "data": [rng.randbytes(size) for size in sizes]})


def source(table: pa.Table) -> Source:
    return Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=500)), table.num_rows, {})


def write(store: Store, name: str, seed: int, rows: int = 2500) -> Dataset:
    return write_dataset(store, name, source(rows_of(seed, rows)), f"rows {seed}")


def remove(store: Store, name: str) -> None:
    delete_ref(store, "dataset", name, "main")


def holds(store: Store, name: str, seed: int, rows: int = 2500) -> bool:
    store.refresh()
    return Dataset.open(store, name).to_arrow().equals(rows_of(seed, rows))


def files_of(store: Store) -> set[str]:
    return set(store.tier.packs())


def sound(url: str) -> bool:
    """Nothing is missing or damaged, and no file is left over, as a new process sees it."""
    with Store.open(url) as fresh:
        report = check_store(fresh, read_data=True)
        assert report.clean, report.problems
        assert not fresh.state.condemned
        return files_of(fresh) == set(fresh.state.packs)


def gc(url: str, **options: bool) -> GcReport:
    with Store.open(url) as mine:
        return Collector(mine, **options).run()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", CONFIG) as made:
        yield made


# -- what goes and what stays ----------------------------------------------------------------------------------------------


def test_what_no_ref_needs_is_removed_and_the_rest_reads_back(store: Store) -> None:
    write(store, "a", 1)
    write(store, "b", 2)
    before = sum(record.bytes for record in store.state.packs.values())
    assert gc(store.url).packs_removed == 0, "everything is needed"
    remove(store, "a")
    report = gc(store.url)
    assert report.bytes_freed > 0.4 * before and report.missing == 0
    assert holds(store, "b", 2) and sound(store.url)
    again = gc(store.url)
    assert again.packs_removed == again.repacked == 0


def test_a_dry_run_says_what_a_run_does_and_changes_nothing(store: Store) -> None:
    write(store, "a", 1)
    write(store, "b", 2)
    remove(store, "a")

    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()}

    before = everything()
    foreseen = gc(store.url, dry_run=True)
    assert everything() == before
    done = gc(store.url)
    assert foreseen.packs_removed == done.packs_removed > 0 and foreseen.repacked == done.repacked
    assert abs(foreseen.bytes_freed - done.bytes_freed) < 0.05 * done.bytes_freed + 20_000


def test_files_of_interrupted_writers_are_removed_and_those_of_live_ones_spared(store: Store) -> None:
    write(store, "a", 1)
    seen, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        mine = Store.open(store.url)
        mine.put(b"never published" * 1000)
        mine._writer.finish()
        os.read(seen, 1)  # until the parent closes its end
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(seen)
    while files_of(store) == set(store.state.packs):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the writer died too early"
    assert gc(store.url).spared == 1 and files_of(store) > set(store.state.packs), "its writer lives"
    os.close(go)
    os.waitpid(child, 0)
    assert gc(store.url).packs_removed == 1 and sound(store.url)
    assert store.home.documents(WRITERS) == []


def test_a_pack_that_others_copy_is_removed_for_one_of_them(store: Store) -> None:
    """Two writers that store the same bytes at the same time leave them twice; one copy is enough."""
    other = Store.open(store.url)
    for mine in (store, other):
        mine.put(b"the same" * 5000)
        mine._writer.finish()
    store.publish("x", lambda state: ())
    other.publish("x", lambda state: ())
    other.close()
    write(store, "a", 1, rows=1000)
    table = pa.table({"id": [0], "data": [b"the same" * 5000]})
    write_dataset(store, "b", source(table))
    gc(store.url)
    assert Dataset.open(store, "b").to_arrow().equals(table) and sound(store.url)


# -- a writer and a collection ------------------------------------------------------------------------------------------


def _steps(url: str, **options: bool) -> int:
    with Store.open(url) as mine:
        return sum(1 for _ in Collector(mine, **options).steps())


def test_a_hit_on_a_condemned_pack_never_dangles_at_whatever_step_the_commit_comes(
    store: Store, tmp_path: Path
) -> None:
    """The bytes of "a" lie there, needed by nobody; a writer finds them, and a collection runs until some step."""
    write(store, "a", 1)
    write(store, "b", 2)
    remove(store, "a")
    store.close()
    shutil.copytree(store.url, tmp_path / "count")
    outcomes = []
    for stop in range(_steps(str(tmp_path / "count"), repack=False, heed_claims=False) + 1):
        url = str(tmp_path / f"store{stop}")
        shutil.copytree(store.url, url)
        with Store.open(url) as writer, Store.open(url) as other:
            steps = Collector(other, repack=False, heed_claims=False).steps()
            table = rows_of(1)
            root, rows, plain = write_table(writer, source(table))
            assert writer.new_bytes == 0, "all of it was found"
            for _ in itertools.islice(steps, stop):
                pass
            commit = Commit("dataset", table.schema, ("id",), root, rows, plain, message="again")
            try:
                publish_commit(writer, commit, "dataset/again/main", None)
                outcomes.append("published" if writer.new_bytes < 2000 else "stored again")
            except CommitExpired:
                outcomes.append("expired")
                write_dataset(writer, "again", source(table))
            list(steps)
            assert holds(writer, "again", 1), stop
        assert sound(url) or gc(url).packs_removed, stop
        assert sound(url) and holds(Store.open(url), "b", 2), stop
    assert [name for name, _ in itertools.groupby(outcomes)] == ["published", "stored again", "expired"]


def test_own_packs_that_were_condemned_before_they_were_listed_are_copied(store: Store) -> None:
    names = [store.put(bytes([at]) * 50 + random.Random(at).randbytes(at * 700)) for at in range(60)]
    store._writer.finish()
    sealed = set(store._writer.sealed())
    assert gc(store.url, heed_claims=False).packs_removed == len(sealed) > 0 and not files_of(store)
    store.flush()
    assert not sealed & set(store.state.packs)
    with Store.open(store.url) as fresh:
        assert [len(fresh.get(name)) for name in names] == [50 + at * 700 for at in range(60)]


def test_a_long_import_keeps_its_work_because_it_asks_for_it(store: Store) -> None:
    table = rows_of(5)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in table.to_batches(max_chunksize=500):
            yield batch
            store.flush()  # listed, and no ref leads there yet
            assert gc(store.url).spared > 0

    write_dataset(store, "a", Source(table.schema, ("id",), batches, table.num_rows, {}))
    assert holds(store, "a", 5)
    gc(store.url)
    assert sound(store.url)


@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_new_ref_to_an_old_version_is_held_against_the_fence(store: Store, opened: str) -> None:
    old = write(store, "a", 1).commit
    write(store, "b", 2)
    remove(store, "a")

    def tag(name: str) -> None:
        """By a store that was opened before the fence, or by one that finds it and never looks the chunks up itself."""
        with contextlib.ExitStack() as stack:
            mine = store if opened == "before" else stack.enter_context(Store.open(store.url))
            mine.publish("tag", lambda state: (RefUpdate(f"dataset/{name}/main", None, old),))

    with Store.open(store.url) as other:
        steps = Collector(other, repack=False).steps()
        while next(steps) != "fenced":
            pass
        tag("c")  # condemned, but still there: stored again
        list(steps)
    assert holds(store, "c", 1)
    gc(store.url)
    assert sound(store.url)
    remove(store, "c")
    gc(store.url)
    with pytest.raises(CommitExpired, match="nothing was published"):
        tag("d")
    store.refresh()
    assert "dataset/d/main" not in store.state.refs


def test_condemned_chunks_count_as_absent_until_rescued(store: Store) -> None:
    version = write(store, "a", 1)
    root = parse_hex(version.commit)
    remove(store, "a")
    reader = Store.open(store.url)
    with Store.open(store.url) as other:
        steps = Collector(other, repack=False).steps()
        while next(steps) != "fenced":
            pass
        reader.refresh()
        assert not reader.has(root) and not reader.known(root) and reader.get(root), "readable, but not to be relied on"
        assert reader.state.condemned.keys() == reader.state.packs.keys()
        lost = LogState()
        other._log.replay(lost)
        assert LogState.from_json(json.loads(json.dumps(lost.to_json())), "x") == lost
        list(steps)
    reader.refresh()
    assert not reader.has(root) and not reader.state.packs
    with pytest.raises(ChunkMissing):
        reader.get(root)


def test_a_ref_that_was_published_before_the_fence_rescues_its_packs(store: Store) -> None:
    """The other half: found before the fence, published before it, marked too early to see it."""
    old = write(store, "a", 1).commit
    remove(store, "a")
    with Store.open(store.url) as other:
        collector = Collector(other, repack=False)
        steps = collector.steps()
        while next(steps) != "marked":
            pass
        store.publish("tag", lambda state: (RefUpdate("dataset/b/main", None, old),))
        list(steps)
        assert collector.report.rescued > 0 and collector.report.packs_removed == 0
    assert holds(store, "b", 1) and sound(store.url)


# -- crashes and several collections -----------------------------------------------------------------------------------------


def test_after_a_crash_at_any_step_the_next_collection_goes_on(store: Store, tmp_path: Path) -> None:
    write(store, "a", 1)
    write(store, "b", 2)
    write(store, "c", 3)
    remove(store, "a")
    store.close()
    shutil.copytree(store.url, tmp_path / "count")
    gc(str(tmp_path / "count"))
    with Store.open(tmp_path / "count") as done:
        bytes_at_best = sum(record.bytes for record in done.state.packs.values())
    shutil.copytree(store.url, tmp_path / "count again")
    for stop in range(1, _steps(str(tmp_path / "count again"))):
        url = str(tmp_path / f"store{stop}")
        shutil.copytree(store.url, url)
        with Store.open(url) as first:
            for _ in itertools.islice(Collector(first).steps(), stop):
                pass
        with Store.open(url) as between:
            assert check_store(between, read_data=True).clean, stop
            assert holds(between, "b", 2) and holds(between, "c", 3), stop
        gc(url)
        assert sound(url), stop
        with Store.open(url) as after:
            assert sum(record.bytes for record in after.state.packs.values()) <= bytes_at_best + 20_000, stop


@pytest.mark.parametrize("seed", range(12))
def test_two_collections_and_a_writer_in_any_order(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(3):
        write(store, f"d{number}", number, rows=600)
    remove(store, "d0")
    with Store.open(store.url) as one, Store.open(store.url) as two, Store.open(store.url) as writer:
        running = [Collector(mine, heed_claims=rng.random() < 0.5).steps() for mine in (one, two)]
        published = {"d1": 1, "d2": 2}
        while running:
            steps = rng.choice(running)
            if next(steps, None) is None:
                running.remove(steps)
            if rng.random() < 0.2:
                name, seed = f"new{rng.randrange(3)}", rng.randrange(3)
                try:
                    write(writer, name, seed, rows=600)
                    published[name] = seed
                except Conflict:
                    continue
    assert all(holds(store, name, seed, rows=600) for name, seed in published.items())
    gc(store.url)
    assert sound(store.url)
    assert all(holds(store, name, seed, rows=600) for name, seed in published.items())


def test_processes_that_write_and_collect_at_the_same_time_lose_nothing(store: Store) -> None:
    write(store, "kept", 9, rows=600)
    url = store.url
    store.close()

    def writer(number: int) -> None:
        for at in range(6):
            with Store.open(url) as mine:
                for _ in range(20):
                    try:
                        write(mine, f"w{number}", at % 3, rows=600)
                        break
                    except Conflict:
                        mine.refresh()
                else:
                    raise AssertionError("twenty conflicts in a row")
                assert holds(mine, f"w{number}", at % 3, rows=600)

    def collector(number: int) -> None:
        for _ in range(8):
            gc(url, heed_claims=bool(number))

    children = []
    for work, number in ((writer, 0), (writer, 1), (collector, 0), (collector, 1)):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                work(number)
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    with Store.open(url) as after:
        assert holds(after, "kept", 9, rows=600)
        assert holds(after, "w0", 2, rows=600) and holds(after, "w1", 2, rows=600)
    gc(url)
    assert sound(url)


def test_two_collections_never_take_each_others_copies_for_keepers(store: Store) -> None:
    """The same values lie in two packs, and each collection would rather keep the other one, in lockstep."""
    table = rows_of(1)
    with Store.open(store.url) as one, Store.open(store.url) as two:
        for mine in (one, two):
            write_table(mine, source(table))
            mine._writer.finish()
        for name, mine in (("a", one), ("b", two)):
            write_dataset(mine, name, source(table), message=name)
    store.refresh()
    first, *_ = [entry["packs_added"] for entry in store.history()]
    mine, size = {pack["id"] for pack in first}, sum(pack["bytes"] for pack in first)
    with Store.open(store.url) as one, Store.open(store.url) as two:
        collectors = [Collector(one, repack=False), Collector(two, repack=False)]
        collectors[0]._retiring, collectors[1]._retiring = mine, set(store.state.packs) - mine
        for _ in itertools.zip_longest(*(collector.steps() for collector in collectors)):
            pass
    assert holds(store, "a", 1) and holds(store, "b", 1)
    gc(store.url)
    assert sound(store.url)
    assert sum(record.bytes for record in Store.open(store.url).state.packs.values()) < 1.1 * size, "one copy is left"


def test_an_overtaken_collection_looks_again(store: Store) -> None:
    write(store, "a", 1)
    remove(store, "a")
    with Store.open(store.url) as slow:
        steps = Collector(slow, repack=False).steps()
        while next(steps) != "marked":
            pass
        gc(store.url)
        assert next(steps) == "overtaken"
        list(steps)
    assert sound(store.url)


# -- readers ---------------------------------------------------------------------------------------------------------


def test_a_lease_keeps_a_version_whose_ref_is_gone_until_it_is_released(store: Store) -> None:
    version = write(store, "a", 1)
    write(store, "b", 2)
    with store.lease(version.commit):
        remove(store, "a")
        report = gc(store.url)
        assert report.leases == 1 and version.to_arrow().equals(rows_of(1))
        assert Dataset(Store.open(store.url), "a", "main", version.commit).to_arrow().equals(rows_of(1))
    assert store.home.documents(LEASES) == []
    assert gc(store.url).packs_removed > 0
    with pytest.raises(RefMissing, match="cannot be held"):
        store.lease(version.commit)
    assert store.home.documents(LEASES) == [] and sound(store.url)


def test_the_lease_of_a_dead_process_holds_nothing(store: Store) -> None:
    version = write(store, "a", 1)
    child = os.fork()
    if child == 0:
        held = store.lease(version.commit)
        assert held
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(store.home.documents(LEASES)) == 1
    remove(store, "a")
    report = gc(store.url)
    assert report.leases == 0 and report.packs_removed > 0 and store.home.documents(LEASES) == []


def test_taking_a_lease_is_cheap(store: Store) -> None:
    version = write(store, "a", 1)

    def seconds() -> float:
        begin = time.perf_counter()
        store.lease(version.commit).release()
        return time.perf_counter() - begin

    assert min(seconds() for _ in range(20)) < 0.005


def test_a_reader_that_saw_the_store_before_follows_chunks_to_their_new_packs(store: Store) -> None:
    for number in range(limits.GC_SMALL_PACKS_MIN + 2):
        write(store, f"d{number}", number, rows=60)
    reader = Store.open(store.url)
    opened = Dataset.open(reader, "d3")
    with Store.open(store.url, cache_dir=Path(store.url).parent / "another host") as other:
        assert Collector(other).run().repacked > limits.GC_SMALL_PACKS_MIN
    assert opened.to_arrow().equals(rows_of(3, 60))


# -- repacking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True])
def test_repacking_keeps_every_row_readable(tmp_path: Path, encrypted: bool) -> None:
    keys = pytest.importorskip("leptonstore.store.keys")
    unlock = {"unlock": keys.KeyFile(bytes(range(64)))} if encrypted else {}
    seeds = range(limits.GC_SMALL_PACKS_MIN + 4)
    with Store.create(tmp_path / "store", CONFIG, **unlock) as store:
        for seed in seeds:
            write(store, f"d{seed}", seed, rows=300)
        words = pa.table(
            {"id": np.arange(3000), "text": [f'{{"name": "row {at}", "n": {at % 7}}}' * 8 for at in range(3000)]}
        )
        write_dataset(store, "words", source(words))
        packs = len(store.state.packs)
        report = collect(store)
        assert report.repacked >= 2 * len(seeds) and len(store.state.packs) <= packs - 2 * len(seeds) + 4
        assert check_store(store, read_data=True).clean and files_of(store) == set(store.state.packs)
        again = collect(store)
        assert again.repacked == again.packs_removed == 0
        assert all(holds(store, f"d{seed}", seed, rows=300) for seed in seeds)
        assert Dataset.open(store, "words").to_arrow().equals(words)


def test_a_pack_that_is_mostly_garbage_is_rewritten(store: Store) -> None:
    """The same commit wrote what stays and what goes into the same packs."""
    one = pa.table({"id": np.arange(40), "data": [random.Random(at).randbytes(30_000) for at in range(40)]})
    two = one.slice(0, 8)
    write_dataset(store, "big", source(one))
    write_dataset(store, "small", source(two))
    remove(store, "big")
    foreseen, before = gc(store.url, dry_run=True), sum(record.bytes for record in store.state.packs.values())
    report = gc(store.url)
    assert report.repacked > 0 and report.bytes_freed > 30 * 30_000
    store.refresh()
    gone = before - sum(record.bytes for record in store.state.packs.values())
    assert report.bytes_freed == gone, "what was copied is not free"
    assert abs(foreseen.bytes_freed - gone) < 2_000
    assert sum(record.bytes for record in Store.open(store.url).state.packs.values()) < 9 * 30_000 + 10_000
    assert Dataset.open(store, "small").to_arrow().equals(two) and sound(store.url)


def test_a_full_disk_stops_repacking_and_the_reserve_lets_the_rest_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store, "a", 1)
    write(store, "b", 2)
    remove(store, "a")
    with Store.open(store.url) as other:
        assert other.home.restore_reserve()
        real = type(other.home).create_document

        def full(tier: object, name: str, data: bytes) -> bool:
            if other.home.has_reserve():
                raise StoreFull("no space left")
            return real(other.home, name, data)

        def no_pack(tier: object, pack: str) -> object:
            raise StoreFull("no space left")

        monkeypatch.setattr(type(other.home), "create_document", full)
        monkeypatch.setattr(type(other.home), "create_pack", no_pack)
        report = Collector(other).run()
        monkeypatch.undo()
        assert report.packs_removed > 0 and other.home.has_reserve(), "given back when there is space again"
        assert report.repacked == 0 or report.repack_stopped
    assert holds(store, "b", 2) and sound(store.url)


# -- damage ----------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_nothing_is_removed_while_it_is_unclear_what_is_needed(store: Store) -> None:
    version = write(store, "a", 1)
    write(store, "b", 2)
    remove(store, "b")
    place = store.locate(parse_hex(version.commit))
    assert place is not None
    _flip(store.home.path_of(place.pack), place.row.offset + 70)
    before, sequence = files_of(store), store.state.sequence
    with pytest.raises(Damaged, match="removed nothing"):
        gc(store.url)
    store.refresh()
    assert files_of(store) == before and store.state.sequence == sequence


def test_a_damaged_pack_is_never_garbage(store: Store) -> None:
    write(store, "a", 1)
    remove(store, "a")
    pack = max(files_of(store))
    _flip(store.home.path_of(pack), store.home.path_of(pack).stat().st_size - 1)
    gc(store.url)
    assert files_of(store) == {pack}


# -- forgetting ------------------------------------------------------------------------------------------------------


def test_forgotten_versions_are_freed_and_the_kept_ones_stay(store: Store) -> None:
    versions = [write(store, "a", seed) for seed in range(4)]
    write(store, "b", 0)
    assert forget_all_but(store, "dataset", "a", 2) == (2, 2, ())
    assert forget_all_but(store, "dataset", "a", 5) == (2, 0, ())
    report = gc(store.url)
    assert report.bytes_freed > 100_000 and sound(store.url)
    assert ancestry(store, versions[3].commit) == [versions[3].commit, versions[2].commit]
    for seed in (2, 3):
        assert Dataset.open(store, f"a@{versions[seed].commit}").to_arrow().equals(rows_of(seed))
    with pytest.raises(RefMissing):
        Dataset.open(store, f"a@{versions[1].commit}")
    assert holds(store, "b", 0), "another ref needs what the first version of a had"
    assert write(store, "a", 7).commit_object.parents == (parse_hex(versions[3].commit),)
    gc(store.url)
    assert sound(store.url)


def test_forgetting_before_a_date_reads_the_log(store: Store) -> None:
    versions = [write(store, "a", seed, rows=50) for seed in range(3)]
    times = {ref["new"]: entry["time_ns"] / 1e9 for entry in store.history() for ref in entry["refs"]}
    assert forget_before(store, "dataset", "a", times[versions[1].commit]) == (2, 1, ())
    assert forget_before(store, "dataset", "a", times[versions[2].commit] + 1e6) == (1, 1, ()), (
        "the newest always stays"
    )


def test_history_is_not_cut_where_another_ref_leads(store: Store) -> None:
    """The mark is on a commit: it cut the history of a tag at the oldest version that was kept, and `gc` took it away."""
    versions = [write(store, "a", seed, rows=50) for seed in range(5)]
    create_ref(store, "dataset", "a", "v1", versions[2].commit, tag=True)
    forgotten = forget_all_but(store, "dataset", "a", 3)
    assert forgotten == (5, 0, ("dataset/a/v1",))
    assert forget_all_but(store, "dataset", "a", 2) == (2, 3, ()), (
        "what lies before the tag stays, and is the tag's alone"
    )
    gc(store.url)
    assert [len(ancestry(store, head.commit)) for head in (versions[4], versions[2])] == [2, 3]
    assert holds(store, "a@v1~2", 0, 50) and holds(store, "a@v1", 2, 50)
    delete_ref(store, "dataset", "a", "v1")
    assert gc(store.url).bytes_freed > 0 and sound(store.url)


def test_history_that_was_cut_before_may_be_cut_again_where_another_ref_leads(store: Store) -> None:
    """A forgotten version still names its parents, so it came back as the place to cut at, for ever."""
    for seed in range(3):
        write(store, "a", seed, rows=50)
    forget_all_but(store, "dataset", "a", 2)
    create_ref(store, "dataset", "a", "b", Dataset.open(store, "a").commit)
    assert forget_all_but(store, "dataset", "a", 1) == (2, 0, ("dataset/a/b",))
    assert forget_all_but(store, "dataset", "a", 2) == (2, 0, ())


def test_a_ref_that_comes_while_history_is_cut_is_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import leptonstore.dataset.forget as module

    versions = [write(store, "a", seed, rows=50) for seed in range(3)]
    forget = module.forget

    def late(own: Store, *arguments: Any) -> bool:
        monkeypatch.undo()
        with Store.open(store.url) as other:
            create_ref(other, "dataset", "a", "v1", versions[1].commit, tag=True)
        return forget(own, *arguments)

    monkeypatch.setattr(module, "forget", late)
    assert forget_all_but(store, "dataset", "a", 2) == (3, 0, ("dataset/a/v1",))
    assert len(ancestry(store, versions[1].commit)) == 2


def test_a_merge_keeps_the_versions_that_were_asked_for(store: Store) -> None:
    first = write(store, "a", 1, rows=50).commit
    second = write(store, "a", 2, rows=50).commit
    side = write_dataset(store, "a", source(rows_of(3, 50)), branch="side", parents=(first,)).commit
    merged = write_dataset(store, "a", source(rows_of(4, 50)), parents=(second, side)).commit
    remove_side = ("dataset", "a", "side")
    delete_ref(store, *remove_side)
    forget_all_but(store, "dataset", "a", 2)
    assert set(ancestry(store, merged)) == {merged, second, side}, (
        "the other parent of a merge stays, without its history"
    )


# -- bounded memory, old logs, the command line ---------------------------------------------------------------------------


def test_runs_on_disk_give_what_memory_gives(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        write(store, "a", seed)
    write(store, "b", 9)
    remove(store, "a")
    store.close()

    def outcome(url: Path) -> tuple[dict[str, object], set[str]]:
        shutil.copytree(store.url, url)
        report = gc(str(url)).to_json()
        del report["seconds"]
        assert sound(str(url))
        with Store.open(url) as after:
            assert holds(after, "b", 9)
            return report, {pack for pack in after.state.packs if pack in before}

    with Store.open(store.url) as whole:
        before = set(whole.state.packs)
    in_memory = outcome(tmp_path / "memory")
    monkeypatch.setattr(limits, "SPILL_BYTES", 100)
    assert outcome(tmp_path / "disk") == in_memory


def test_an_entry_holds_so_many_packs_and_more_take_another_round(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        write(store, f"d{seed}", seed, rows=60)
        remove(store, f"d{seed}")
    monkeypatch.setattr(limits, "GC_PACKS_PER_ENTRY_MAX", 3)
    packs = len(store.state.packs)
    report = gc(store.url)
    assert report.packs_removed == packs > 6 and sound(store.url)
    for entry in store.history():
        assert sum(len(entry.get(key, ())) for key in ("fence", "rescue", "packs_removed")) <= 3


def test_logs_from_before_garbage_collection_are_still_read() -> None:
    old = {"sequence": 0, "head": "00" * 32, "refs": {}, "packs": {}}
    state = LogState.from_json(old, "snapshot")
    assert state == LogState() and state.condemned == {} and state.gc_sequence == 0
    body = {
        "sequence": 1,
        "write_id": "",
        "previous": "00" * 32,
        "time_ns": 1,
        "author": "",
        "host": "",
        "action": "packs",
        "packs_added": [{"id": "aa" * 16, "bytes": 1, "content": 1}],
        "packs_removed": [],
        "refs": [],
    }
    state.apply(framed.encode("log", body), "entry")
    assert state.packs.keys() == {"aa" * 16} and state.gc_sequence == 0 and state.present("aa" * 16)


def test_the_commands(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write(store, "a", seed)
    monkeypatch.setenv("LEPTON_STORE", store.url)
    runner = CliRunner()

    def run(*arguments: str) -> dict[str, object]:
        done = runner.invoke(lepton, [*arguments, "--json"], standalone_mode=False)
        assert done.exception is None, done
        return dict(json.loads(done.output.splitlines()[-1]))

    forgotten = run("forget", "a", "--keep", "1")
    assert forgotten["kept"] == 1 and forgotten["forgotten"] == 2
    foreseen, freed = run("gc", "--dry-run"), run("gc")
    assert foreseen["bytes_freed"] == forgotten["bytes_to_free"]
    assert foreseen["packs_removed"] == freed["packs_removed"] and not freed["dry_run"]
    assert "freed" in runner.invoke(lepton, ["gc"], standalone_mode=False).output
    assert run("forget", "a", "--all")["forgotten"] == 1
    run("gc")
    assert not files_of(store) and sound(store.url)
    for wrong in (("forget", "a"), ("forget", "a", "--all", "--keep", "1"), ("forget", "a", "--before", "yesterday")):
        error = runner.invoke(lepton, [*wrong], standalone_mode=False).exception
        assert isinstance(error, LeptonError), wrong


def test_garbage_collection_needs_a_program_that_knows_fences(store: Store) -> None:
    write(store, "a", 1)
    remove(store, "a")
    gc(store.url)
    assert "fences" in Store.open(store.url).state.requires


def test_a_pack_published_late_in_the_background_is_claimed_no_longer_than_its_commit(tmp_path: Path) -> None:
    """It counted as work of the next round, so that its claim stayed until another commit, and nothing could retire the pack."""
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as store:
        commit = store.put(b"any value")
        round = store._writer.finish()
        store._publish_packs()  # as the thread that sealed it does, here after `finish`
        update = RefUpdate("dataset/a/main", None, commit.hex())
        publish(store, Work("commit", lambda state: (update,), round))
        assert store.state.packs and claimed_packs(store.home) == set()
