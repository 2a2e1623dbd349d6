"""Erase: rows gone from every version, tier, dictionary and cache; everything else as it was."""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from leptonstore.cache import HotCache
from leptonstore.chunking import ChunkSizes
from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.dataset import erase as dataset_erase
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.erase import erase, resume
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.graph import ancestry
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.integrate import merge
from leptonstore.dataset.reflog import publications
from leptonstore.dataset.write import publish_commit, write_table
from leptonstore.errors import BadInput, CommitExpired, Conflict, Damaged, LeptonWarning
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit
from leptonstore.store import RefUpdate, Store, check_store, reader
from leptonstore.store import purge as store_purge
from leptonstore.store.config import StoreConfig
from leptonstore.store.gc import collect
from leptonstore.store.keys import Passphrase, ScryptCost
from leptonstore.store.log import LogState
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.repair import repair_store
from leptonstore.store.scan import rows_of
from leptonstore.store.tier_mark import claim_tier
from leptonstore.tiers.block_format import format_block
from tests.crash.kill import die_at

# Small pieces, so that a value of 100 KB is a chunk list.
CONFIG = StoreConfig(chunks=ChunkSizes(cut_above=64 << 10, min_size=4 << 10, avg_size=16 << 10, max_size=64 << 10))


WORDS = [random.Random(number).randbytes(4).hex() for number in range(300)]


def person(number: int) -> dict[str, object]:
    """A row with a short text that is alike in all, a value of its own, and for some one that is cut into pieces."""
    rng = random.Random(number)
    name = f"{rng.choice(['Ada', 'Bo', 'Cy'])} {rng.randbytes(6).hex()}"
    size = 100_000 if number % 400 == 7 else 20_000 if number % 100 == 3 else 60
    words = " ".join(rng.choice(WORDS) for _ in range(40))
    text = f'{{"name": "{name}", "address": {{"city": "{rng.choice(["Bern", "Oslo"])}"}}, "report": "{words}"}}'
    return {"id": number, "text": text, "score": rng.random(), "data": rng.randbytes(size)}


SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), metadata={"lepton.part_bytes": "900"}),  # small pages, which share dictionaries
        ("score", pa.float64()),
        ("data", pa.large_binary()),
    ]
)


def table(numbers: range | list[int]) -> pa.Table:
    return pa.Table.from_pylist([person(number) for number in numbers], SCHEMA)


def write(store: Store, name: str, rows: pa.Table, keyed: bool = False, **lineage: object) -> Dataset:
    source = Source(rows.schema, ("id",), lambda: iter(rows.to_batches(500)), rows.num_rows, dict(lineage), keyed=keyed)
    return write_dataset(store, name, source)


def without(rows: pa.Table, gone: set[int]) -> pa.Table:
    return rows.filter(pa.array([one not in gone for one in rows.column("id").to_pylist()]))


def secrets_of(numbers: set[int]) -> list[bytes]:
    """What must not be anywhere: the texts, and 32 bytes of every 2 KiB of the values."""
    out = []
    for one in map(person, sorted(numbers)):
        data = one["data"]
        assert isinstance(data, bytes)
        out += [str(one["text"]).encode(), *(data[at : at + 32] for at in range(0, len(data) - 31, 2048))]
    return out


def records(store: Store) -> Iterator[tuple[str, int, bytes]]:
    """Every record of every pack in every tier, listed or not, decoded."""
    for tier in store.tier.tiers:
        for pack in tier.packs():
            opened = store.opened_in(tier, pack)
            rows, why = rows_of(tier, opened, store.config.store_id, None)
            assert why is None
            for row in rows:
                yield (pack, *reader.read_record(tier, row, opened))


def found_in(store: Store, wanted: list[bytes]) -> set[str]:
    return {pack for pack, _, plain in records(store) if any(one in plain for one in wanted)}


def raw_found(folder: Path, wanted: list[bytes]) -> list[Path]:
    """Files that hold a value as it is: records that did not shrink, dictionaries, caches, volumes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if any(one in path.read_bytes() for one in wanted)]


GONE = {5, 7, 103, 104, 250, 251, 777, 903, 1203, 1999}  # short, of their own, and in pieces


def make(where: Path, kind: str) -> Store:
    """A store whose new packs go to: its home (also encrypted), a block volume, or a bucket in memory."""
    if kind == "encrypted":
        return Store.create(where / "store", CONFIG, unlock=Passphrase(b"word"), cost=ScryptCost(16))
    store = Store.create(where / "store", CONFIG)
    if kind in ("block", "memory"):
        url = f"memory://{where.name}" if kind == "memory" else str(where / "volume")
        if kind == "block":
            format_block(Path(url), 16 << 20, store_id=store.config.store_id, unit=64 << 10)
            url = f"block://{url}"
        claim_tier(url, store)
        placement = Placement((TierSetting(HOME), TierSetting("far", url)), write_to="far")
        store.configure(placement.setting(), ("tiers",))
    return store


@pytest.fixture(params=["home", "encrypted", "block", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "encrypted":
        pytest.importorskip("cryptography")
    if request.param == "memory":
        pytest.importorskip("obstore")
    with make(tmp_path, request.param) as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    with make(tmp_path, "home") as made:
        yield made


def history(store: Store, keyed: bool) -> tuple[dict[str, pa.Table], Dataset]:
    """Three versions and a tag on a branch, another branch, and what each ref should hold afterwards."""
    first = write(store, "people", table(range(2000)), keyed)
    create_ref(store, "dataset", "people", "v1", first.commit, tag=True)
    second = first.append(table(range(2000, 2300)))
    create_ref(store, "dataset", "people", "side", second.commit)
    side = Dataset.open(store, "people@side").delete(rows=[0, 1])
    third = second.delete(where="id = 2222")
    write(store, "others", table(range(5000, 5400)))
    expected = {
        "people@v1": without(table(range(2000)), GONE),
        "people@main~1": without(table(range(2300)), GONE),
        "people@side": without(table(range(2300)), GONE | {0, 1}),
        "people@main": without(table(range(2300)), GONE | {2222}),
        "others": table(range(5000, 5400)),
    }
    assert side.commit != third.commit
    return expected, third


def condition(gone: set[int]) -> str:
    return f"id in ({', '.join(map(str, sorted(gone)))})"


def holds(store: Store, expected: dict[str, pa.Table]) -> None:
    for spec, rows in expected.items():
        assert Dataset.open(store, spec).to_arrow().equals(rows), spec
    report = check_store(store, read_data=True)
    assert report.clean, report.problems


# -- what is promised ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [True, False])
def test_ten_rows_are_in_no_record_dictionary_or_cache_of_any_tier_and_all_others_are_as_they_were(
    store: Store, tmp_path: Path, keyed: bool
) -> None:
    expected, head = history(store, keyed)
    wanted = secrets_of(GONE)
    assert found_in(store, wanted) and any(kind == lpk.KIND_DICTIONARY for _, kind, _ in records(store))
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with HotCache(place / f"erase-{tmp_path.name}-{id(store)}", 64 << 20) as cache:
        try:
            cached = head.cached(cache)
            assert cached.to_arrow().num_rows == 2299
            assert raw_found(cache.path, wanted)
            del cached
            report = erase(store, "people", condition(GONE), caches=[cache])
            assert report.absent and report.complete and not report.shared, report
            assert not raw_found(cache.path, wanted) and not cache.stats()["values"]
        finally:
            for path in cache.path.glob("*"):
                path.unlink()
            cache.path.rmdir()
    assert not found_in(store, wanted)
    assert not raw_found(tmp_path, wanted)
    holds(store, expected)
    with pytest.warns(UserWarning, match="was erased"):
        assert Dataset.open(store, f"people@{head.commit}").commit == Dataset.open(store, "people").commit
    assert len(ancestry(store, Dataset.open(store, "people").commit)) == 3
    assert all(info.commit not in store.state.replaced for info in list_refs(store))
    assert [info.tag for info in list_refs(store, "dataset", "people") if info.branch == "v1"] == [True]


def test_a_dry_run_says_what_goes_and_changes_nothing(store: Store, tmp_path: Path) -> None:
    _, head = history(store, True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    state = store.state.to_json()
    report = erase(store, "people", condition(GONE), dry_run=True)
    assert report.dry_run and set(report.rows.values()) == {10} and len(report.rows) == 4
    assert report.refs == ["dataset/people/main", "dataset/people/side", "dataset/people/v1"]
    store.refresh()
    assert store.state.to_json() == state
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path in before}
    assert head.to_arrow().num_rows == 2299


def test_nothing_to_erase_is_said_and_nothing_is_written(plain: Store) -> None:
    history(plain, True)
    sequence = plain.state.sequence
    report = erase(plain, "people", "id = 999999")
    assert not report.replaced and plain.state.sequence == sequence


# -- which rows ------------------------------------------------------------------------------------------------------


def test_a_keyed_sample_goes_in_every_form_that_it_had(plain: Store) -> None:
    """The condition fits only one version of the row: it is the same sample in the others."""
    ds = write(plain, "people", table(range(1200)), keyed=True)
    old = str(person(9)["text"])
    ds.update([{"id": 9, "text": "somebody else altogether, who writes to nobody"}])
    report = erase(plain, "people", "text = 'somebody else altogether, who writes to nobody'")
    assert report.absent
    assert Dataset.open(plain, "people~1").to_arrow().equals(without(table(range(1200)), {9}))
    assert not found_in(plain, [old.encode()[:60]])


def test_an_edited_row_without_a_key_is_asked_about(plain: Store) -> None:
    ds = write(plain, "people", table(range(1200)))
    rows = table(range(1200))
    edited = rows.set_column(2, "score", pa.array([-1.0 if one == 9 else 0.0 for one in range(1200)]))
    second = write(plain, "people", edited)
    with pytest.raises(BadInput, match="--same-identity"):
        erase(plain, "people", "score < 0")
    assert Dataset.open(plain, "people").commit == second.commit
    kept = erase(plain, "people", "score < 0", same_identity=False)
    assert kept.rows == {second.commit: 1}, "the version before still has the row, as it was told"
    assert Dataset.open(plain, "people~1").commit == ds.commit


def test_row_numbers_are_those_of_the_version_that_is_named(plain: Store) -> None:
    write(plain, "people", table(range(1200)))
    Dataset.open(plain, "people").delete(rows=[0, 1, 2])
    assert erase(plain, "people", rows=[10, 11]).absent, "ids 13 and 14"
    assert Dataset.open(plain, "people").to_arrow().equals(without(table(range(3, 1200)), {13, 14}))
    assert Dataset.open(plain, "people~1").to_arrow().equals(without(table(range(1200)), {13, 14}))


def test_rows_go_from_versions_that_lack_the_column_of_the_condition(plain: Store) -> None:
    write(plain, "people", table(range(1200)))
    Dataset.open(plain, "people").drop_columns(["score"])
    report = erase(plain, "people~1", f"score = {person(77)['score']!r}")
    assert report.absent and len(report.rows) == 2
    assert 77 not in Dataset.open(plain, "people").to_arrow(["id"]).column(0).to_pylist()


def test_rows_of_history_go_when_the_newest_version_has_none(plain: Store) -> None:
    write(plain, "people", table(range(1200)), keyed=True)
    Dataset.open(plain, "people").delete(where="id >= 0")
    assert erase(plain, "people", keys=[{"id": 5}]).absent
    assert Dataset.open(plain, "people~1").to_arrow().equals(without(table(range(1200)), {5}))


def test_samples_may_be_told_apart_by_images_or_long_texts(plain: Store) -> None:
    """Identity columns with tensors, and with values that are chunks of their own; a later version has another column."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 255, 1200 * 36, np.uint8)
    images = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), (6, 6)), pa.FixedSizeListArray.from_arrays(pa.array(numbers), 36)
    )
    texts = [str(person(one)["text"]) for one in range(1200)]
    texts[9] = "long " * 5000 + texts[9]
    rows = pa.table({"image": images, "text": texts})
    source = Source(rows.schema, ("image", "text"), lambda: iter(rows.to_batches()), rows.num_rows, {})
    ds = write_dataset(plain, "pictures", source)
    ds.add_column("number", list(range(1200)))
    report = erase(plain, "pictures", "number in (9, 10)")
    assert report.absent and set(report.rows.values()) == {2} and len(report.rows) == 2
    left = Dataset.open(plain, "pictures~1").to_arrow()
    assert left.column("text").to_pylist() == texts[:9] + texts[11:]


def test_all_rows_can_go(plain: Store) -> None:
    write(plain, "people", table(range(1100)))
    assert erase(plain, "people", "id >= 0").absent
    assert len(Dataset.open(plain, "people")) == 0


def test_what_was_forgotten_is_gone_too(plain: Store) -> None:
    """Versions that nothing leads to any more, whose bytes no collection has taken yet."""
    write(plain, "people", table(range(1200)))
    Dataset.open(plain, "people").delete(where="id = 50")
    Dataset.open(plain, "people").append(table([1200]))
    forget_all_but(plain, "dataset", "people", 1)
    wanted = secrets_of({50, 51})
    assert found_in(plain, wanted)
    report = erase(plain, "people", "id = 51")
    assert report.absent and len(report.rows) == 1
    assert not found_in(plain, wanted), "row 50 stood in garbage only"
    assert Dataset.open(plain, "people").to_arrow().num_rows == 1199


# -- content that others share ---------------------------------------------------------------------------------------


def test_rows_with_the_same_content_are_named_and_stay(plain: Store) -> None:
    """Another row with the same large value, and another dataset with the same text."""
    rows = table(range(1200))
    data = rows.column("data").to_pylist()
    data[1100] = data[3]  # a value of its own
    rows = rows.set_column(3, SCHEMA.field("data"), pa.array(data, pa.large_binary()))
    write(plain, "people", rows, keyed=True)
    write(plain, "copy", table([4]))
    foreseen = erase(plain, "people", "id in (3, 4)", dry_run=True)
    assert [(one.rows, one.column) for one in foreseen.shared] == [((1100,), "data")]
    report = erase(plain, "people", "id in (3, 4)")
    assert report.absent
    named = {(one.version, one.rows, one.column) for one in report.shared}
    assert {one for one in named if one[0] == "dataset/people/main"} == {("dataset/people/main", (1098,), "data")}
    # Its bounds are the values of the only row: nodes are told, too.
    assert {one[1:] for one in named if one[0] == "dataset/copy/main"} == {
        ((0,), "text"),
        ((0,), "score"),
        ((0,), "data"),
        ((), ""),
    }
    assert Dataset.open(plain, "copy").to_arrow().equals(table([4]))
    assert Dataset.open(plain, "people")[1098]["data"] == data[3]


def test_everywhere_takes_them_from_other_datasets_too(plain: Store) -> None:
    write(plain, "people", table(range(1200)), keyed=True)
    write_dataset(plain, "copy", _source(table([4, 5000])), branch="only")
    write(plain, "unlike", pa.table({"id": ["4"], "number": [4]}))
    report = erase(plain, "people", "id = 4 and score >= 0", everywhere=True)
    assert report.absent and not report.shared
    assert Dataset.open(plain, "copy@only").to_arrow().equals(table([5000]))
    assert len(Dataset.open(plain, "unlike")) == 1, "it has no such columns"


def test_what_versions_say_of_themselves_does_not_quote_erased_rows(plain: Store) -> None:
    name = str(person(31)["text"])
    ds = write(plain, "people", table(range(1200)), source=name)
    ds.append(table([2000]), message=f"one more than {name}")
    report = erase(plain, "people", "id = 31")
    assert report.absent and not report.shared
    assert Dataset.open(plain, "people").commit_object.message == "one more than (erased)"


def test_descendants_are_linked_anew_whatever_their_name(plain: Store) -> None:
    """A merge, a branch of another dataset, and a version that has none of the rows: all name the versions that stand for the old ones."""
    first = write(plain, "people", table(range(1200)), keyed=True)
    create_ref(plain, "dataset", "people", "side", first.commit)
    Dataset.open(plain, "people@side").append(table([3000]))
    first.append(table([4000]))
    merge(plain, "people@side", "people")
    derived = write_dataset(plain, "derived", _source(table([9, 5000])), parents=(first.commit,))
    model = Commit("model", SCHEMA, ("id",), None, 0, 0, lineage={"data": first.commit})
    publish_commit(plain, model, "model/net/main", None)
    report = erase(plain, "people", "id = 9")
    assert report.absent and len(report.rows) == 4 and len(report.replaced) == 5
    merged = Dataset.open(plain, "people")
    assert merged.to_arrow().equals(without(table([*range(1200), 3000, 4000]), {9}))
    new_first = report.replaced[first.commit]
    assert new_first in ancestry(plain, merged.commit) and len(ancestry(plain, merged.commit)) == 4
    again = Dataset.open(plain, "derived")
    assert again.commit == report.replaced[derived.commit]
    assert [parent.hex() for parent in again.commit_object.parents] == [new_first]
    assert again.to_arrow().equals(table([9, 5000])), "nobody asked for these rows"
    assert {one.version for one in report.shared} == {"dataset/derived/main"}
    assert plain.state.refs["model/net/main"].commit not in plain.state.replaced, (
        "what it was trained on stays what it was"
    )


def test_dates_lead_to_what_stands_for_the_version_of_then(plain: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    yesterday = time.time() - 86_400
    with monkeypatch.context() as clock:
        clock.setattr("leptonstore.store.log.time.time_ns", lambda: int(yesterday * 1e9))
        first = write(plain, "people", table(range(1200)), keyed=True)
    first.append(table([3000]))
    date = datetime.datetime.fromtimestamp(yesterday).date().isoformat()
    report = erase(plain, "people", "id = 9")
    with pytest.warns(LeptonWarning, match="was erased"):
        then = Dataset.open(plain, f"people@{date}")
    assert then.commit == report.replaced[first.commit] and len(then) == 1199
    assert round(publications(plain)[then.commit].time_s) == round(yesterday)


def test_a_second_erasure_goes_on_from_the_first(plain: Store) -> None:
    first = write(plain, "people", table(range(1200)), keyed=True)
    assert erase(plain, "people", "id = 9").absent and erase(plain, "people", "id = 10").absent
    assert plain.state.epoch == plain.state.purged == 2
    with pytest.warns(LeptonWarning):
        assert Dataset.open(plain, f"people@{first.commit[:10]}").commit == Dataset.open(plain, "people").commit
    with Store.open(plain.url) as fresh:  # also from a snapshot
        data = fresh.documents.encode("snapshot", fresh.state.to_json())
        assert LogState.from_json(fresh.documents.parse(data, "snapshot", "s"), "s") == fresh.state


def test_a_file_of_a_directory_can_be_erased(plain: Store, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.txt").write_text(str(person(number)["text"]))
    source = open_source(folder, "files")
    write_dataset(plain, "files", source)
    report = erase(plain, "files", "path = '7.txt'")
    assert report.absent and len(Dataset.open(plain, "files")) == 30
    assert not found_in(plain, secrets_of({7})[:1])
    assert not [path for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if b"7.txt" in _content(path)]


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


# -- places ----------------------------------------------------------------------------------------------------------


def test_copies_in_every_tier_and_what_lies_about_go(tmp_path: Path) -> None:
    """Two copies of each pack, an extra in a nearer tier, what repair set aside, and what a killed writer left."""
    with Store.create(tmp_path / "store", CONFIG) as store:
        claim_tier(str(tmp_path / "far"), store)
        tiers = (TierSetting(HOME), TierSetting("far", str(tmp_path / "far")))
        store.configure(Placement(tiers, copies=2).setting(), ("tiers",))
        write(store, "people", table(range(1200)), keyed=True)
        apply_moves(store, plan_for(store).moves)
        wanted = secrets_of({7, 8})
        holding = sorted(found_in(store, wanted))
        home, far = (tmp_path / "store", tmp_path / "far")
        copy = home / "packs" / holding[0][:2] / f"{holding[0]}.pack"
        for place in (
            home / "damaged" / copy.name,
            far / "damaged" / copy.name,
            home / "tmp" / "x.tmp",
            far / "tmp" / "y.tmp",
        ):
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(copy.read_bytes())
        report = erase(store, "people", "id in (7, 8)")
        assert report.absent and report.purged.set_aside == 2 and report.purged.temporaries == 2
        assert not found_in(store, wanted) and not raw_found(tmp_path, wanted)
        assert not list((home / "damaged").iterdir()) and not list((far / "tmp").iterdir())
        holds(store, {"people": without(table(range(1200)), {7, 8})})


def test_free_space_of_a_volume_is_zero_and_so_are_the_ends_of_units(tmp_path: Path) -> None:
    with make(tmp_path, "block") as store:
        write(store, "people", table(range(1200)), keyed=True)
        wanted = secrets_of({7})
        assert raw_found(tmp_path, wanted), "random values are stored as they are"
        collect(store)
        report = erase(store, "people", "id = 7")
        assert report.absent and report.purged.wiped_bytes > 0
        assert store.tier.tiers[1].free_not_zero() == 0  # type: ignore[attr-defined]
        assert not raw_found(tmp_path, wanted)


def test_dictionaries_that_were_trained_before_are_gone_even_from_packs_without_the_rows(plain: Store) -> None:
    write(plain, "people", table(range(2000)), keyed=True)
    write(plain, "others", table(range(3000, 5000)))  # by the same object: it goes on with the dictionary that it has
    before = {plain_bytes for _, kind, plain_bytes in records(plain) if kind == lpk.KIND_DICTIONARY}
    assert before
    assert erase(plain, "people", "id = 7").absent
    after = {plain_bytes for _, kind, plain_bytes in records(plain) if kind == lpk.KIND_DICTIONARY}
    assert after and not before & after
    assert all(
        lpk.parse_header(plain.tier.read(pack, 0, lpk.HEADER_BYTES)).epoch == 1
        for pack, kind, _ in records(plain)
        if kind == lpk.KIND_DICTIONARY
    )


def test_a_damaged_pack_stops_the_erasure_before_it_counts_as_complete(plain: Store) -> None:
    write(plain, "people", table(range(1200)), keyed=True)
    write(plain, "others", table(range(3000, 3400)))
    pack = plain.locate(plain_root(plain, "others")).pack  # type: ignore[union-attr]
    path = Path(plain.url) / "packs" / pack[:2] / f"{pack}.pack"
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with Store.open(plain.url, cache_dir=Path(plain.url).parent / "elsewhere") as fresh:
        with pytest.raises(Damaged, match="repair"):
            erase(fresh, "people", "id = 7")
        assert fresh.state.purged < fresh.state.epoch, "pending, not done"
        repair_store(fresh)
        assert resume(fresh).absent
        assert not found_in(fresh, secrets_of({7}))


def plain_root(store: Store, name: str) -> bytes:
    root = Dataset.open(store, name).commit_object.root
    assert root is not None
    return root


def test_the_proof_fails_when_something_was_left(plain: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge that forgets dictionaries, and one that lets a file lie: the search sees both."""
    write(plain, "people", table(range(2000)), keyed=True)
    monkeypatch.setattr(store_purge, "has_old_dictionary", lambda store, pack: False)
    monkeypatch.setattr(store_purge, "leftovers", lambda store: [])
    pack = sorted(found_in(plain, secrets_of({7})))[0]
    data = (Path(plain.url) / "packs" / pack[:2] / f"{pack}.pack").read_bytes()
    remove = store_purge._remove_leftovers

    def put_back(store: Store, report: store_purge.PurgeReport) -> None:
        remove(store, report)
        (Path(store.url) / "packs" / pack[:2]).mkdir(exist_ok=True)
        (Path(store.url) / "packs" / pack[:2] / f"{pack}.pack").write_bytes(data)

    monkeypatch.setattr(store_purge, "_remove_leftovers", put_back)
    report = erase(plain, "people", "id = 7")
    assert not report.absent and any("no entry of the log lists" in line for line in report.found)
    monkeypatch.undo()
    assert plain.tier.pack_bytes(pack) is not None
    assert resume(plain).absent and plain.tier.pack_bytes(pack) is None


# -- others at work --------------------------------------------------------------------------------------------------


def test_readers_and_writers_are_named_and_waited_for(plain: Store) -> None:
    ds = write(plain, "people", table(range(1200)), keyed=True)
    with Store.open(plain.url) as other:
        other.put(b"not published yet" * 100)
        other.put(random.Random(1).randbytes(50_000))
        other._writer.finish()
        with pytest.raises(Conflict, match="writers are at work"):
            erase(plain, "people", "id = 7")
    with plain.lease(ds.commit), pytest.raises(Conflict, match="is being read by process"):
        erase(plain, "people", "id = 7")
    assert Dataset.open(plain, "people").commit == ds.commit and plain.state.epoch == 0
    assert erase(plain, "people", "id = 7").absent


def test_what_is_published_while_it_is_planned_stops_it(plain: Store) -> None:
    """The new version has the rows, and is in no plan."""
    write(plain, "people", table(range(1200)), keyed=True)

    def meanwhile(plan: object) -> bool:
        with Store.open(plain.url) as other:
            Dataset.open(other, "people").append(table([3000]))
        return True

    with pytest.raises(Conflict, match="nothing was erased"):
        erase(plain, "people", "id = 7", confirm=meanwhile)
    plain.refresh()
    assert plain.state.epoch == 0 and len(Dataset.open(plain, "people")) == 1201
    assert erase(plain, "people", "id = 7").absent


def test_a_writer_that_publishes_late_is_told_and_brings_nothing_back(
    plain: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had put the rows before, some of them in packs that the log lists already; nobody saw it when the erasure began."""
    write(plain, "people", table(range(1200)), keyed=True)
    with Store.open(plain.url) as zombie:
        root, rows, plain_bytes = write_table(zombie, _source(table(range(1200, 2400))))
        zombie.flush()
        root, rows, plain_bytes = write_table(zombie, _source(table(range(1190, 2500))))
        for module in (store_purge, dataset_erase):
            monkeypatch.setattr(module, "require_alone", lambda store, commits: None)
        assert erase(plain, "people", "id = 1195").complete
        with pytest.raises(CommitExpired):
            _publish(zombie, root, rows, plain_bytes)
        assert "dataset/late/main" not in zombie.state.refs
        # Done again from its source, it is another matter: somebody wants these rows.
        root, rows, plain_bytes = write_table(zombie, _source(table(range(1200, 2400))))
        _publish(zombie, root, rows, plain_bytes)
    monkeypatch.undo()
    plain.refresh()
    assert Dataset.open(plain, "late").to_arrow().equals(table(range(1200, 2400)))
    assert resume(plain).complete and not found_in(plain, secrets_of({1195}))
    assert check_store(plain, read_data=True).clean


def test_what_comes_from_an_erased_version_is_not_published(plain: Store) -> None:
    """By its lineage, and by its history, as a transfer from a clone would bring it."""
    ds = write(plain, "people", table(range(1200)), keyed=True)
    with Store.open(plain.url) as other:
        old = Dataset.open(other, "people")
        assert len(old.to_arrow()) == 1200
        assert erase(plain, "people", "id = 7").absent
        with pytest.raises(CommitExpired, match="was erased"):
            write_dataset(other, "derived", _source(table([7])), lineage={"source": ds.commit})  # it refreshes, idle
        with pytest.raises(CommitExpired):
            write_dataset(other, "derived", _source(table([8])), parents=(ds.commit,))
        with pytest.raises(CommitExpired):
            other.publish("branch", lambda state: (RefUpdate("dataset/people/back", None, ds.commit),))
        appended = old.append(table([3000]))
        assert appended.to_arrow().equals(pa.concat_tables([without(table(range(1200)), {7}), table([3000])]))
    assert not found_in(plain, secrets_of({7}))


def _source(rows: pa.Table) -> Source:
    return Source(rows.schema, ("id",), lambda: iter(rows.to_batches(300)), rows.num_rows, {})


def _publish(store: Store, root: bytes | None, rows: int, plain_bytes: int) -> str:
    commit = Commit("dataset", SCHEMA, ("id",), root, rows, plain_bytes)
    return publish_commit(store, commit, "dataset/late/main", None)


# -- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "step"), [("home", 13), ("block", 23)])
def test_killed_anywhere_and_run_again_it_is_complete(tmp_path: Path, kind: str, step: int) -> None:
    """The process dies before an operation on a file, early or late: the refs are all as they were, or all moved; the next run ends it."""
    work, kept = tmp_path / "work", tmp_path / "kept"
    work.mkdir()
    with make(work, kind) as store:
        first = write(store, "people", table(range(1200)), keyed=True)
        create_ref(store, "dataset", "people", "v1", first.commit, tag=True)
        head = first.append(table([1200]))
        before = {info.branch: info.commit for info in list_refs(store)}
    shutil.copytree(work, kept)
    wanted, before_entry, after_entry, finished = secrets_of({7, 8}), 0, 0, False
    for operation in range(1, 2000, step):
        shutil.rmtree(work)
        shutil.copytree(kept, work)
        child = os.fork()
        if not child:
            try:
                with Store.open(work / "store", tmp_path / f"cache{operation}") as mine:
                    die_at(operation, reads=False)
                    erase(mine, "people", "id in (7, 8)")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        finished = not os.WIFSIGNALED(status)
        with Store.open(work / "store", tmp_path / f"again{operation}") as again:
            refs = {info.branch: info.commit for info in list_refs(again)}
            moved = [refs[name] != before[name] for name in before]
            assert all(moved) or not any(moved)
            before_entry, after_entry = before_entry + (not any(moved)), after_entry + all(moved)
            if not any(moved):
                assert Dataset.open(again, "people").commit == head.commit
            report = resume(again) if operation % 2 and all(moved) else erase(again, "people", "id in (7, 8)")
            assert report.absent or (report.complete and not report.replaced), "nothing was left to do"
            assert not found_in(again, wanted) and not raw_found(work, wanted)
            rows = without(table(range(1201)), {7, 8})
            holds(again, {"people": rows, "people@v1": rows.slice(0, 1198)})
        if finished:
            break
    assert before_entry and after_entry > 3 and finished


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_asks_prints_the_proof_and_no_value(plain: Store) -> None:
    write(plain, "people", table(range(1200)), keyed=True)
    text = str(person(9)["text"])
    plain.close()

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(lepton, ["erase", *arguments, "--store", plain.url])

    assert run("people", "--key", "9", "--key", "11", "--dry-run").output.startswith(
        "2 rows would be erased from 1 versions"
    )
    refused = run("people", "--key", "9")
    assert refused.exit_code == 2 and "--yes" in refused.output
    done = run("people", "--key", "9", "--key", "11", "--yes")
    assert done.exit_code == 0, done.output
    assert "nothing was found" in done.output and "proof: every record" in done.output and text not in done.output
    again = run("--resume", "--json")
    assert again.exit_code == 0 and json.loads(again.output.splitlines()[-1])["absent"]
    assert run("people", "--rows", "0-2,5", "--yes").exit_code == 0
    with Store.open(plain.url) as store:
        left = without(table(range(1200)), {9, 11, 0, 1, 2, 5})
        assert Dataset.open(store, "people").to_arrow().equals(left)
    assert run("people", "--yes").exit_code == 1, "which rows?"
    assert run().exit_code == 2
