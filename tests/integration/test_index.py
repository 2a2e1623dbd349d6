"""The index on a real disk: other processes, forks, kills at every step, growth of the map, damage, full disks."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import StoreFull
from leptonstore.format import pack as lpk
from leptonstore.format.pack import FooterRow
from leptonstore.store import Store
from leptonstore.store.environment import Environment
from leptonstore.store.index import Index
from leptonstore.store.log import LogState, PackRecord

COMMON = digest_of(b"in every pack")


def digests_of(number: int, rows: int = 20) -> list[bytes]:
    return [COMMON, *(digest_of(f"{number} {row}".encode()) for row in range(rows))]


class World:
    """A log that lists packs [first, end), each with rows of its own and one that all have; and an index of it."""

    def __init__(self, folder: Path, rows: int = 20) -> None:
        self.folder, self.row_count = folder, rows
        self.read: list[int] = []  # packs whose footer was read
        self.index = Index(bytes(16), "world", folder)

    def rows(self, pack: str) -> list[FooterRow]:
        number = int(pack, 16)
        self.read.append(number)
        return [
            FooterRow(digest, 128 + at, number, at, lpk.KIND_CHUNK, lpk.CODEC_RAW, 0, 0, lpk.DICTIONARY_NONE)
            for at, digest in enumerate(digests_of(number, self.row_count))
        ]

    @staticmethod
    def entry_digest(sequence: int) -> bytes:
        return digest_of(str(sequence).encode())

    def state(self, first: int, end: int) -> LogState:
        """The log's state at entry `end`."""
        packs = {f"{number:032x}": PackRecord(0, 1) for number in range(first, end)}
        return LogState(end, self.entry_digest(end), {}, packs)

    def sync(self, first: int, end: int) -> None:
        self.index.sync(self.state(first, end), self.entry_digest, self.rows)

    def check(self, first: int, end: int) -> None:
        """Exactly the packs [first, end) are in."""
        expected = {digest: {number} for number in range(first, end) for digest in digests_of(number, self.row_count)}
        expected[COMMON] = set(range(first, end))
        found = {item.digest: {int(item.pack, 16)} for item in self.index.items()}
        for item in self.index.copies():
            found[item.digest].add(int(item.pack, 16))
        assert found == {digest: numbers for digest, numbers in expected.items() if numbers}
        assert all(place is not None for place in self.index.get_many(list(found)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "cache")
    yield made
    made.index.close()


def in_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; returns its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def outcome(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- what a sync costs -------------------------------------------------------------------------------------------------


def test_only_new_packs_are_read_when_packs_come_and_go(world: World) -> None:
    world.sync(0, 30)
    assert sorted(world.read) == list(range(30)) and world.index.rebuilt
    world.read.clear()
    world.index.close()
    again = World(world.folder)
    again.sync(10, 33)
    assert sorted(again.read) == [30, 31, 32] and not again.index.rebuilt
    again.check(10, 33)
    place = again.index.get(COMMON)
    assert place is not None and int(place.pack, 16) == 10, "the oldest copy that is left"


def test_an_index_that_another_process_brought_further_is_left_as_it_is(world: World) -> None:
    world.sync(0, 5)
    behind = World(world.folder)
    behind.sync(0, 4)
    assert not behind.read and not behind.index.rebuilt
    behind.check(0, 5)


def test_two_processes_that_open_at_once_read_each_footer_once(world: World) -> None:
    shutil.rmtree(world.folder, ignore_errors=True)
    read, write = os.pipe()

    def open_it() -> None:
        mine = World(world.folder)
        mine.sync(0, 40)
        mine.check(0, 40)
        os.write(write, bytes(mine.read))

    children = [in_child(open_it) for _ in range(3)]
    assert [outcome(child) for child in children] == [0, 0, 0]
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert sorted(file.read()) == list(range(40))


def test_an_index_of_an_older_layout_starts_over(world: World) -> None:
    world.index.path.mkdir(parents=True)
    with lmdb.open(str(world.index.path), max_dbs=3) as old, old.begin(write=True) as txn:
        txn.put(COMMON, bytes(49), db=old.open_db(b"chunks", txn))
        txn.put(b"layout", b"1", db=old.open_db(b"meta", txn))
        txn.put(b"applied", bytes(40), db=old.open_db(b"meta", txn))
    world.sync(0, 3)
    world.check(0, 3)


def open_files(folder: Path) -> int:
    files = f"/proc/{os.getpid()}/fd"
    links = [os.readlink(f"{files}/{fd}") for fd in os.listdir(files) if os.path.lexists(f"{files}/{fd}")]
    return sum(link.startswith(str(folder)) for link in links)


def test_two_objects_share_one_environment_and_the_last_closes_it(world: World) -> None:
    world.sync(0, 3)
    other = World(world.folder)
    other.sync(0, 3)
    shared = open_files(world.folder)
    world.index.close()
    assert shared and open_files(world.folder) == shared
    other.check(0, 3)
    other.index.close()
    assert open_files(world.folder) == 0


def test_an_index_that_was_dropped_and_not_closed_is_closed_when_the_next_one_is_opened(
    world: World, tmp_path: Path
) -> None:
    dropped = World(tmp_path / "dropped")
    dropped.sync(0, 3)
    assert open_files(tmp_path / "dropped")
    del dropped
    gc.collect()
    world.sync(0, 3)
    assert open_files(tmp_path / "dropped") == 0
    world.check(0, 3)


def test_going_through_it_holds_no_transaction_and_goes_on_after_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INDEX_ITEMS_BATCH", 7)
    world.sync(0, 10)
    environment = world.index._open()
    before = sorted(digest for number in range(5, 10) for digest in digests_of(number))
    seen = []
    for at, item in enumerate(world.index.items()):
        seen.append(item.digest)
        if at == 30:
            assert not [
                line for line in environment._lmdb.readers().split("\n")[1:] if line.split()[2:] not in ([], ["-"])
            ]
            world.sync(5, 12)
    assert seen == sorted(set(seen))
    assert set(before) <= set(seen)
    assert [item.digest for item in world.index.items(after=seen[50])][:2] == sorted(
        {digest for number in range(5, 12) for digest in digests_of(number) if digest > seen[50]}
    )[:2]


# -- kills ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before_commit", [True, False])
def test_killed_at_every_write_the_next_open_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_commit: bool
) -> None:
    """A child is killed (SIGKILL) in its nth write transaction, or right after it, for every n until it gets through."""
    for name, value in {"INDEX_BATCH_ROWS": 100, "INDEX_COMMIT_ROWS": 40}.items():
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(limits, "INDEX_MAP_BYTES", 128 * 1024)  # it grows on the way, too
    kills, codes = 0, [-signal.SIGKILL]
    while codes[-1] == -signal.SIGKILL:
        folder = tmp_path / str(kills)
        world = World(folder)
        world.sync(0, 8)
        world.index.close()

        def killed(nth: int = kills, folder: Path = folder) -> None:
            left, write = [nth], Environment.write

            def die_in(self: Environment, work: Callable[[Any], Any]) -> Any:
                def counted(txn: Any) -> Any:
                    result = work(txn)
                    if left[0] == 0 and before_commit:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                result = write(self, counted)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return result

            Environment.write = die_in  # type: ignore[method-assign]
            World(folder).sync(5, 16)

        codes.append(outcome(in_child(killed)))
        # What was there before can be found at any moment; what is half in is finished or taken out.
        world = World(folder)
        assert all(world.index.get(digest) is not None for number in (5, 6, 7) for digest in digests_of(number))
        first, end = random.Random(kills).choice([(5, 17), (7, 18), (15, 17)])
        world.sync(first, end)
        world.check(first, end)
        assert not world.index.rebuilt
        world.index.close()
        kills += 1
    assert codes[-1] == 0 and kills > 8, codes


def test_killed_while_it_is_filled_for_the_first_time_the_next_open_starts_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INDEX_BATCH_ROWS", 50)

    def killed() -> None:
        insert = Environment.write
        count = [0]

        def die(self: Environment, work: Callable[[Any], Any]) -> Any:
            count[0] += 1
            if count[0] == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            return insert(self, work)

        Environment.write = die  # type: ignore[method-assign]
        world.sync(0, 20)

    assert outcome(in_child(killed)) == -signal.SIGKILL
    assert list(world.index.items()), "something was in"
    world.sync(0, 20)
    world.check(0, 20)
    assert world.index.rebuilt


# -- growth ---------------------------------------------------------------------------------------------------------------


def test_the_map_grows_under_readers_of_this_process_and_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "INDEX_MAP_BYTES", 128 * 1024)
    world = World(tmp_path, rows=200)
    world.sync(0, 2)
    sizes = [world.index._open().info()["map_size"]]
    known, done, errors = digests_of(1, 200), threading.Event(), []

    def look() -> None:
        try:
            while not done.is_set():
                assert all(place is not None for place in world.index.get_many(known))
                assert world.index.get(known[-1]) is not None
        except BaseException as error:
            errors.append(error)

    ask, answer = os.pipe(), os.pipe()

    def look_from_outside() -> None:
        mine = World(tmp_path, rows=200)
        while command := os.read(ask[0], 1):
            found = all(place is not None for place in mine.index.get_many(digests_of(command[0], 200)))
            os.write(answer[1], b"y" if found else b"n")

    child = in_child(lambda: (os.close(ask[1]), look_from_outside()))
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for end in range(4, 40, 4):
            world.sync(0, end)
            sizes.append(world.index._open().info()["map_size"])
            os.write(ask[1], bytes([end - 1]))
            assert os.read(answer[0], 1) == b"y"
    finally:
        done.set()
        os.close(ask[1])
        for thread in threads:
            thread.join()
    assert outcome(child) == 0 and not errors
    assert sizes[-1] >= 4 * sizes[0], "the map has grown more than once"
    world.check(0, 36)


# -- forks ---------------------------------------------------------------------------------------------------------------


def test_after_a_fork_parent_and_child_read_and_write(world: World) -> None:
    world.sync(0, 5)
    for end in range(6, 16, 2):

        def child(end: int = end) -> None:
            world.check(0, end - 1)
            world.sync(0, end)
            world.check(0, end)

        world.sync(0, end - 1)
        forked = in_child(child)
        world.sync(0, end - 1)  # while the child writes
        assert world.index.get(COMMON) is not None
        assert outcome(forked) == 0
    world.sync(0, 14)
    world.check(0, 14)
    assert not World(world.folder).index.rebuilt


def test_forks_among_reading_and_writing_threads_leave_everybody_unharmed(world: World) -> None:
    world.sync(0, 5)
    known, done, errors = digests_of(3), threading.Event(), []

    def run(step: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                step()
        except BaseException as error:
            errors.append(error)

    def look() -> None:
        assert None not in world.index.get_many(known)

    ends = iter(range(6, 10_000))
    threads = [threading.Thread(target=run, args=(look,)) for _ in range(2)]
    threads.append(threading.Thread(target=run, args=(lambda: world.sync(max(0, (end := next(ends)) - 40), end),)))
    known = [COMMON]
    for thread in threads:
        thread.start()
    try:
        codes = []
        for _ in range(15):

            def child() -> None:
                assert world.index.get(COMMON) is not None
                applied = world.index.applied()
                assert applied is not None
                assert None not in world.index.get_many(digests_of(applied[0] - 1))

            codes.append(outcome(in_child(child)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 15 and not errors
    end = next(ends) + 1
    world.sync(end - 3, end)
    world.check(end - 3, end)


# -- many processes ----------------------------------------------------------------------------------------------------


def test_four_processes_read_while_one_writes(world: World) -> None:
    """Whoever sees that an entry is applied finds everything of it; what is in every pack is never missing."""
    world.sync(0, 3)
    reports = [os.pipe() for _ in range(4)]
    last = 60

    def reader(report: int) -> None:
        mine = World(world.folder)
        seen = 0
        while seen < last:
            applied = mine.index.applied()
            assert applied is not None
            newest = mine.index.get_many(digests_of(applied[0] - 1))
            assert None not in newest, applied
            assert mine.index.get(COMMON) is not None
            if applied[0] > seen:
                seen = applied[0]
                os.write(report, seen.to_bytes(2, "big"))

    children = [in_child(lambda write=write: reader(write)) for _, write in reports]  # type: ignore[misc]
    seen = [0] * 4
    for end in range(4, last + 1):
        # Packs live for 40 entries: those that the readers ask for are not removed before they have seen newer ones.
        world.sync(max(0, end - 40), end)
        if end % 10 == 0:
            for at, (read, _) in enumerate(reports):
                while seen[at] < end:
                    seen[at] = int.from_bytes(os.read(read, 2), "big")
    assert [outcome(child) for child in children] == [0] * 4
    world.check(last - 40, last)


# -- damage and full disks -----------------------------------------------------------------------------------------------


def test_an_index_that_is_deleted_while_it_is_open_is_filled_again(world: World) -> None:
    world.sync(0, 5)
    shutil.rmtree(world.folder)
    assert world.index.get(digests_of(2)[5]) is not None, "what is open goes on"
    world.sync(0, 6)
    world.check(0, 6)
    assert World(world.folder).index.applied() == (6, World.entry_digest(6))


def test_an_index_with_overwritten_pages_is_filled_again_or_still_right(world: World) -> None:
    """Only the meta pages: LMDB does not checksum others, and the store checks what it reads against its digest."""
    world.sync(0, 5)
    world.index.close()
    path = world.index.path / "data.mdb"
    for at in (0, 16, 24, 4096 + 16):
        data = bytearray(path.read_bytes())
        data[at : at + 8] = b"\xff" * 8
        path.write_bytes(data)
        again = World(world.folder)
        again.sync(0, 5)
        again.check(0, 5)
        again.index.close()


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.6, 0.9])
def test_an_index_that_is_cut_short_is_filled_again_or_still_right(world: World, keep: float) -> None:
    """A page beyond the end of a mapped file would end the process."""
    world.sync(0, 40)
    world.index.close()
    path = world.index.path / "data.mdb"
    os.truncate(path, int(path.stat().st_size * keep))
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from test_index import World\n"
        "again = World(Path(sys.argv[1])); again.sync(0, 40); again.check(0, 40)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(world.folder), *sys.path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_a_usable_cache_directory_it_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    world = World(tmp_path / "file")
    world.sync(0, 5)
    world.check(0, 5)
    place = world.index.path
    assert place.exists() and not place.is_relative_to(tmp_path)
    world.index.close()
    assert not place.exists()


@pytest.mark.requires_root
def test_a_full_disk_is_told_and_leaves_the_store_usable(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    world = World(place / "cache", rows=1_000)
    try:
        with pytest.raises(StoreFull, match="no space left"):
            world.sync(0, 40)
        world.sync(0, 1)
        world.check(0, 1)
    finally:
        world.index.close()
        subprocess.run(["umount", place], check=True)


def test_a_store_finds_the_copy_that_is_left_when_a_pack_goes(store: Store, tmp_path: Path) -> None:
    """Two writers that do not see each other store the same value; then one of the packs is removed from the log's state."""
    other = Store.open(store.url, cache_dir=tmp_path / "other")
    names = {writer.put(b"the same value" * 10) for writer in (store, other)}
    store.flush()
    other.flush()
    store.refresh()
    (name,) = names
    first, second = store._index.places(name)
    state = store.state
    removed = LogState(state.sequence + 1, bytes(32), {}, {second.pack: state.packs[second.pack]})
    store._index.sync(removed, lambda sequence: state.head, lambda pack: [])
    assert store._index.get(name) == second and first.pack != second.pack
