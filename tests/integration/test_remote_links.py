"""What a client does when daemons are not there, end, lose an answer, or refuse: typed errors, within a time, and nothing twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from remote_data import TOKEN, Served, served, serving, source

from leptonstore import limits
from leptonstore.cli.group import lepton
from leptonstore.cli.runtime import run
from leptonstore.daemon import service as daemon_service
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.digest import digest_of
from leptonstore.errors import (
    BadInput,
    ChunkCorrupt,
    ChunkMissing,
    CommitExpired,
    Conflict,
    FormatTooNew,
    NotAuthenticated,
    StoreMissing,
    TierUnavailable,
    TooBusy,
)
from leptonstore.store import Store
from leptonstore.store.wire import flight_plane, link
from leptonstore.store.wire.plane import Unreached
from leptonstore.testing.tiers import content
from loaders import DataLoader


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(tmp_path, monkeypatch) as one:
        yield one


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up soon."""
    monkeypatch.setattr(limits, "WIRE_RETRY_S", 1.0)
    monkeypatch.setattr(limits, "WIRE_OPEN_S", 1.0)


# -- nobody, or somebody else ----------------------------------------------------------------------------------------------


def test_where_no_daemon_is_that_is_said_in_one_line_within_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    url = "lepton://127.0.0.1:9/birds"  # the port "discard": nothing listens
    began = time.monotonic()
    with pytest.raises(TierUnavailable, match="no daemon answers") as told:
        Store.open(url)
    assert time.monotonic() - began < limits.WIRE_OPEN_S + 15 and told.value.tier == url
    assert run(lepton, ["ls", "--store", url]) == 11
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lepton serve" in said and url in said


@pytest.mark.parametrize(
    "url", ["lepton://", "lepton:///x", "lepton://h", "lepton://h:0/x", "lepton://h:99999/x", "lepton://a b/x"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="lepton://HOST"):
        Store.open(url)


def test_a_url_holds_no_secret() -> None:
    with pytest.raises(BadInput, match="LEPTON_TOKEN"):
        Store.open("lepton://token@host:7400/x")


def test_a_store_of_another_name_is_not_opened(there: Served) -> None:
    with pytest.raises(StoreMissing, match="serves no store 'other'; it serves 'store'"):
        Store.open(there.url.replace("/store", "/other"))


def test_a_daemon_of_a_later_protocol_is_refused(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_service, "PROTOCOL", 2)
    with pytest.raises(FormatTooNew, match="upgrade LeptonStore"):
        there.open()


@pytest.mark.parametrize("token", ["", "wrong", "x" * 60])
def test_without_a_valid_token_nothing_opens(there: Served, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_TOKEN", token)
    with pytest.raises(NotAuthenticated):
        there.open()


def test_another_store_that_took_the_place_is_not_read(there: Served, tmp_path: Path, impatient: None) -> None:
    port = there.server.port
    with there.open() as store:
        store.put(b"here")
        store.flush()
        there.server.shutdown()
        other = Store.create(tmp_path / "other" / "store")
        with other, serving(other, port), pytest.raises(StoreMissing, match="another store"):
            store.get(digest_of(b"here"))


# -- a daemon that ends ----------------------------------------------------------------------------------------------------


def test_reads_go_on_when_the_daemon_was_started_anew(there: Served) -> None:
    with there.open() as store:
        ds = write_dataset(store, "t", source())
        want = ds.take([5, 10, 20])
        again = Dataset.open(store, "t")
        port = there.server.port
        there.server.shutdown()
        with serving(there.store, port):
            assert again.take([5, 10, 20]).equals(want)
            assert [one["action"] for one in store.history()] == ["commit"]


def test_an_epoch_goes_on_at_another_daemon_in_the_same_order(there: Served, ends: ExitStack) -> None:
    second = ends.enter_context(serving(there.store, name="store"))
    url = there.url.replace("/store", f",127.0.0.1:{second.server.port}/store")
    with Store.open(url) as store:
        ds = write_dataset(store, "t", source())
        loader = DataLoader(ds, batch_size=50, shuffle=True, columns=["id", "image"])
        want = [batch["id"].tolist() for batch in loader]
        local = DataLoader(Dataset.open(there.store, "t"), batch_size=50, shuffle=True, columns=["id", "image"])
        assert [batch["id"].tolist() for batch in local] == want, "a served dataset has the order of the store's own"
        fresh = Dataset.open(store, "t")
        loader = DataLoader(fresh, batch_size=50, shuffle=True, columns=["id", "image"])
        got = []
        for at, batch in enumerate(loader):
            got.append(batch["id"].tolist())
            if at == 5:
                there.server.shutdown()
        assert got == want
        assert store.link.hosts[0].port == second.server.port


@pytest.mark.parametrize("told", ["127.0.0.1:{}", "lepton://127.0.0.1:{}/store"])
def test_members_that_a_daemon_tells_are_asked_when_it_is_gone(there: Served, ends: ExitStack, told: str) -> None:
    second = ends.enter_context(serving(there.store, name="store"))
    there.server.service.members = lambda: ["nonsense nonsense", "lepton://", told.format(second.server.port)]
    with there.open() as store:
        digest = store.put(b"x" * 5_000)
        store.flush()
        there.server.shutdown()
        assert store.get(digest) == b"x" * 5_000


def test_a_connection_that_is_dropped_under_a_request_is_asked_for_anew(there: Served) -> None:
    """Another request's failure drops it: what was under way goes on, or goes on elsewhere."""
    with there.open() as store:
        values = [content(size, size) for size in range(300_000, 300_040)]
        digests = [store.put(value) for value in values]
        store.flush()
        reading = store.get_many(digests)
        got = [next(reading)]
        store.link.close()
        got += reading
        assert [bytes(one) for one in got] == values


def test_a_client_gives_up_after_its_time(there: Served, impatient: None) -> None:
    with there.open() as store:
        digest = store.put(b"x")
        store.flush()
        there.server.shutdown()
        began = time.monotonic()
        with pytest.raises(TierUnavailable, match="no daemon answers"):
            store.get(digest)
        assert time.monotonic() - began < 30  # and not the usual minute


def test_what_was_not_flushed_is_told_lost_and_the_work_can_be_done_again(there: Served) -> None:
    with there.open() as store:
        values = [content(size, size) for size in range(9_000, 9_040)]
        for value in values[:20]:
            store.put(value)
        store.flush()
        for value in values[20:]:
            store.put(value)
        store.known_many([digest_of(b"")])  # sends nothing; the session is there
        store._writer._send()
        store._writer._settle()
        port = there.server.port
        there.server.shutdown()
        there.server.service.close()
        with serving(there.store, port):
            with pytest.raises(CommitExpired, match="run it again"):
                store.flush()
            for value in values:
                store.put(value)
            store.flush()
            assert [bytes(one) for one in store.get_many([digest_of(value) for value in values])] == values


def test_a_session_that_held_nothing_is_opened_again_unnoticed(there: Served) -> None:
    with there.open() as store:
        write_dataset(store, "t", source(500))
        there.server.service.sessions.close_all()
        there.server.service.sessions.closed = False
        write_dataset(store, "t", source(600))
        assert len(Dataset.open(there.open(), "t")) == 600


# -- lost answers, and others who were faster ------------------------------------------------------------------------------


def test_a_publication_whose_answer_is_lost_is_made_once(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    real, lost = flight_plane.FlightPlane.act, []

    def act(self: Any, request: bytes, seconds: float) -> bytes:
        answer = real(self, request, seconds)
        if b'"op":"publish"' in request[:4_000] and not lost:
            lost.append(request)
            raise Unreached("the answer was lost")
        return answer

    monkeypatch.setattr(flight_plane.FlightPlane, "act", act)
    with there.open() as store:
        ds = write_dataset(store, "t", source(200))
        assert lost and store.state.refs["dataset/t/main"].commit == ds.commit
        there.store.refresh()
        assert [entry["action"] for entry in there.store.history() if entry["refs"]] == ["commit"]


def test_a_publication_that_went_through_before_its_daemon_ended_is_found_again(
    there: Served, ends: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = flight_plane.FlightPlane.act, []

    def act(self: Any, request: bytes, seconds: float) -> bytes:
        answer = real(self, request, seconds)
        if b'"op":"publish"' in request[:4_000] and not lost:
            lost.append(request)
            port = there.server.port
            there.server.shutdown()
            there.server.service.close()
            ends.enter_context(serving(there.store, port))
            raise Unreached("the daemon has ended")
        return answer

    monkeypatch.setattr(flight_plane.FlightPlane, "act", act)
    with there.open() as store:
        ds = write_dataset(store, "t", source(200))
        assert lost and Dataset.open(store, "t").commit == ds.commit
        assert [entry["action"] for entry in there.store.history() if entry["refs"]] == ["commit"]


def test_two_clients_of_one_branch_get_a_conflict_or_rebase(there: Served) -> None:
    with there.open() as one:
        first = write_dataset(one, "t", source(300))
    with there.open() as one, there.open() as two:
        heads = [Dataset.open(store, "t") for store in (one, two)]
        for seed, head in enumerate(heads):  # the second has not seen what the first one made
            head.append(next(iter(source(50, seed + 1).batches())))
        assert len(Dataset.open(there.open(), "t")) == 400

        def decide(state: Any) -> Any:
            from leptonstore.store import RefUpdate

            return (RefUpdate("dataset/t/main", first.commit, first.commit),)

        with pytest.raises(Conflict):
            two.publish("commit", decide)


def test_a_busy_daemon_is_asked_again(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with there.open() as store:
        digest = store.put(b"x" * 100)
        store.flush()
        reading = there.server.service.reading
        real, refused = reading.get, []

        def get(*arguments: Any) -> Any:
            if len(refused) < 2:
                refused.append(1)
                raise TooBusy("too much at once", 0.01)
            return real(*arguments)

        monkeypatch.setattr(reading, "get", get)
        assert store.get(digest) == b"x" * 100 and len(refused) == 2


# -- credentials -----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_revoked_in_mid_epoch_ends_it_with_a_typed_error(
    there: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with there.open() as store:
        write_dataset(store, "t", source())
    ring = TokenRing.of(there.store)
    made, token = ring.add("reader", (Grant(Scope.READ),))
    monkeypatch.setenv("LEPTON_TOKEN", token)
    with there.open() as store:
        ds = Dataset.open(store, "t")
        loader = DataLoader(ds, batch_size=20, shuffle=True, columns=["image"], num_workers=0)
        with pytest.raises(NotAuthenticated):
            for at, _ in enumerate(loader):
                if at == 2:
                    ring.revoke(made.id)
        monkeypatch.setenv("LEPTON_TOKEN", TOKEN)
        assert ds.take([1]).num_rows == 1, "a token that replaces it is used by the next request"


# -- what is sent ----------------------------------------------------------------------------------------------------------


def test_what_a_daemon_forges_is_never_given(there: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from leptonstore.daemon import reading

    with there.open() as store:
        digest = store.put(content(1, 70_000))
        store.flush()
        real = reading.Reading.get

        def forged(*arguments: Any) -> Any:
            for batch in real(*arguments):
                data = bytearray(batch.column(1)[0].as_py())
                data[0] ^= 1
                yield reading.get_batch([1], [bytes(data)])

        monkeypatch.setattr(reading.Reading, "get", forged)
        with pytest.raises(ChunkCorrupt):
            store.get(digest)
        with pytest.raises(ChunkCorrupt):
            store.find_many([digest]).read_into([memoryview(bytearray(70_000))])


def test_a_missing_chunk_is_missing(there: Served) -> None:
    with there.open() as store, pytest.raises(ChunkMissing):
        store.get(digest_of(b"nobody"))


def test_the_clock_of_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = link._Patience(0.2)
    began = time.monotonic()
    while patience.pause():
        pass
    assert time.monotonic() - began < 10
