"""The operations of a daemon, without a network: what is put and read is what a local Store has, and what is wrong is refused by type."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from flight_data import new_store, records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore.cache import HotCache
from leptonstore.daemon import bounds
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.reachable import Reachable
from leptonstore.daemon.service import Service
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    Conflict,
    Damaged,
    LeptonError,
    NotFound,
    NotPermitted,
    StoreFull,
    TierUnavailable,
    TooBusy,
)
from leptonstore.format import pack as lpk
from leptonstore.format.commit import Commit, encode_commit
from leptonstore.store import Store
from leptonstore.store.wire.messages import Request, payload_of
from leptonstore.store.wire.records import FOUND
from leptonstore.testing.faults import FaultyPacks

ADMIN = Principal("admin", "admin", (Grant(Scope.ADMIN),))
OTHER = Principal("other", "other", (Grant(Scope.ADMIN),))
ROWS = 4_000
SMALL = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """A service as a plane uses it."""

    def __init__(self, service: Service, principal: Principal = ADMIN) -> None:
        self.service, self.principal = service, principal

    def act(self, op: str, payload: bytes = b"", **arguments: Any) -> Any:
        return self.service.act(self.principal, Request(op, arguments, payload))

    def table(self, op: str, payload: bytes = b"", **arguments: Any) -> pa.Table:
        schema, batches = self.service.stream(self.principal, Request(op, arguments, payload))
        return pa.Table.from_batches(list(batches), schema)

    def put(self, session: str, *batches: pa.RecordBatch) -> dict[str, Any]:
        request = Request("put", {"session": session})
        return self.service.receive(self.principal, request, batches[0].schema, batches, lambda total: None)

    def open(self) -> str:
        return str(self.act("open")["session"])

    def values(self, digests: list[bytes], **arguments: Any) -> list[tuple[int, bytes]]:
        table = self.table("get", payload_of(digests), **arguments)
        return list(zip(table["kind"].to_pylist(), table["data"].to_pylist(), strict=True))

    def commit(self, session: str, message: str = "made", parents: tuple[bytes, ...] = ()) -> str:
        """An empty table as a commit, put into the session."""
        made = encode_commit(
            Commit("dataset", pa.schema([("id", pa.int64())]), ("id",), None, 0, 0, parents, message, {})
        )
        self.put(session, records([(digest_of(made), made)], content=lpk.CONTENT_META))
        return digest_of(made).hex()

    def publish(
        self, session: str | None, ref: str, old: str | None, new: str | None, id: str = "1" * 32, **more: Any
    ) -> Any:
        updates = [{"name": ref, "old": old, "new": new}]
        return self.act("publish", session=session, id=id, action="commit", updates=updates, **more)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def served(tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    with new_store(tmp_path) as store:
        reachable = Reachable(store)
        service = Service(store, sight=reachable.visible, may_reach=reachable.may_reach, clock=clock)
        yield Driver(service)
        service.close()
        reachable.close()


def numbers(rows: int) -> Source:
    """Fixed and variable width, nulls, and values that are chunks of their own."""
    rng = np.random.default_rng(rows)
    values = [
        None if at % 7 == 0 else rng.bytes(int(rng.integers(0, 60_000)) if at % 5 == 0 else at % 50)
        for at in range(rows)
    ]
    table = pa.table(
        {
            "id": np.arange(rows),
            "x": pa.array(rng.standard_normal(rows), pa.float32(), mask=rng.random(rows) < 0.1),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 255, rows * 16, np.uint8)), 16),
            "value": pa.array(values, pa.binary()),
            "text": pa.array([f"row {at}" * (at % 9) for at in range(rows)]),
        }
    )
    return Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=1_000)))


# -- values ------------------------------------------------------------------------------------------------------------


@SMALL
@given(st.lists(st.binary(max_size=5_000) | st.integers(1, 300_000).map(bytes), min_size=1, max_size=12))
def test_what_is_put_is_what_a_local_store_reads(served: Driver, values: list[bytes]) -> None:
    named = [(digest_of(value), value) for value in values]
    session = served.open()
    put = served.put(session, records(named))
    assert (put["records"], put["bytes"]) == (len(values), sum(map(len, values)))
    served.act("flush", session=session)
    served.act("close", session=session)
    digests = [digest for digest, _ in named]
    assert served.values(digests) == [(1, value) for value in values]
    with served.service.store.again() as local:
        assert list(local.get_many(digests)) == values
    found = np.frombuffer(served.act("find", payload_of(digests)), FOUND)
    assert found["kind"].tolist() == [1] * len(values)
    assert found["plain"].tolist() == [len(value) for value in values]


def test_a_long_value_is_put_by_its_pieces_and_read_whole_or_by_them(served: Driver) -> None:
    store = served.service.store
    value = np.random.default_rng(0).bytes(7 << 20)
    pieces = [bytes(piece) for piece in store.chunker.cut(memoryview(value))]
    assert len(pieces) > 1
    named = [(digest_of(piece), piece) for piece in pieces]
    listed = lpk.encode_chunk_list([(digest, len(piece)) for digest, piece in named])
    session = served.open()
    served.put(session, records(named), records([(digest_of(value), listed)], kind=lpk.KIND_CHUNK_LIST))
    served.act("flush", session=session)
    assert served.values([digest_of(value)]) == [(1, value)]
    assert served.values([digest_of(value)], whole=False) == [(2, listed)]
    with store.again() as local:
        assert local.get(digest_of(value)) == value
    (found,) = np.frombuffer(served.act("find", payload_of([digest_of(value)])), FOUND)
    assert (found["kind"], found["plain"]) == (2, len(value))


def test_bytes_under_a_forged_digest_are_refused_and_nothing_is_kept(served: Driver) -> None:
    session = served.open()
    forged = digest_of(b"something that others rely on")
    with pytest.raises(ChunkCorrupt) as raised:
        served.put(session, records([(forged, b"something else")]))
    assert raised.value.digest == forged.hex()
    served.act("flush", session=session)
    assert np.frombuffer(served.act("find", payload_of([forged])), FOUND)["kind"].tolist() == [0]
    with pytest.raises(ChunkMissing):
        served.values([forged])


def test_a_list_whose_pieces_are_another_value_is_refused(served: Driver) -> None:
    session = served.open()
    piece = b"x" * 100_000
    served.put(session, records([(digest_of(piece), piece)]))
    listed = lpk.encode_chunk_list([(digest_of(piece), len(piece))] * 2)
    for data, error in (
        (listed, ChunkCorrupt),  # of a value that it is not
        (lpk.encode_chunk_list([(digest_of(piece), len(piece) - 1)]), ChunkCorrupt),
        (lpk.encode_chunk_list([(bytes(32), 10)]), BadInput),  # a piece that nobody put
        (listed[:-1], BadInput),
        (b"", BadInput),
    ):
        with pytest.raises(error):
            served.put(session, records([(digest_of(b"the value"), data)], kind=lpk.KIND_CHUNK_LIST))
    served.act("flush", session=session)
    with pytest.raises(ChunkMissing):
        served.values([digest_of(b"the value")])


def test_batches_of_another_shape_are_refused(served: Driver) -> None:
    session = served.open()
    good = records([(digest_of(b"a"), b"a")])
    for at, wrong in ((1, 5), (1, 3), (2, 0), (3, 7)):
        columns = good.columns
        columns[at] = pa.array([wrong], pa.uint8())
        with pytest.raises(BadInput):
            served.put(session, pa.RecordBatch.from_arrays(columns, schema=good.schema))
    with pytest.raises(BadInput):
        served.put(session, pa.record_batch([pa.array([1])], ["digest"]))
    with_null = pa.RecordBatch.from_arrays([*good.columns[:4], pa.array([None], pa.large_binary())], schema=good.schema)
    with pytest.raises(BadInput):
        served.put(session, with_null)


def test_a_chunk_above_what_this_store_cuts_is_refused(served: Driver) -> None:
    value = bytes(served.service.store.config.chunks.cut_above + 1)
    with pytest.raises(BadInput, match="cuts above"):
        served.put(served.open(), records([(digest_of(value), value)]))


def test_what_another_process_publishes_is_found(served: Driver) -> None:
    with served.service.store.again() as local:
        digest = local.put(b"from elsewhere")
        local.flush()
    assert served.values([digest]) == [(1, b"from elsewhere")]


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["plain", "cached"])
def tables(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Driver, pa.Table]]:
    place = tmp_path_factory.mktemp("tables")
    with new_store(place) as store:
        write_dataset(store, "mixed", numbers(ROWS))
        cache = HotCache(place / "hot", 64 << 20) if request.param == "cached" else None
        service = Service(store, cache=cache)
        yield Driver(service), Dataset.open(store, "mixed").to_arrow()
        service.close()
        if cache is not None:
            cache.close()


COLUMNS = st.none() | st.lists(st.sampled_from(["id", "x", "vector", "value", "text"]), min_size=1, unique=True)


@SMALL
@given(
    ends=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)),
    columns=COLUMNS,
    batch_rows=st.none() | st.integers(1, 4_000),
)
def test_rows_are_those_of_the_dataset(
    tables: tuple[Driver, pa.Table], ends: tuple[int, int], columns: list[str] | None, batch_rows: int | None
) -> None:
    driver, whole = tables
    start, stop = sorted(ends)
    expected = whole.slice(start, stop - start)
    if columns is not None:
        expected = expected.select(columns)
    arguments = {"dataset": "mixed", "start": start, "stop": stop, "columns": columns, "batch_rows": batch_rows}
    schema, batches = driver.service.stream(ADMIN, Request("rows", arguments))
    found = list(batches)
    assert pa.Table.from_batches(found, schema).equals(expected)
    sizes = [batch.num_rows for batch in found]
    if batch_rows is not None:
        assert all(size == batch_rows for size in sizes[:-1])
        assert all(size <= batch_rows for size in sizes)
    else:
        assert all(batch.nbytes >= bounds.BATCH_BYTES_MIN for batch in found[:-1])


@SMALL
@given(
    rows=st.lists(st.integers(0, ROWS - 1), max_size=300), columns=COLUMNS, batch_rows=st.none() | st.integers(1, 100)
)
def test_take_gives_the_rows_in_the_order_asked(
    tables: tuple[Driver, pa.Table], rows: list[int], columns: list[str] | None, batch_rows: int | None
) -> None:
    driver, whole = tables
    expected = whole.take(pa.array(rows, pa.int64()))
    if columns is not None:
        expected = expected.select(columns)
    payload = np.array(rows, "<i8").tobytes()
    assert driver.table("take", payload, dataset="mixed", columns=columns, batch_rows=batch_rows).equals(expected)


def test_rows_where_a_condition_is_true(tables: tuple[Driver, pa.Table]) -> None:
    driver, whole = tables
    found = driver.table("rows", dataset="mixed", where="id >= 100 and id < 3000 and x > 0", columns=["id", "value"])
    expected = whole.filter((pc.field("id") >= 100) & (pc.field("id") < 3000) & (pc.field("x") > 0)).select(
        ["id", "value"]
    )
    assert found.equals(expected)
    part = driver.table("rows", dataset="mixed", where="id >= 100", start=50, stop=150, columns=["id"])
    assert part["id"].to_pylist() == list(range(100, 150))
    with pytest.raises(BadInput):
        driver.table("rows", dataset="mixed", where="no_such_column > 3")


def test_a_batch_is_bounded_in_bytes_however_many_rows_are_asked_for_in_one(
    tables: tuple[Driver, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, whole = tables
    monkeypatch.setattr(bounds, "BATCH_BYTES_MAX", 1 << 20)
    schema, batches = driver.service.stream(ADMIN, Request("rows", {"dataset": "mixed", "batch_rows": ROWS}))
    found = list(batches)
    assert len(found) > 2
    assert all(batch.nbytes <= (1 << 20) + 2 * bounds.BATCH_BYTES for batch in found)
    assert pa.Table.from_batches(found, schema).equals(whole)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dataset": "mixed", "start": -1},
        {"dataset": "mixed", "start": 10, "stop": 5},
        {"dataset": "mixed", "stop": ROWS + 1},
        {"dataset": "mixed", "start": True},
        {"dataset": "mixed", "start": 1.5},
        {"dataset": "mixed", "batch_rows": 0},
        {"dataset": "mixed", "columns": ["id", 3]},
        {"dataset": "mixed", "columns": ["none"]},
        {"dataset": "mixed", "columns": "id"},
        {"dataset": "mixed", "kind": "nothing"},
        {"dataset": 7},
        {"dataset": "mixed\0"},
        {"dataset": "../mixed"},
        {"dataset": "mixed@nothing"},
        {"dataset": "mixed~5"},
        {"dataset": "none"},
        {"dataset": "x" * 10_000},
        {"dataset": "mixed", "where": "((((((" * 100},
        {},
    ],
)
def test_arguments_that_are_wrong_are_refused_by_type(
    tables: tuple[Driver, pa.Table], arguments: dict[str, Any]
) -> None:
    with pytest.raises((BadInput, NotFound)):
        tables[0].table("rows", **arguments)


@pytest.mark.parametrize("payload", [b"1234567", np.array([ROWS], "<i8").tobytes(), np.array([-1], "<i8").tobytes()])
def test_rows_that_there_are_not_are_refused(tables: tuple[Driver, pa.Table], payload: bytes) -> None:
    with pytest.raises(BadInput):
        tables[0].table("take", payload, dataset="mixed")


def test_memory_of_a_stream_does_not_grow_with_it(tables: tuple[Driver, pa.Table]) -> None:
    """Batches are made as they are asked for: a client that stops reading costs what it has asked for."""
    driver, _ = tables
    _, batches = driver.service.stream(ADMIN, Request("rows", {"dataset": "mixed"}))
    first = next(batches)
    assert first.nbytes <= 4 * bounds.BATCH_BYTES
    batches.close()  # type: ignore[attr-defined]


def test_nothing_of_another_store_comes_out_of_the_hot_cache_that_they_share(tmp_path: Path) -> None:
    """All stores of a user on a host have one cache, by digest: a daemon answers only for what its own store has."""
    cache = HotCache(tmp_path / "hot", 16 << 20)
    with new_store(tmp_path / "one") as one, new_store(tmp_path / "other") as other:
        value, long = np.random.default_rng(0).bytes(50_000), np.random.default_rng(1).bytes(6 << 20)
        digests = [other.put(value), other.put(long)]
        other.flush()
        for store, there in ((other, True), (one, False)):
            service = Service(store, cache=cache)
            driver = Driver(service)
            for digest, data in zip(digests, (value, long), strict=True):
                for _ in range(2):  # the second time out of the cache
                    if there:
                        assert driver.values([digest]) == [(1, data)]
                    else:
                        with pytest.raises(ChunkMissing):
                            driver.values([digest])
            service.close()
    cache.close()


# -- publishing --------------------------------------------------------------------------------------------------------


def test_of_two_writers_to_one_branch_one_wins_and_the_other_is_told(served: Driver) -> None:
    one, other = served.open(), served.open()
    first, second = served.commit(one, "first"), served.commit(other, "second")
    served.publish(one, "dataset/birds/main", None, first)
    with pytest.raises(Conflict):
        served.publish(other, "dataset/birds/main", None, second, id="2" * 32)
    assert served.act("state")["state"]["refs"]["dataset/birds/main"]["commit"] == first
    served.publish(other, "dataset/birds/main", first, second, id="3" * 32)  # it has looked again, and decided
    assert served.act("state")["state"]["refs"]["dataset/birds/main"]["commit"] == second


def test_a_publication_whose_answer_was_lost_is_found_by_its_id(served: Driver) -> None:
    session = served.open()
    commit = served.commit(session)
    before = served.service.store.state.sequence
    told = served.publish(session, "dataset/birds/main", None, commit)
    assert told["again"] is False
    again = served.publish(session, "dataset/birds/main", None, commit)
    assert (again["sequence"], again["again"]) == (told["sequence"], True)
    # So does another daemon of the store, or this one started anew: it has neither the session nor a memory of it.
    store = served.service.store.again()
    service = Service(store)
    fresh = Driver(service)
    found = fresh.publish(None, "dataset/birds/main", None, commit, since=before)
    assert (found["sequence"], found["again"]) == (told["sequence"], True)
    with pytest.raises(BadInput):  # what was never published is not found
        fresh.publish(None, "dataset/birds/main", commit, "ab" * 32, since=before)
    with pytest.raises(BadInput):  # nor what others published under an id that was read in the log
        fresh.publish(None, "dataset/cats/main", None, commit, since=before)
    service.close()
    store.close()


def test_the_same_work_done_again_in_a_new_session_after_a_lost_answer_is_no_conflict(served: Driver) -> None:
    one, other = served.open(), served.open()
    commit = served.commit(one)
    told = served.publish(one, "dataset/birds/main", None, commit)
    served.service.publisher._done.clear()  # the daemon was started anew
    served.commit(other)
    again = served.publish(other, "dataset/birds/main", None, commit)
    assert (again["sequence"], again["again"]) == (told["sequence"], True)


@pytest.mark.parametrize(
    "update",
    [
        {"name": "birds", "old": None, "new": None},
        {"name": "dataset/../main", "old": None, "new": None},
        {"name": "dataset/birds/main/more", "old": None, "new": None},
        {"name": "sorcery/birds/main", "old": None, "new": None},
        {"name": "dataset/birds/2026-01-01", "old": None, "new": "COMMIT"},
        {"name": "dataset/birds/main", "old": None, "new": "AB" * 32},
        {"name": "dataset/birds/main", "old": None, "new": "ab"},
        {"name": "dataset/birds/main", "old": None, "new": "COMMIT", "metrics": [1]},
        {"name": "dataset/birds/main", "old": None, "new": "COMMIT", "metrics": {"x": "y" * 20_000}},
        {"name": "dataset/birds/main", "old": None, "new": "COMMIT", "tag": 1},
        {"old": None, "new": "COMMIT"},
        "dataset/birds/main",
        None,
    ],
)
def test_updates_that_are_none_are_refused_and_nothing_moves(served: Driver, update: Any) -> None:
    session = served.open()
    commit = served.commit(session)
    filled = json.loads(json.dumps(update).replace("COMMIT", commit))
    with pytest.raises(BadInput):
        served.act("publish", session=session, id="1" * 32, action="commit", updates=[filled])
    assert served.act("state")["state"]["refs"] == {}


def test_a_commit_that_nobody_put_is_not_published(served: Driver) -> None:
    """Whoever may write the whole store is trusted with what it names only as far as a local process is: what it reaches must be there
    once garbage collection has run."""
    writer = Driver(served.service, Principal("w", "w", (Grant(Scope.WRITE, "birds"),)))
    session = writer.open()
    with pytest.raises(NotPermitted):
        writer.publish(session, "dataset/birds/main", None, "ab" * 32)
    assert served.act("state")["state"]["refs"] == {}


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_that_nobody_uses_is_forgotten_with_what_was_not_flushed(served: Driver, clock: Clock) -> None:
    session = served.open()
    kept, lost = b"kept" * 1_000, b"lost" * 1_000
    served.put(session, records([(digest_of(kept), kept)]))
    served.act("flush", session=session)
    served.put(session, records([(digest_of(lost), lost)]))
    clock.now += bounds.SESSION_IDLE_S - 1
    assert served.service.sessions.expire() == 0
    clock.now += 1
    assert served.service.sessions.expire() == 1
    with pytest.raises(NotFound, match="no such write session"):
        served.act("flush", session=session)
    assert np.frombuffer(served.act("find", payload_of([digest_of(kept), digest_of(lost)])), FOUND)[
        "kind"
    ].tolist() == [1, 0]


def test_a_session_in_use_does_not_time_out(served: Driver, clock: Clock) -> None:
    session = served.open()
    with served.service.sessions.use(ADMIN, session):
        clock.now += 10 * bounds.SESSION_IDLE_S
        assert served.service.sessions.expire() == 0
    assert served.service.sessions.expire() == 0  # it was used until now


def test_a_session_that_is_closed_while_it_is_put_to_ends_with_that(served: Driver) -> None:
    session = served.open()
    one, other = (np.random.default_rng(seed).bytes(50_000) for seed in (1, 2))
    store = served.service.sessions.peek(ADMIN, session).store  # type: ignore[union-attr]

    def batches() -> Iterator[pa.RecordBatch]:
        yield records([(digest_of(one), one)])
        served.act("close", session=session)
        yield records([(digest_of(other), other)])

    request = Request("put", {"session": session})
    done = served.service.receive(ADMIN, request, records([]).schema, batches(), lambda total: None)
    assert done["records"] == 2
    with pytest.raises(NotFound):
        served.act("flush", session=session)
    assert not store._writer.pending  # it was closed, and what was not flushed is forgotten
    assert np.frombuffer(served.act("find", payload_of([digest_of(one)])), FOUND)["kind"].tolist() == [0]


def test_nobody_else_can_name_a_session(served: Driver) -> None:
    session = served.open()
    other = Driver(served.service, OTHER)
    value = records([(digest_of(b"x"), b"x")])
    for call in (
        lambda: other.act("flush", session=session),
        lambda: other.put(session, value),
        lambda: other.act("find", payload_of([bytes(32)]), session=session),
    ):
        with pytest.raises(NotFound):
            call()
    other.act("close", session=session)
    served.act("flush", session=session)  # it is still there


def test_sessions_are_bounded_for_one_credential_and_in_all(served: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SESSIONS_OF_ONE_MAX", 2)
    monkeypatch.setattr(bounds, "SESSIONS_MAX", 3)
    served.open()
    last = served.open()
    with pytest.raises(TooBusy, match="this credential"):
        served.open()
    other = Driver(served.service, OTHER)
    other.open()
    with pytest.raises(TooBusy, match="are open already"):
        other.open()
    served.act("close", session=last)
    other.open()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_on_a_full_disk_one_session_fails_by_type_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", disk], check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        with new_store(disk) as store:
            service = Service(store)
            driver = Driver(service)
            one, other = driver.open(), driver.open()
            good = np.random.default_rng(1).bytes(100_000)
            driver.put(other, records([(digest_of(good), good)]))
            driver.act("flush", session=other)
            values = [np.random.default_rng(seed).bytes(1 << 20) for seed in range(2, 40)]
            with pytest.raises(StoreFull) as raised:
                for value in values:
                    driver.put(one, records([(digest_of(value), value)]))
                driver.act("flush", session=one)
            assert str(tmp_path) not in str(raised.value)
            assert driver.values([digest_of(good)]) == [(1, good)]
            small = np.random.default_rng(50).bytes(
                50_000
            )  # what failed has left its room: others go on, and so does it
            for session in (one, other):
                driver.put(session, records([(digest_of(small), small)]))
                driver.act("flush", session=session)
            assert driver.values([digest_of(small)]) == [(1, small)]
            service.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_tier_that_is_away_is_told_by_type_and_without_its_place(served: Driver) -> None:
    store = served.service.store
    faulty = FaultyPacks(store.home)
    digest = store.put(np.random.default_rng(3).bytes(20_000))
    store.flush()
    store.tier.use([faulty], 0)
    faulty.down = TierUnavailable(
        f"{store.url} does not answer: s3://secret-bucket/x timed out", "s3://secret-bucket/x"
    )
    with pytest.raises(TierUnavailable) as raised:
        served.values([digest])
    assert store.url not in str(raised.value) and "secret" not in raised.value.tier
    faulty.down = None
    assert [kind for kind, _ in served.values([digest])] == [1]
    faulty.fail_next("read", OSError(5, "Input/output error"), times=2)
    with pytest.raises(Damaged):
        served.values([digest])
    assert [kind for kind, _ in served.values([digest])] == [1]


def test_no_room_is_left_by_a_session_that_cannot_be_opened(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:

        def fails() -> Store:
            raise TierUnavailable("away")

        service = Service(store, open_store=fails)
        driver = Driver(service)
        for _ in range(bounds.SESSIONS_OF_ONE_MAX + 1):
            with pytest.raises(TierUnavailable):
                driver.open()
        service.close()


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_bug_is_told_as_an_id_that_the_log_has(
    served: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*arguments: Any) -> None:
        raise RuntimeError("secret of the implementation")

    monkeypatch.setattr(served.service.reading, "state", bug)
    with pytest.raises(LeptonError) as raised:
        served.act("state")
    told = str(raised.value)
    assert type(raised.value) is LeptonError
    assert "secret" not in told and "Traceback" not in told
    identity = told.split()[2].rstrip(":")
    (record,) = [one for one in caplog.records if identity in one.getMessage()]
    assert record.exc_info is not None and "secret of the implementation" in str(record.exc_info[1])


def test_places_of_this_host_stand_in_no_answer(served: Driver) -> None:
    store = served.service.store
    secrets = (store.url, str(store.cache_path("")), "/tmp", "/root")
    for spec in ("none", "none@" + "ab" * 32, "none@2026-01-01"):
        with pytest.raises(LeptonError) as raised:
            served.table("rows", dataset=spec)
        assert not any(secret in str(raised.value) for secret in secrets)
    with pytest.raises(LeptonError) as raised:
        served.act("lease", commit="ab" * 32)
    assert not any(secret in str(raised.value) for secret in secrets)
    assert not any(secret in json.dumps(served.act(op)) for op in ("hello", "state") for secret in secrets)


def test_settings_are_changed_only_to_what_every_writer_understands(served: Driver) -> None:
    served.act("append", settings={"quota_bytes": 1 << 30})
    assert served.act("state")["state"]["settings"] == {"quota_bytes": 1 << 30}
    refused: tuple[dict[str, Any], ...] = (
        {"settings": {"quota_bytes": "much"}},
        {"settings": {"tiers": {"tiers": []}}},
        {"settings": {"references": {"0": "file:///etc"}}},
        {"settings": {"remotes": {"origin": 7}}},
        {"settings": {"anything": 1}},
        {"settings": {}, "requires": ["sorcery"]},
        {"settings": [], "requires": []},
        {"settings": {}, "requires": [7]},
    )
    for wrong in refused:
        with pytest.raises(BadInput):
            served.act("append", **wrong)
    served.act("append", settings={"quota_bytes": None})
    with served.service.store.again() as local:
        assert local.state.settings == {} and local.state.requires == ()


# -- the log -----------------------------------------------------------------------------------------------------------


def test_state_and_history_are_those_of_the_store(served: Driver) -> None:
    write_dataset(served.service.store, "birds", numbers(100))
    state = served.act("state")
    assert state["state"]["refs"].keys() == {"dataset/birds/main"}
    assert served.act("state", known=state["sequence"]) == {"sequence": state["sequence"], "state": None}
    entries = [json.loads(one) for one in served.table("history")["entry"].to_pylist()]
    local = list(served.service.store.history())
    assert [entry["sequence"] for entry in entries] == [entry["sequence"] for entry in local]
    assert [entry["refs"] for entry in entries] == [entry["refs"] for entry in local]
    assert not any("packs_added" in entry for entry in entries)
    last = served.table("history", since=state["sequence"] - 1)
    assert last.num_rows == 1


def test_who_may_read_one_dataset_sees_nothing_of_another(served: Driver) -> None:
    store = served.service.store
    write_dataset(store, "birds", numbers(50))
    write_dataset(store, "cats", numbers(60))
    reader = Driver(served.service, Principal("r", "r", (Grant(Scope.READ, "birds"),)))
    seen = json.dumps(reader.act("state")) + str(reader.table("history")["entry"].to_pylist())
    assert "birds" in seen and "cats" not in seen
    birds, cats = (Dataset.open(store, name) for name in ("birds", "cats"))
    digests = [bytes.fromhex(one.commit) for one in (birds, cats)]
    assert np.frombuffer(reader.act("find", payload_of(digests)), FOUND)["kind"].tolist() == [1, 0]
    with pytest.raises(ChunkMissing):
        reader.values(digests)
    assert reader.table("rows", dataset="birds").num_rows == 50
    with pytest.raises(NotPermitted):
        reader.table("rows", dataset="cats")
    with pytest.raises(NotFound):  # by way of what it may read
        reader.table("rows", dataset=f"birds@{cats.commit}")


# -- what readers hold -------------------------------------------------------------------------------------------------


def test_a_lease_lasts_as_long_as_it_is_renewed(served: Driver, clock: Clock) -> None:
    store = served.service.store
    commit = write_dataset(store, "birds", numbers(10)).commit
    lease = served.act("lease", commit=commit)["lease"]
    clock.now += bounds.LEASE_IDLE_S - 1
    assert served.act("lease", commit=commit, lease=lease)["lease"] == lease
    clock.now += bounds.LEASE_IDLE_S - 1
    served.service.leases.expire()
    assert len(served.service.leases) == 1
    clock.now += 1
    served.service.leases.expire()
    assert len(served.service.leases) == 0
    again = served.act("lease", commit=commit, lease=lease)["lease"]
    assert again != lease
    Driver(served.service, OTHER).act("release", lease=again)  # not its own
    assert len(served.service.leases) == 1
    served.act("release", lease=again)
    served.act("release", lease=again)
    assert len(served.service.leases) == 0
