"""docs/FORMAT.md is enough: a reader that was written from it reads every byte of what the real code writes, and agrees with it."""

from __future__ import annotations

import ast
import json
import random
import shutil
from pathlib import Path

import make_golden
import pytest
import reader
import reader_common
import reader_packs
import reader_pages
import reader_sealed
from reader import Bad, StoreReader

from leptonstore.dataset import Dataset, delete_ref, write_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.format import pack as lpk
from leptonstore.store import Store
from leptonstore.store.keys import Passphrase

GOLDEN = sorted(path.parent for path in make_golden.GOLDEN.glob("*/expected.json"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that the format has."""
    place = tmp_path_factory.mktemp("format") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place.parent / "cache"))
        with make_golden.create(place) as store:
            make_golden.fill(store)
    return place


def test_the_reader_imports_nothing_of_ours() -> None:
    for module in (reader, reader_common, reader_packs, reader_pages, reader_sealed):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("leptonstore", "loaders", "pyarrow", "numpy")}


def test_every_record_is_what_the_store_says(written: Path) -> None:
    found = StoreReader(written)
    with Store.open(written) as store:
        assert set(found.listed) == set(store.state.packs)
        for _, record in found.records():
            if record.kind != lpk.KIND_DICTIONARY:
                assert store.record(record.name) == (record.kind, record.plain)
    assert {pack.content for pack in found.packs} == {lpk.CONTENT_DATA, lpk.CONTENT_META}


def test_everything_that_the_format_has_was_exercised(written: Path) -> None:
    found = StoreReader(written)
    assert set(make_golden.kinds_of(found)) >= {
        "kind 1 codec 0",
        "kind 1 codec 1",
        "kind 1 codec 1 in a group",
        "kind 1 codec 1 in a group with a dictionary",
        "kind 1 codec 2",
        "kind 2 codec 1",
        "kind 3 codec 1 with a dictionary",
    }
    root = found.value(bytes.fromhex(found.commit(found.refs["dataset/long/main"])["root"]))
    assert root[4] == 1, "the tree has no internal node"
    root = found.value(bytes.fromhex(found.commit(found.refs["dataset/keyed/main"])["root"]))
    assert root[4] == 1 and root[5] == 1, "the keyed tree has no node with keys"


def test_every_row_is_what_the_store_says(written: Path) -> None:
    found = StoreReader(written)
    with Store.open(written) as store:
        assert found.refs == {name: record.commit for name, record in store.state.refs.items()} and len(found.refs) == 5
        for ref, commit in found.refs.items():
            table = Dataset.open(store, ref.split("/")[1])[:]
            columns = {name: make_golden.plain_values(table[name]) for name in table.column_names}
            assert repr(found.rows(commit)) == repr(columns), ref
    large = found.rows(found.refs["dataset/large/main"])
    assert large["text"] == make_golden.large_table()["text"].to_pylist()


def test_values_put_alone_are_read_too(written: Path) -> None:
    found = StoreReader(written)
    for value in make_golden.small_values():
        assert found.value(reader.digest_of(value)) == value


def test_an_encrypted_store_is_read_too(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    with make_golden.create_sealed(tmp_path / "store") as store:
        make_golden.fill(store)
        found = StoreReader(tmp_path / "store", make_golden.PASSPHRASE.encode())
        names = {name: record.commit for name, record in store.state.refs.items()}
        assert found.refs == names and len(names) == 5
        for ref, commit in found.refs.items():
            table = Dataset.open(store, ref.split("/")[1])[:]
            columns = {name: make_golden.plain_values(table[name]) for name in table.column_names}
            assert repr(found.rows(commit)) == repr(columns), ref
        for value in make_golden.small_values():
            assert found.value(reader.digest_of(value)) == value
    for wrong in (b"wrong", None):
        with pytest.raises(Bad):
            StoreReader(tmp_path / "store", wrong)


@pytest.mark.parametrize("pack_index", [0, -1])
def test_the_reader_notices_every_altered_byte(written: Path, pack_index: int) -> None:
    """It verifies, so what it accepts in the other tests means something."""
    found = StoreReader(written)
    pack = found.packs[pack_index]
    data = (written / "packs" / pack.pack_id[:2] / f"{pack.pack_id}.pack").read_bytes()
    reader.read_pack(data, pack.pack_id, found.store_id)
    places = [*range(0, 200), *range(len(data) - 200, len(data)), *range(200, len(data) - 200, len(data) // 40)]
    for at in sorted(set(places)):
        altered = bytearray(data)
        altered[at] ^= 0x10
        with pytest.raises((Bad, ValueError)):
            reader.read_pack(bytes(altered), pack.pack_id, found.store_id)


def test_there_is_a_golden_store() -> None:
    assert GOLDEN, "run tests/format/make_golden.py"


@pytest.mark.parametrize("place", GOLDEN, ids=lambda place: place.name)
def test_a_golden_store_stays_readable(place: Path, tmp_path: Path) -> None:
    """By today's code and by the reader, with the rows of the day on which it was made."""
    expected = json.loads((place / "expected.json").read_text())
    shutil.copytree(place / "store", tmp_path / "store")
    secret = expected["passphrase"] and expected["passphrase"].encode()
    if secret:
        pytest.importorskip("cryptography")
    found = StoreReader(tmp_path / "store", secret)
    assert found.refs == expected["refs"]
    assert make_golden.kinds_of(found) == expected["records"]
    with Store.open(tmp_path / "store", unlock=Passphrase(secret) if secret else None) as store:
        assert {name: record.commit for name, record in store.state.refs.items()} == expected["refs"]
        for ref, commit in expected["refs"].items():
            table = Dataset.open(store, ref.split("/")[1])[:]
            columns = {name: make_golden.plain_values(table[name]) for name in table.column_names}
            assert make_golden.sum_of(columns) == make_golden.sum_of(found.rows(commit)) == expected["rows"][ref]
        for value in make_golden.small_values():
            assert store.get(reader.digest_of(value)) == found.value(reader.digest_of(value)) == value


def test_references_lead_where_the_spec_says(tmp_path: Path) -> None:
    sizes = {"a/1.jpg": 20_000, "b/2.jpg": 5 << 20, "b/3 %.jpg": 100}
    for name, size in sizes.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(random.Random(name).randbytes(size))
    with Store.create(tmp_path / "store") as store:
        source = open_source(tmp_path / "source", "image-folder", reference=True)
        commit = write_dataset(store, "photos", source).commit
    found = StoreReader(tmp_path / "store")
    assert "kind 5 codec 0" in make_golden.kinds_of(found)
    images = found.rows(commit)["image"]
    assert images == [(tmp_path / "source" / name).read_bytes() for name in sorted(sizes)]


def test_a_tag_is_told_by_its_entry_until_it_is_removed(tmp_path: Path) -> None:
    with make_golden.create(tmp_path / "store") as store:
        make_golden.fill(store)
        ref = next(name for name in store.state.refs if name.startswith("dataset/"))
        version = Dataset.open(store, "@".join(ref.split("/")[1:]))
        version.tag("v1")
        delete_ref(store, "dataset", version.name, "v1")
        version.tag("v2")
        version.branch("side")
        names = set(store.state.refs)
    found = StoreReader(tmp_path / "store")
    assert found.tags == {f"dataset/{version.name}/v2"} and set(found.refs) == names
