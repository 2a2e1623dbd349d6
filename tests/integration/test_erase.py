"""Erase: rows gone from every version, tier, dictionary and cache; everything else as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore.cache import HotCache
from leptonstore.chunking import ChunkSizes
from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.erase import erase
from leptonstore.dataset.graph import ancestry
from leptonstore.format import pack as lpk
from leptonstore.store import Store, check_store, reader
from leptonstore.store.config import StoreConfig
from leptonstore.store.keys import Passphrase, ScryptCost
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.scan import rows_of
from leptonstore.store.tier_mark import claim_tier
from leptonstore.tiers.block_format import format_block

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
