"""Full disks, quotas, several users in one directory, stores of other versions, and who takes how much."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import stat
import subprocess
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.cli.du import command as du_command
from leptonstore.cli.quota import command as quota_command
from leptonstore.cli.runtime import run
from leptonstore.cli.upgrade import command as upgrade_command
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.stats import stored_bytes
from leptonstore.errors import FormatDamaged, FormatTooNew, StoreFull
from leptonstore.format import framed
from leptonstore.store import RefUpdate, Store, check_store
from leptonstore.store.gc import collect
from leptonstore.store.log import LogState
from leptonstore.store.quota import quota_bytes, setting, used_bytes
from leptonstore.store.upgrade import upgrade_store
from leptonstore.store.usage import measure
from leptonstore.store.walk import walk
from leptonstore.tiers import durable


def _source(rows: int, seed: int = 0, columns: int = 1) -> Source:
    rng = np.random.default_rng(seed)
    table = pa.table({"id": np.arange(rows), **{f"x{at}": rng.normal(size=rows) for at in range(columns)}})
    return Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=1_000)), rows, {})


def _files(place: Path) -> set[str]:
    """All but the lock files of live writers."""
    found = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("writers/")}


# -- quota -----------------------------------------------------------------------------------------------------------


def test_a_quota_refuses_what_would_exceed_it_and_leaves_nothing_half_visible(store: Store) -> None:
    write_dataset(store, "t", _source(5_000))
    store.configure(setting(used_bytes(store.state) + 20_000))
    place = Path(store.url)
    before, refs = _files(place), dict(store.state.refs)
    with pytest.raises(StoreFull, match=r"quota is .*KiB.*`lepton quota --set SIZE`.*`lepton gc`"):
        write_dataset(store, "t", _source(20_000, seed=1))
    assert _files(place) == before and store.state.refs == refs, "its packs are removed again"
    write_dataset(store, "t", _source(100, seed=2))  # small enough
    with Store.open(store.url) as again:
        assert again.state.settings == store.state.settings and check_store(again, True).clean
        again.configure(setting(None))
        assert quota_bytes(again.state) is None
    write_dataset(store, "t", _source(20_000, seed=1))
    assert len(Dataset.open(store, "t")) == 20_000, "run again after it was raised, it works"


def test_a_quota_that_is_met_in_the_middle_of_a_long_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs are listed as they fill up, long before the commit: those stay as garbage for gc, the commit does not come."""
    monkeypatch.setattr(limits, "PACK_BYTES_MAX", 200_000)
    store.configure(setting(1_000_000))
    values = [random.Random(at).randbytes(30_000) for at in range(100)]
    with pytest.raises(StoreFull, match="quota"):
        for value in values:
            store.put(value)
        store.publish("commit", lambda state: (RefUpdate("dataset/t/main", None, "11" * 32),))
    store.close()
    with Store.open(store.url) as again:
        assert not again.state.refs and used_bytes(again.state) <= 1_000_000
        assert {pack.stem for pack in Path(store.url).rglob("*.pack")} == set(again.state.packs)
        collect(again)
        assert used_bytes(again.state) == 0, "gc works over and under the quota, and makes room"


def test_writers_that_race_do_not_exceed_a_quota_together(store: Store) -> None:
    store.configure(setting(500_000))
    outcomes: list[str] = []

    def write(number: int) -> None:
        with Store.open(store.url) as own:
            own.put(random.Random(number).randbytes(150_000))
            try:
                own.flush()
                outcomes.append("stored")
            except StoreFull:
                outcomes.append("refused")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.refresh()
    assert sorted(outcomes) == ["refused"] * 5 + ["stored"] * 3 and used_bytes(store.state) <= 500_000


def test_a_quota_survives_snapshots_and_the_command_sets_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOG_SNAPSHOT_EVERY", 3)
    runner = CliRunner()

    def quota(*arguments: str, code: int = 0) -> str:
        done = runner.invoke(quota_command, ["--store", store.url, *arguments])
        assert done.exit_code == code, done.output
        return done.output

    assert "no quota" in quota()
    for text, count in (("100GiB", 100 << 30), ("1.5t", 3 << 39), ("500", 500), ("2 MB", 2 << 20)):
        assert f'"quota_bytes": {count}' in quota("--set", text, "--json")
    assert store.home.documents("snapshots")
    with Store.open(store.url) as again:
        assert quota_bytes(again.state) == 2 << 20
    for wrong in ("-5", "many", "", "5X"):
        assert "not a size" in quota("--set", wrong, code=2)
    quota("--set", "1G", "--none", code=2)
    assert "no quota" in quota("--none")
    store.configure({"quota_bytes": "half"})
    with pytest.raises(FormatTooNew, match="no number of bytes"):
        quota_bytes(store.state)


def test_beyond_the_quota_is_exit_code_6(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from leptonstore.cli.group import lepton

    (tmp_path / "t.csv").write_text("id,x\n" + "".join(f"{at},{at * 7919 % 1000003}\n" for at in range(20_000)))
    store.configure(setting(1_000))
    assert run(lepton, ["import", str(tmp_path / "t.csv"), "t", "--store", store.url]) == 6
    told = capsys.readouterr().err
    assert "quota" in told and len(told.strip().splitlines()) == 1


# -- full disks ------------------------------------------------------------------------------------------------------


def test_no_space_at_any_write_sync_or_link_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either StoreFull and nothing of it is visible, or success: never a failure that was published."""
    calls, full_at = 0, 0

    def limited(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if full_at and calls >= full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    for name in ("pwritev", "link", "mkdir", "replace"):
        monkeypatch.setattr(durable.os, name, limited(getattr(os, name)))
    with Store.create(tmp_path / "calm") as store:
        calls = 0
        write_dataset(store, "t", _source(2_000))
    total, failed = calls, 0
    assert total > 5
    for moment in range(1, total + 1):
        with Store.create(tmp_path / str(moment)) as store:
            calls, full_at = 0, moment
            try:
                write_dataset(store, "t", _source(2_000))
                done = True
            except StoreFull as error:
                done, failed = False, failed + 1
                assert "no space left on the device" in str(error)
            full_at = 0
        with Store.open(tmp_path / str(moment)) as again:
            assert ("dataset/t/main" in again.state.refs) == done, "what was published is not called a failure"
            assert check_store(again, True).clean and not list((tmp_path / str(moment) / "tmp").iterdir())
            assert len(write_dataset(again, "t", _source(2_000))) == 2_000
    assert 0 < failed < total, "the hint at the end must not fail it"


def test_the_reserve_is_made_released_and_restored(store: Store, tmp_path: Path) -> None:
    path = Path(store.url) / "reserve"
    assert path.stat().st_blocks * 512 >= limits.RESERVE_BYTES, "it occupies its bytes"
    store.home.release_reserve()
    store.home.release_reserve()
    assert not path.exists() and not store.home.has_reserve()
    assert store.home.restore_reserve() and store.home.restore_reserve() and store.home.has_reserve()
    os.truncate(path, 5)
    assert not store.home.has_reserve() and store.home.restore_reserve() and store.home.has_reserve()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], check=False).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.requires_root
def test_gc_runs_on_a_disk_that_is_really_full(small_disk: Path) -> None:
    with Store.create(small_disk / "store") as store:
        kept = store.put(b"kept")
        commit = write_dataset(store, "kept", _source(1_000)).commit
        write_dataset(store, "gone", _source(100_000, columns=8))
        record = store.state.refs["dataset/gone/main"]
        store.publish("delete-ref", lambda state: (RefUpdate("dataset/gone/main", record.commit, None),))
        with pytest.raises(OSError, match="No space left"), open(small_disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 20))
        with pytest.raises(StoreFull, match="`lepton gc`"):
            write_dataset(store, "more", _source(50_000, seed=4))
    with Store.open(small_disk / "store") as store:
        report = collect(store)
        assert report.bytes_freed > 5 << 20 and store.home.has_reserve()
        assert check_store(store, True).clean and store.state.refs["dataset/kept/main"].commit == commit
        write_dataset(store, "more", _source(20_000, seed=4))
    assert kept


@pytest.mark.requires_root
def test_without_space_for_a_reserve_a_store_is_made_all_the_same(small_disk: Path) -> None:
    with open(small_disk / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, 22 << 20)
    with Store.create(small_disk / "store") as store:
        assert not store.home.has_reserve() and not store.home.restore_reserve()
        with pytest.raises(StoreFull, match="reserve of 4 MiB"):
            upgrade_store(store)
        name = store.put(b"small")
        store.flush()
        os.unlink(small_disk / "filler")
        assert upgrade_store(store).steps and store.home.has_reserve() and store.get(name) == b"small"


# -- several users ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory outside pytest's own, which only its owner may enter."""
    place = Path(tempfile.mkdtemp(prefix="lepton-shared-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def _as(umask: int, work: Callable[[], object], user: int | None = None, group: int | None = None) -> str:
    """Run `work` in a child with another umask, and as another user: what it returned, or its error, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        cache = tempfile.mkdtemp(prefix="lepton-cache-")
        try:
            os.umask(umask)
            os.environ["XDG_CACHE_HOME"] = cache
            if user is not None and group is not None:
                os.chown(cache, user, group)
                os.setgroups([group])
                os.setgid(group)
                os.setuid(user)
            try:
                told = repr(work())
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
            os.write(writing, told.encode()[:60_000])
        finally:
            shutil.rmtree(cache, ignore_errors=True)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    return told


def _write(place: Path, name: str, seed: int) -> int:
    with Store.open(place) as store:
        return len(write_dataset(store, name, _source(500, seed)))


def _read(place: Path, name: str) -> int:
    with Store.open(place) as store:
        assert check_store(store, True).clean
        return Dataset.open(store, name).to_arrow().num_rows


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)]
)
def test_files_follow_the_umask_and_the_group_of_the_directory(
    shared: Path, umask: int, file: int, folder: int
) -> None:
    place = shared / "store"
    place.mkdir()
    setgid = os.geteuid() == 0
    if setgid:
        os.chown(place, -1, 4242)
        place.chmod(0o2777)

    def make() -> int:
        Store.create(place).close()
        return _write(place, "t", 0)

    assert _as(umask, make) == "500"
    for path in place.rglob("*"):
        found = path.stat()
        expected = (folder | (stat.S_ISGID if setgid else 0)) if path.is_dir() else file
        assert stat.S_IMODE(found.st_mode) == expected, path
        assert not setgid or found.st_gid == 4242, path


@pytest.mark.requires_root
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root")
class TestUsers:
    """Users 4001 and 4002 share group 4242; user 4003 does not."""

    @pytest.fixture
    def place(self, shared: Path) -> Path:
        place = shared / "store"
        place.mkdir()
        os.chown(place, 4001, 4242)
        place.chmod(0o2775)
        assert _as(0o002, lambda: Store.create(place).close(), 4001, 4242) == "None"
        return place

    def test_all_of_a_group_write_and_read_one_store(self, place: Path) -> None:
        for number, user in enumerate((4001, 4002, 4001, 4002)):
            assert _as(0o002, partial(_write, place, f"t{number}", number), user, 4242) == "500"
        for user in (4001, 4002):
            assert _as(0o002, lambda: _read(place, "t3"), user, 4242) == "500"
        assert _as(0o002, lambda: collect(Store.open(place)).missing, 4002, 4242) == "0"

    def test_whoever_may_only_read_reads_everything_and_writes_nothing(self, place: Path) -> None:
        assert _as(0o002, lambda: _write(place, "t", 0), 4001, 4242) == "500"
        before = {str(path): path.stat().st_mtime_ns for path in place.rglob("*")}
        assert _as(0o022, lambda: _read(place, "t"), 4003, 4003) == "500"
        for work in (
            lambda: _write(place, "mine", 1),
            lambda: Store.open(place).configure(setting(5)),
        ):
            told = _as(0o022, work, 4003, 4003)
            assert told.startswith("NotPermitted") and "may not write" in told and "umask 002" in told, told
        assert {str(path): path.stat().st_mtime_ns for path in place.rglob("*")} == before

    def test_the_command_says_so_in_one_line_with_exit_code_9(self, place: Path) -> None:
        group = click.Group(commands={"quota": quota_command})
        told = _as(0o022, lambda: _spoken(group, ["quota", "--set", "1G", "--store", str(place)]), 4003, 4003)
        assert told.startswith("(9, ") and "may not write" in told and told.count("lepton:") == 1, told

    def test_a_file_that_is_not_readable_is_not_called_damaged(self, place: Path) -> None:
        assert _as(0o077, lambda: _write(place, "private", 0), 4001, 4242) == "500"
        told = _as(0o002, lambda: _read(place, "private"), 4002, 4242)
        assert told.startswith("NotPermitted") and "may not read" in told and "chmod" in told, told

    def test_what_another_user_left_behind_is_in_nobodys_way(self, place: Path) -> None:
        """Dead temporaries that this user may not even open."""
        dead = place / "tmp" / "x.pack.0011.tmp"
        dead.write_bytes(b"half a pack")
        os.chown(dead, 4001, 4001)
        dead.chmod(0o600)
        os.utime(dead, (0, 0))
        assert _as(0o002, lambda: _write(place, "t", 0), 4002, 4242) == "500"
        assert _as(0o002, lambda: Store.open(place).home.remove_dead_temporaries(), 4002, 4242) == "0"
        assert _as(0o002, lambda: Store.open(place).home.remove_dead_temporaries(), 4001, 4242) == "1"


def _spoken(group: click.Group, arguments: list[str]) -> tuple[int, str]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = run(group, arguments)
    return code, told.getvalue()


# -- stores of other versions --------------------------------------------------------------------------------------------


def _rewritten(place: Path, document: str, kind: str, **changes: object) -> None:
    path = place / document
    body = json.loads(path.read_bytes().split(b"\n", 1)[1])
    path.unlink()
    path.write_bytes(framed.encode(kind, {**body, **changes}))


def test_a_store_of_a_newer_version_is_refused_by_the_name_of_what_it_needs(store: Store) -> None:
    place = Path(store.url)
    write_dataset(store, "t", _source(100))
    store.close()
    config = (place / "config").read_bytes()
    _rewritten(place, "config", "config", requires=["holograms"], made_by="LeptonStore 7.2")
    with pytest.raises(FormatTooNew, match=r"made by LeptonStore 7\.2 and needs the feature 'holograms'.*upgrade"):
        Store.open(place)
    _rewritten(place, "config", "config", requires="holograms")
    with pytest.raises(FormatDamaged, match="not a list of names"):
        Store.open(place)
    (place / "config").write_bytes(config.replace(b" 1.0 ", b" 2.3 ").replace(b'"LeptonStore ', b'"LeptonStore-'))
    with pytest.raises(FormatTooNew, match=r"format 2\.3 \(made by LeptonStore-"):
        Store.open(place)
    (place / "config").write_bytes(config)
    with Store.open(place) as again:
        again.configure({}, requires=("fences",))
        assert again.state.requires == ("fences",)


def test_a_feature_that_the_log_turned_on_is_refused_also_through_a_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_SNAPSHOT_EVERY", 2)
    monkeypatch.setitem(framed.NAMED_FEATURES, "telepathy", "")
    store.configure({}, requires=("telepathy",))
    store.put(b"x")
    store.flush()
    assert store.home.documents("snapshots")
    with Store.open(store.url) as again:
        assert again.state == store.state and again.state.requires == ("telepathy",)
    monkeypatch.delitem(framed.NAMED_FEATURES, "telepathy")
    with pytest.raises(FormatTooNew, match="needs the feature 'telepathy'"):
        Store.open(store.url)
    with pytest.raises(FormatTooNew, match=r"snapshot .* needs the feature"):
        data = (Path(store.url) / "snapshots" / f"{2:020d}").read_bytes()
        LogState.from_json(framed.parse(data, "snapshot", "snapshot 2"), "snapshot 2")


def test_upgrade_makes_what_an_older_version_did_not(store: Store) -> None:
    (Path(store.url) / "reserve").unlink()
    runner = CliRunner()

    def upgrade(*arguments: str) -> str:
        done = runner.invoke(upgrade_command, ["--store", store.url, *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "would do: reserve" in upgrade("--dry-run") and not store.home.has_reserve()
    assert "done: reserve" in upgrade() and store.home.has_reserve()
    assert "nothing to do: format 1.0" in upgrade()
    assert '"steps": []' in upgrade("--json")


# -- who takes how much ----------------------------------------------------------------------------------------------------


def _by_hand(store: Store, versions: dict[str, list[str]]) -> dict[str, tuple[int, int]]:
    """name -> (stored, unique) of `versions` (name -> commits), with plain sets."""
    owners: dict[bytes, set[str]] = defaultdict(set)
    for name, commits in versions.items():
        for commit in commits:
            for reached in walk(store, commit):
                owners[reached.digest].add(name)
    out = {}
    for name in versions:
        sizes = [
            (place.row.share, len(held) == 1)
            for digest, held in owners.items()
            if name in held and (place := store.locate(digest)) is not None
        ]
        out[name] = (sum(size for size, _ in sizes), sum(size for size, alone in sizes if alone))
    return out


@pytest.mark.parametrize("spill", [1 << 30, 4_000])
def test_du_counts_unique_and_shared_bytes_of_every_version(
    store: Store, monkeypatch: pytest.MonkeyPatch, spill: int
) -> None:
    monkeypatch.setattr(limits, "SPILL_BYTES", spill)
    monkeypatch.setattr(limits, "NODE_FANOUT_AVG", 2)
    commits: dict[str, list[str]] = {"dataset/a": [], "dataset/b": []}
    for name, rows, seed, columns in (("a", 9_000, 0, 2), ("a", 20_000, 0, 2), ("b", 9_000, 0, 2), ("b", 5_000, 3, 1)):
        commits[f"dataset/{name}"].append(write_dataset(store, name, _source(rows, seed, columns)).commit)
    store.publish("tag", lambda state: (RefUpdate("dataset/a/v1", None, commits["dataset/a"][0]),))
    usage = measure(store)
    expected = _by_hand(store, commits)
    assert {one.name: (one.stored, one.unique) for one in usage.names} == expected
    single = _by_hand(store, {f"{name} {commit}": [commit] for name, some in commits.items() for commit in some})
    assert {
        f"{one.name} {version.commit}": (version.stored, version.unique)
        for one in usage.names
        for version in one.versions
    } == single
    assert [one.unique for one in usage.names] == sorted((one.unique for one in usage.names), reverse=True)
    every = [commit for some in commits.values() for commit in some]
    assert usage.live_bytes == stored_bytes(store, every) and not usage.missing
    assert {version.label for one in usage.names for version in one.versions} >= {"dataset/a/main", "dataset/a/v1"}
    assert usage.garbage_bytes < 0.05 * usage.pack_bytes and usage.free_bytes == 0


def test_du_says_what_gc_would_free_and_goes_on_over_damage(store: Store) -> None:
    write_dataset(store, "kept", _source(3_000))
    gone = write_dataset(store, "gone", _source(8_000, seed=1))
    record = store.state.refs["dataset/gone/main"]
    before = measure(store)
    store.publish("delete-ref", lambda state: (RefUpdate("dataset/gone/main", record.commit, None),))
    usage = measure(store)
    assert [one.name for one in usage.names] == ["dataset/kept"] and gone
    lost = next(one for one in before.names if one.name == "dataset/gone").unique
    assert usage.garbage_bytes == pytest.approx(before.garbage_bytes + lost, abs=5)
    assert usage.free_bytes == collect(store, repack=False).bytes_freed > 0
    done = CliRunner().invoke(du_command, ["--store", store.url])
    assert "dataset/kept" in done.output and "unique" in done.output
    pack = max(Path(store.url).rglob("*.pack"), key=lambda path: path.stat().st_size)
    pack.unlink()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    with Store.open(store.url) as again:
        assert measure(again).missing > 0
    assert CliRunner().invoke(du_command, ["nothing", "--store", store.url]).exit_code == 1
