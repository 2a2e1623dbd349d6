"""A directory of files goes in and comes out as it was; what is unchanged is not read; what changes meanwhile is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.export import command as export_command
from leptonstore.cli.import_ import command as import_command
from leptonstore.dataset import Dataset, filetree, write_dataset
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import file_listing, file_reader, open_source
from leptonstore.dataset.source import Source
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, SourceError
from leptonstore.store import Store, check_store
from leptonstore.store.config import StoreConfig
from tests.permissions import of_an_ordinary_user

SIZES = ChunkSizes(cut_above=256 << 10, min_size=16 << 10, avg_size=64 << 10, max_size=256 << 10)
OLD = 1_600_000_000_123_456_789


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", StoreConfig(chunks=SIZES), tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Everything that a directory may hold."""
    root = tmp_path / "tree"
    rng = np.random.default_rng(1)
    (root / "a/b/c").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a-b").write_bytes(b"sorts between a and a/b in plain bytes")
    for size in (0, 1, 4095, 4096, 16_384, 16_385, (256 << 10) + 1, 3 << 20):
        (root / f"a/{size}").write_bytes(rng.bytes(size))
    (root / "a/b/text").write_text("words " * 10_000)
    with open(os.fsencode(root) + b"/a/\xff\xfe not utf-8", "wb") as file:
        file.write(b"bytes")
    with open(root / "sparse", "wb") as file:
        file.seek(20 << 20)
        file.write(b"end")
    os.symlink("a/b", root / "to-folder")
    os.symlink("nowhere", root / "dangling")
    os.chmod(root / "a/1", 0o400)
    os.chmod(root / "a/4095", 0o755)
    os.chmod(root / "a/b/c", 0o750)
    for folder, folders, names in os.walk(os.fsencode(root), topdown=False):
        for name in [*folders, *names]:
            os.utime(os.path.join(folder, name), ns=(OLD, OLD), follow_symlinks=False)
    os.utime(root, ns=(OLD - 5, OLD - 5))
    return root


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Path -> kind, mode, time and content of everything below `root`."""
    top = os.fsencode(root)
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(top):
        for path in [folder, *(os.path.join(folder, name) for name in [*folders, *names])]:
            entry = os.lstat(path)
            content: object = None
            if stat.S_ISREG(entry.st_mode):
                with open(path, "rb") as file:
                    content = digest_of(file.read())
            elif stat.S_ISLNK(entry.st_mode):
                content = os.readlink(path)
            mode = 0 if stat.S_ISLNK(entry.st_mode) else stat.S_IMODE(entry.st_mode)
            found[os.path.relpath(path, top)] = (stat.S_IFMT(entry.st_mode), mode, entry.st_mtime_ns, content)
    return found


def imported(store: Store, tree: Path, **options: bool) -> Dataset:
    return write_dataset(store, "tree", open_source(tree, "files", **options))


def test_a_tree_comes_out_as_it_went_in(store: Store, tree: Path, tmp_path: Path) -> None:
    dataset = imported(store, tree)
    done = export_dataset(dataset, tmp_path / "out")
    assert described(tmp_path / "out") == described(tree)
    assert done.rows == len(dataset) and done.files == 12
    assert (tmp_path / "out/sparse").stat().st_blocks * 512 < 1 << 20, "the hole was filled"
    assert check_store(store, read_data=True).clean


def test_the_command_line_round_trips_a_tree(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = str(tmp_path / "s")
    Store.create(url).close()
    run = CliRunner()
    done = run.invoke(import_command, ["--store", url, "--format", "files", str(tree), "t"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    done = run.invoke(export_command, ["--store", url, "t", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert described(tmp_path / "out") == described(tree)


def test_rows_stand_in_the_order_of_a_walk(store: Store, tree: Path) -> None:
    paths = imported(store, tree).to_arrow(["path"]).column(0).to_pylist()
    assert paths[0] == filetree.ROOT
    assert paths[1:] == sorted(paths[1:], key=lambda path: path.split(b"/"))


def test_small_files_share_pages_and_larger_ones_do_not(store: Store, tree: Path) -> None:
    dataset = imported(store, tree)
    for rows, (column,) in dataset.iter_stored(["data"]):
        marks = column.references
        assert marks is not None and rows == 0
        sizes = dataset.to_arrow(["size"]).column(0).to_pylist()
        kinds = dataset.to_arrow(["kind"]).column(0).to_pylist()
        assert [bool(mark) for mark in marks] == [
            kind == filetree.FILE and size >= 4096 for kind, size in zip(kinds, sizes, strict=True)
        ]


def _at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been touched for a while."""
    monkeypatch.setattr(file_listing, "RACY_NS", -(1 << 62))
    monkeypatch.setattr(file_listing, "RACY_COARSE_NS", -(1 << 62))


def _forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, row: int, name: bytes, size: int) -> None:
        raise AssertionError(f"{name!r} was read")

    monkeypatch.setattr(file_reader.FileReader, "read", refuse)


def test_an_unchanged_tree_is_not_read_again(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_rest(monkeypatch)
    first = imported(store, tree)
    _forbid_reading(monkeypatch)
    sequence = store.state.sequence
    assert imported(store, tree).commit == first.commit and store.state.sequence == sequence
    with pytest.raises(AssertionError, match="was read"):
        imported(store, tree, paranoid=True)


def test_only_what_changed_is_read_and_written(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_rest(monkeypatch)
    imported(store, tree)
    large = tree / f"a/{3 << 20}"
    data = bytearray(large.read_bytes())
    data[1_000_000:1_000_000] = b"inserted"
    large.write_bytes(data)
    (tree / "a/new").write_bytes(b"new")
    (tree / "a-b").unlink()
    seen: list[bytes] = []
    real = file_reader.FileReader.read

    def read(self: file_reader.FileReader, row: int, name: bytes, size: int) -> file_reader.FileContent | None:
        seen.append(name)
        return real(self, row, name, size)

    monkeypatch.setattr(file_reader.FileReader, "read", read)
    before = store.new_bytes
    dataset = imported(store, tree)
    assert sorted(seen) == [b"a/3145728", b"a/new"]
    assert store.new_bytes - before < 700_000, "an insertion in the middle rewrote the file"
    # What was taken over from the last version is what a fresh import finds.
    fresh = Store.create(store.home.root.parent / "fresh", store.config)
    assert imported(fresh, tree).commit_object.root == dataset.commit_object.root


def test_a_change_that_keeps_size_and_time_is_noticed(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor that restores the modification time cannot restore the change time."""
    _at_rest(monkeypatch)
    imported(store, tree)
    path = tree / "a/4096"
    path.write_bytes(b"x" * 4096)
    os.utime(path, ns=(OLD, OLD))
    dataset = imported(store, tree)
    rows = dataset.to_arrow(["path", "data"]).to_pylist()
    assert next(row["data"] for row in rows if row["path"] == b"a/4096") == b"x" * 4096


def test_a_file_touched_just_before_is_read_again(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock may not have ticked between the read and the next write."""
    (tree / "a/1").chmod(0o600)
    imported(store, tree)
    _forbid_reading(monkeypatch)
    with pytest.raises(AssertionError, match="was read"):
        imported(store, tree)


@pytest.mark.parametrize("name", ["a/1", "a/4096", f"a/{(256 << 10) + 1}", f"a/{3 << 20}"])
@pytest.mark.parametrize("change", ["grown", "shrunk", "vanished", "emptied"])
def test_a_file_that_changes_while_the_tree_is_read(store: Store, tree: Path, name: str, change: str) -> None:
    """What is kept is what was read; people are told, and the next import reads it again."""
    source = open_source(tree, "files")
    path = tree / name
    data = path.read_bytes()
    path.chmod(0o600)
    if change == "vanished":
        path.unlink()
    else:
        data = {"grown": data + data + b"more", "shrunk": data[: len(data) // 2], "emptied": b""}[change]
        path.write_bytes(data)
    dataset = write_dataset(store, "tree", source)
    rows = {row["path"]: row for row in dataset.to_arrow().to_pylist()}
    assert len(source.notes) == 1
    if change == "vanished":
        assert name.encode() not in rows and "vanished" in source.notes[0]
    else:
        row = rows[name.encode()]
        assert row["data"] == data and row["size"] == len(data) and "changed" in source.notes[0]
    assert not open_source(tree, "files").unchanged(store, "dataset/tree/main", dataset)


def test_windows_cut_as_the_whole_value_is_cut(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is read in windows has the pieces, and so the bytes in the store, of the same value put at once."""
    path = tree / f"a/{3 << 20}"
    name = store.put(path.read_bytes())
    store.flush()
    before = store.new_bytes
    monkeypatch.setattr(limits, "READ_WINDOW_BYTES", 100_001)
    dataset = imported(store, tree)
    assert store.pieces(name) is not None
    whole = {row["path"]: row["data"] for row in dataset.to_arrow(["path", "data"]).to_pylist()}
    assert digest_of(whole[f"a/{3 << 20}".encode()]) == name
    assert store.new_bytes - before < 1 << 20


def test_devices_and_pipes_are_left_out_and_told(store: Store, tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    source = open_source(tree, "files")
    write_dataset(store, "tree", source)
    assert source.notes == ["1 devices, pipes or sockets were left out"]


def test_an_unreadable_file_is_named(store: Store, tree: Path) -> None:
    (tree / "a/4096").chmod(0)
    with of_an_ordinary_user(), pytest.raises(SourceError, match="a/4096"):
        imported(store, tree)


def test_a_file_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(SourceError, match="not a folder"):
        open_source(tmp_path / "f", "files")


def _rows(*rows: tuple[bytes, int, bytes]) -> Source:
    columns = [
        pa.array([row[0] for row in rows], pa.binary()),
        pa.array([row[1] for row in rows], pa.uint8()),
        pa.array([0o755] * len(rows), pa.uint16()),
        pa.array([OLD] * len(rows), pa.int64()),
        pa.array([len(row[2]) for row in rows], pa.int64()),
        pa.array([row[2] for row in rows], pa.large_binary()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=filetree.SCHEMA)
    return Source(filetree.SCHEMA, ("path",), lambda: iter([batch]))


@pytest.mark.parametrize(
    "rows",
    [
        [(b"../out", filetree.FILE, b"x")],
        [(b"/out", filetree.FILE, b"x")],
        [(b"a/../../out", filetree.FILE, b"x")],
        [(b".", filetree.FILE, b"x")],
        [(b"", filetree.FILE, b"x")],
        [(b"link", filetree.SYMLINK, b"../outside"), (b"link/out", filetree.FILE, b"x")],
        [(b"link", filetree.SYMLINK, b"../outside"), (b"link/d", filetree.DIRECTORY, b"")],
        [(b"..", filetree.DIRECTORY, b"")],
        [(b"x", 7, b"")],
    ],
)
def test_an_export_never_leaves_its_folder(store: Store, tmp_path: Path, rows: list[tuple[bytes, int, bytes]]) -> None:
    (tmp_path / "outside").mkdir()
    dataset = write_dataset(store, "bad", _rows(*rows))
    with pytest.raises(BadInput):
        export_dataset(dataset, tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir()) and not (tmp_path / "out.x").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "out", "store", "cache"}


def test_set_user_id_bits_are_not_restored(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "t"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    os.chmod(source / "f", 0o6755)
    dataset = imported(store, source)
    assert dataset.to_arrow(["mode"]).column(0).to_pylist()[1] == 0o6755
    export_dataset(dataset, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/f").stat().st_mode) == 0o755
