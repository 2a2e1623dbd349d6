"""Damage of every kind, and repair: what is whole is saved, what a copy has comes back, and what is lost is named exactly."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.check import command as check_command
from leptonstore.cli.repair import command as repair_command
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, ChunkCorrupt, ChunkMissing, Conflict, Damaged, FormatDamaged, NotPermitted
from leptonstore.format import pack as lpk
from leptonstore.store import Store, check_store
from leptonstore.store.config import StoreConfig
from leptonstore.store.copies import open_copy
from leptonstore.store.gc import collect
from leptonstore.store.keys import Passphrase, ScryptCost
from leptonstore.store.repair import RepairReport, repair_store
from leptonstore.store.versions import all_versions
from leptonstore.store.walk import walk

ROWS = 6_000
CHUNKS = ChunkSizes(cut_above=64 * 1024, min_size=4 * 1024, avg_size=16 * 1024, max_size=64 * 1024)


def _table(rows: int = ROWS) -> pa.Table:
    """Every kind of chunk: numbers, inline values, values of their own, a value in pieces, JSON that shares a dictionary."""
    rng = np.random.default_rng(7)
    large = [
        rng.bytes(300_000) if row == 777 else rng.bytes(20_000) if row % 1_000 == 0 else b"s" for row in range(rows)
    ]
    text = [f'{{"id": {row}, "kind": "event", "user": "{rng.bytes(8).hex()}"}}' for row in range(rows)]
    long = [text[row] * 450 for row in range(200)]
    columns = {"id": np.arange(rows), "x": rng.normal(size=rows), "large": large, "text": long + text[200:]}
    return pa.table(columns)


TABLE = _table()


def _source(table: pa.Table) -> Source:
    return Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=2_000)), table.num_rows, {})


def _write(store: Store) -> None:
    """Two versions of one dataset, and another dataset that shares most of it."""
    write_dataset(store, "t", _source(TABLE.slice(0, 4_000)))
    write_dataset(store, "t", _source(TABLE))
    write_dataset(store, "other", _source(TABLE.slice(0, 4_000)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on disk that tests copy."""
    folder = tmp_path_factory.mktemp("made")
    with Store.create(folder / "store", StoreConfig(chunks=CHUNKS), cache_dir=folder / "cache") as store:
        _write(store)
    return folder / "store"


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def _packs(place: Path) -> list[Path]:
    """Largest first: the first one holds data."""
    return sorted((place / "packs").rglob("*.pack"), key=lambda path: (-path.stat().st_size, path.name))


def _altered(path: Path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def _flip(path: Path, at: int) -> None:
    _altered(path, at, bytes([path.read_bytes()[at] ^ 0x55]))


def _flip_each(paths: list[Path]) -> None:
    for path in paths:
        _flip(path, 1_000)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a byte of a record": lambda place: _flip(_packs(place)[0], _packs(place)[0].stat().st_size // 2),
    "a byte of the header": lambda place: _flip(_packs(place)[0], 70),
    "a byte of the footer": lambda place: _flip(_packs(place)[0], _packs(place)[0].stat().st_size - 200),
    "the trailer": lambda place: _flip(_packs(place)[0], _packs(place)[0].stat().st_size - 10),
    "a hole of zeros": lambda place: _altered(_packs(place)[0], 60_000, bytes(50_000)),
    "truncated in the middle": lambda place: os.truncate(_packs(place)[0], _packs(place)[0].stat().st_size // 2),
    "truncated to nothing": lambda place: os.truncate(_packs(place)[0], 0),
    "longer than it was": lambda place: _altered(_packs(place)[0], _packs(place)[0].stat().st_size, b"LREC" * 100),
    "the file is gone": lambda place: _packs(place)[0].unlink(),
    "metadata": lambda place: _flip(_packs(place)[1], 300),
    "two packs": lambda place: _flip_each(_packs(place)[:2]),
}


def _unreadable(store: Store) -> dict[tuple[str, str], set[int]]:
    """(version, column) -> rows, of every chunk that cannot be read: found by reading them all."""
    out: dict[tuple[str, str], set[int]] = {}
    for version in all_versions(store):
        for reached in walk(store, version.commit):
            try:
                if reached.error is not None:
                    raise reached.error
                store.record(reached.digest)
            except (ChunkMissing, ChunkCorrupt, FormatDamaged):
                out.setdefault((version.label, reached.column), set()).update(range(*reached.rows))
    return out


def _assert_told_exactly(store: Store, report: RepairReport) -> None:
    """The report names what cannot be read, no more and no less; whatever is read is what was written."""
    told = {(one.version, one.column): {row for span in one.rows for row in range(*span)} for one in report.lost}
    assert told == _unreadable(store) and report.whole == (not told)
    for name, rows in (("t", ROWS), ("other", 4_000)):
        broken = {column for version, column in told if version == f"dataset/{name}/main"}
        for column in TABLE.column_names:
            for row in (0, 777, 2_000, rows - 1):
                try:
                    value = _value(Dataset.open(store, name), row, column)
                except (ChunkMissing, ChunkCorrupt, FormatDamaged):
                    assert broken & {"", column}, (name, column, row)
                    continue
                assert value == TABLE[column][row].as_py(), (name, column, row)


def _value(dataset: Dataset, row: int, column: str) -> object:
    return dataset.take([row], columns=[column]).column(column)[0].as_py()


def _tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def _assert_whole(store: Store) -> None:
    assert check_store(store, read_data=True).clean
    assert Dataset.open(store, "t").to_arrow().equals(TABLE)
    assert Dataset.open(store, "other").to_arrow().equals(TABLE.slice(0, 4_000))


@pytest.mark.parametrize("kind", DAMAGE)
def test_without_a_copy_what_is_whole_is_saved_and_the_rest_is_named_and_heals_when_it_is_written_again(
    place: Path, kind: str
) -> None:
    DAMAGE[kind](place)
    with Store.open(place) as store:
        damaged = {problem.pack for problem in check_store(store, read_data=True).problems if problem.pack}
        assert damaged, "the damage must be found"
        report = repair_store(store)
        assert {one.pack for one in report.repaired} == damaged
    with Store.open(place) as store:
        assert not damaged & set(store.state.packs)
        _assert_told_exactly(store, report)
        found = check_store(store, read_data=True)
        assert {problem.kind for problem in found.problems} <= {"missing"} and found.clean == report.whole
        _write_again(store)
        _assert_whole(store)
        again = repair_store(store)
        assert again.whole and not again.repaired
    kept = {path.name for path in (place / "damaged").iterdir()}
    assert kept == {f"{pack}.pack" for pack in damaged if kind != "the file is gone"}


def _write_again(store: Store) -> None:
    """Another import of the same rows: it makes the same chunks and commits, and so heals the versions that lost theirs."""
    write_dataset(store, "again", _source(TABLE.slice(0, 4_000)))
    write_dataset(store, "again", _source(TABLE))


@pytest.mark.parametrize("kind", ["a byte of a record", "the trailer", "truncated in the middle", "the file is gone"])
def test_a_mirror_gives_back_every_record_of_a_damaged_pack(made: Path, place: Path, kind: str) -> None:
    DAMAGE[kind](place)
    with Store.open(place) as store:
        report = repair_store(store, [open_copy(store, made)])
        assert report.whole and not report.fetched and {one.lost for one in report.repaired} == {0}
        if kind == "the file is gone":
            assert report.repaired[0].saved == 0 < report.repaired[0].copied
        _assert_whole(store)


def test_an_index_that_was_filled_from_the_damaged_pack_learns_of_the_repair(place: Path, made: Path) -> None:
    """As on another machine, whose index never saw the pack whole."""
    DAMAGE["truncated in the middle"](place)
    elsewhere = place.parent / "cache of another machine"
    with Store.open(place, elsewhere) as other, Store.open(place) as store:
        assert other.damaged_packs
        assert repair_store(store, [open_copy(store, made)]).whole
        other.refresh()
        _assert_whole(other)


def test_a_pack_that_was_copied_back_by_hand_is_whole_again(place: Path, made: Path) -> None:
    """The index was filled while it was damaged: `check` looks again before it says that something is missing."""
    DAMAGE["truncated in the middle"](place)
    with Store.open(place) as store:
        assert not check_store(store).clean
    for pack in _packs(made):
        shutil.copy(pack, place / pack.relative_to(made))
    with Store.open(place) as store:
        _assert_whole(store)
    for pack in _packs(made):
        shutil.copy(pack, place / pack.relative_to(made))
    DAMAGE["truncated in the middle"](place)
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    Store.open(place).close()
    for pack in _packs(made):
        shutil.copy(pack, place / pack.relative_to(made))
    with Store.open(place) as store:
        report = repair_store(store)
        assert report.whole and not report.repaired
        _assert_whole(store)


@pytest.mark.parametrize("kind", ["a byte of a record", "a hole of zeros", "the file is gone", "two packs"])
@pytest.mark.parametrize("copy", ["another store", "a directory of packs", "other chunk sizes"])
def test_any_place_that_has_the_chunks_heals(place: Path, tmp_path: Path, kind: str, copy: str) -> None:
    """Packs with other ids, and a value that lies there in other pieces."""
    DAMAGE[kind](place)
    other = tmp_path / "other"
    chunks = CHUNKS if copy != "other chunk sizes" else ChunkSizes(1 << 17, 8 * 1024, 48 * 1024, 1 << 17)
    with Store.create(other, StoreConfig(chunks=chunks)) as store:
        _write(store)
    with Store.open(place) as store:
        source = open_copy(store, other / "packs" if copy == "a directory of packs" else other)
        foreseen = repair_store(store, [source], dry_run=True)
        report = repair_store(store, [source])
        assert report.whole and foreseen.whole and report.fetched == foreseen.fetched
        assert report.repaired and not any(one.copied for one in report.repaired)
    with Store.open(place) as store:
        _assert_whole(store)


def test_a_dry_run_changes_nothing_and_foresees_what_is_lost(place: Path) -> None:
    DAMAGE["a hole of zeros"](place)
    with Store.open(place) as store:
        before = _tree(place)
        foreseen = repair_store(store, dry_run=True)
        assert _tree(place) == before
        done = repair_store(store)
    assert not done.whole and foreseen.lost == done.lost and foreseen.repaired == done.repaired


def test_what_is_lost_is_told_for_every_version_that_needs_it(place: Path) -> None:
    with Store.open(place) as store:
        first = store.state.refs["dataset/other/main"].commit
        digest = digest_of(TABLE["large"][1_000].as_py())
        row = store.locate(digest)
        assert row is not None
        pack, offset = store.home.path_of(row.pack), row.row.offset
    _flip(pack, offset + 100)
    with Store.open(place) as store:
        lost = repair_store(store).lost
    assert [(one.version, one.column, one.rows, one.chunks) for one in lost] == [
        ("dataset/other/main", "large", [(1_000, 1_001)], 1),
        ("dataset/t/main", "large", [(1_000, 1_001)], 1),
        (f"dataset/t@{first[:12]}", "large", [(1_000, 1_001)], 1),
    ]


def test_records_whose_dictionary_or_footer_is_gone(tmp_path: Path) -> None:
    """With their dictionary they are saved without any footer; without it they are lost, and come back when put again."""
    rng = random.Random(5)
    phrases = [rng.randbytes(20).hex() for _ in range(1_000)]
    values = [" ".join(rng.sample(phrases, 20)).encode() for _ in range(1_500)]
    for damaged in ("footer", "dictionary"):
        with Store.create(tmp_path / damaged) as store:
            names = [store.put(value) for value in values]
            store.flush()
            (pack,) = (store.home.path_of(pack) for pack in store.state.packs)
        rows = list(lpk.salvage(pack.read_bytes()))
        dictionary = next(row for row in rows if row.kind == lpk.KIND_DICTIONARY)
        if damaged == "footer":
            os.truncate(pack, pack.stat().st_size - 500)
        else:
            _flip(pack, dictionary.end - 10)
        with Store.open(tmp_path / damaged) as store:
            (repaired,) = repair_store(store).repaired
            there = [name for name in names if store.has(name)]
            assert repaired.saved == len(there) and (len(there) == len(names)) == (damaged == "footer")
            for name, value in zip(names, values, strict=True):
                assert store.put(value) == name
            store.flush()
            assert [store.get(name) for name in names] == values
            assert check_store(store, True).clean


@pytest.mark.parametrize("kind", ["a byte of a record", "the trailer", "the file is gone", "metadata"])
def test_an_encrypted_store_is_salvaged_and_mended_from_its_mirror(tmp_path: Path, kind: str) -> None:
    secret = Passphrase(b"correct horse battery staple")
    config = StoreConfig(chunks=CHUNKS)
    with Store.create(tmp_path / "store", config, unlock=secret, cost=ScryptCost(n=1 << 4)) as store:
        _write(store)
    shutil.copytree(tmp_path / "store", tmp_path / "mirror")
    DAMAGE[kind](tmp_path / "store")
    with Store.open(tmp_path / "store", unlock=secret) as store:
        report = repair_store(store)
        _assert_told_exactly(store, report)
        assert report.whole == (kind == "the trailer")
        for copy in (tmp_path / "mirror" / "packs", tmp_path / "mirror"):
            assert repair_store(store, [open_copy(store, copy)]).whole
        _assert_whole(store)


def test_interrupted_anywhere_and_run_again_it_ends_whole(place: Path, tmp_path: Path, made: Path) -> None:
    """SIGKILL before the n-th write, sync, link or rename, for many n: what was readable stays readable, and the rest heals."""
    DAMAGE["two packs"](place)
    shutil.copytree(place, tmp_path / "template")
    calls = _killed(place, made, 0)
    assert calls > 10
    # Threads compress, so that two runs differ by some calls: the last ones may not come.
    for at in sorted(random.Random(3).sample(range(1, calls * 3 // 4), 9)):
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "template", place)
        assert _killed(place, made, at) == -signal.SIGKILL, "nothing was in flight"
        with Store.open(place) as store:
            assert repair_store(store, [open_copy(store, made / "packs")]).whole
            _assert_whole(store)


def _killed(place: Path, copy: Path, at: int) -> int:
    """Repair in a child that kills itself at its `at`-th call: -9. With at = 0: the number of calls."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        try:
            for name in ("pwritev", "fsync", "link", "replace", "unlink"):
                setattr(os, name, counted(getattr(os, name)))
            with Store.open(place) as store:
                # Salvage first (no copy), then what is lost from the copy: all steps of repair run.
                repair_store(store)
                repair_store(store, [open_copy(store, copy)])
            os.write(writing, str(calls).encode())
        finally:
            os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reading, "rb") as told:
        return status or int(told.read() or b"0")


def test_another_process_that_reads_meanwhile_finds_what_was_moved(place: Path) -> None:
    DAMAGE["a byte of a record"](place)
    with Store.open(place) as reading, Store.open(place) as store:
        dataset = Dataset.open(reading, "t")
        assert _value(dataset, 5, "x") == TABLE["x"][5].as_py()
        report = repair_store(store)
        _assert_told_exactly(reading, report)


def test_a_writer_that_counted_on_a_pack_which_repair_took_away_still_commits(place: Path) -> None:
    """It found its chunks in the damaged pack; before it publishes it looks again, and they are in the new one."""
    DAMAGE["the trailer"](place)
    with Store.open(place) as writing, Store.open(place) as store:

        def batches() -> Iterator[pa.RecordBatch]:
            for number, batch in enumerate(_source(TABLE).batches()):
                if number == 2:
                    assert repair_store(store).whole
                yield batch

        made = write_dataset(writing, "late", Source(TABLE.schema, ("id",), batches, ROWS, {}))
        assert made.to_arrow().equals(TABLE)
        store.refresh()
        report = collect(store)
        assert not report.missing
        _assert_whole(store)
        assert Dataset.open(store, "late").to_arrow().equals(TABLE)


def test_of_two_repairs_at_once_one_is_told_to_run_again(place: Path) -> None:
    DAMAGE["a byte of a record"](place)
    with Store.open(place) as first, Store.open(place) as second:
        base = second.state.gc_sequence
        packs = {one.pack for one in repair_store(first).repaired}
        second.put_piece(b"salvaged")
        with pytest.raises(Conflict, match="run the command again"):
            second.replace_packs("repair", packs, base)
        assert not second.has(digest_of(b"salvaged"))


def test_most_packs_missing_looks_like_a_disk_that_is_not_mounted(place: Path, made: Path) -> None:
    shutil.rmtree(place / "packs")
    with Store.open(place) as store:
        listed = dict(store.state.packs)
        with pytest.raises(Damaged, match="is the file system with packs/ mounted"):
            repair_store(store)
        assert store.state.packs == listed
        assert repair_store(store, [open_copy(store, made)]).whole, "with a copy there is nothing to doubt"
        _assert_whole(store)
    shutil.rmtree(place / "packs")
    with Store.open(place) as store:
        report = repair_store(store, force=True)
        assert not store.state.packs and {one.version for one in report.lost} >= {
            "dataset/t/main",
            "dataset/other/main",
        }
        _write_again(store)
        _assert_whole(store)


def test_a_pack_that_this_user_may_not_read_is_not_damaged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = _packs(place)[0]
    real = os.open

    def refused(path: object, *arguments: int, **options: object) -> int:
        if str(path) == str(pack):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    with Store.open(place) as store:
        store.tier.close()
        monkeypatch.setattr(os, "open", refused)
        with pytest.raises(NotPermitted, match="may not read"):
            check_store(store)
        with pytest.raises(NotPermitted, match="may not read"):
            repair_store(store)


def test_a_wrong_copy_is_refused_and_a_lying_one_is_not_believed(place: Path, made: Path, tmp_path: Path) -> None:
    DAMAGE["a byte of a record"](place)
    (tmp_path / "empty").mkdir()
    liar = Path(shutil.copytree(made, tmp_path / "liar"))
    for pack in _packs(liar):
        data = bytearray(pack.read_bytes())
        for row in lpk.salvage(bytes(data)):
            if row.codec == lpk.CODEC_RAW and row.stored:
                data[row.offset + lpk.RECORD_HEADER_BYTES] ^= 1
        pack.write_bytes(data)
    with Store.open(place) as store:
        for wrong in (tmp_path / "nowhere", tmp_path / "empty", place):
            with pytest.raises(BadInput, match=r"copy|copies"):
                open_copy(store, wrong)
        report = repair_store(store, [open_copy(store, liar), open_copy(store, liar / "packs")])
        _assert_told_exactly(store, report)
        assert not report.whole


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_reads_a_share_of_the_packs_the_same_for_the_same_seed(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store") as store:
        for at in range(20):
            store.put(random.Random(at).randbytes(10_000))
            store.flush()
        told: list[tuple[int, int]] = []
        first = check_store(store, 0.25, lambda done, total: told.append((done, total)), seed=4)
        assert first.clean and first.packs == 20 and first.read_share == pytest.approx(0.25, abs=0.01)
        assert told[-1] == (first.bytes_all, first.bytes_all) and first.bytes_read < first.bytes_all / 3
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        pack = store.home.path_of(sorted(store.state.packs)[7])
        _flip(pack, 5_000)
        found = {seed: check_store(store, 0.25, seed=seed).clean for seed in range(20)}
        assert found == {seed: check_store(store, 0.25, seed=seed).clean for seed in range(20)}
        assert 8 <= sum(found.values()) <= 19, "about a quarter of the samples meet the damaged pack"
        assert not check_store(store, True).clean and check_store(store, 0.0).clean
        for wrong in (-0.1, 1.1, float("nan")):
            with pytest.raises(BadInput, match="from 0 to 1"):
                check_store(store, wrong)


def test_findings_are_counted_beyond_a_bound_and_windows_do_not_hide_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(tmp_path / "store") as store:
        names = [store.put(random.Random(at).randbytes(2_000)) for at in range(200)]
        store.flush()
        pack = store.home.path_of(next(iter(store.state.packs)))
        located = [store.locate(name) for name in names]
        offsets = sorted((place.row.offset, name.hex()) for place, name in zip(located, names, strict=True) if place)
        damaged = offsets[::4]
        for offset, _ in damaged:
            _flip(pack, offset + 1_000)
        for window in (1, 3_000, 50_000, limits.CHECK_WINDOW_BYTES):
            monkeypatch.setattr(limits, "CHECK_WINDOW_BYTES", window)
            found = check_store(store, True)
            assert sorted(problem.digest for problem in found.problems) == sorted(name for _, name in damaged)
        monkeypatch.setattr(limits, "CHECK_PROBLEMS_MAX", 10)
        found = check_store(store, True)
        assert len(found.problems) == 10 and found.problems_more == len(damaged) - 10 and not found.clean


# -- the command line -------------------------------------------------------------------------------------------------


def test_exit_codes_and_what_people_read(place: Path, made: Path) -> None:
    DAMAGE["a hole of zeros"](place)
    runner = CliRunner()

    def run(command: object, *arguments: str) -> tuple[int, str]:
        done = runner.invoke(command, ["--store", str(place), *arguments], standalone_mode=False)  # type: ignore[arg-type]
        if done.exception is not None:
            raise done.exception
        return done.return_value, done.output

    code, text = run(check_command, "--read-data")
    assert code == 4 and "run `lepton repair`" in text
    code, text = run(repair_command, "--dry-run")
    assert code == 4 and "would be saved" in text
    code, text = run(repair_command)
    assert code == 4 and "lost: dataset/t/main: column" in text and "--from" in text
    code, text = run(repair_command, "--json", "--from", str(made))
    assert code == 0 and '"whole": true' in text
    assert run(check_command, "--read-data=1")[0] == 0
    code, text = run(repair_command)
    assert (code, text.splitlines()[-1]) == (0, "whole")
