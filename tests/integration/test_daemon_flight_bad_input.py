"""The Flight port and what does not belong there: garbage, half requests, huge and malformed tickets, clients that do not read. The daemon
answers each by type or cuts it off, and answers the next client."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from flight_data import TOKEN, Client, new_store, records, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.daemon import bounds
from leptonstore.daemon.connections import Open, open_connections, peer_of
from leptonstore.daemon.flight import FlightServer
from leptonstore.daemon.operations import OPERATIONS
from leptonstore.dataset import Source, write_dataset
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, ChunkCorrupt, LeptonError, NotAuthenticated, NotFound, StoreFull, TooBusy
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import encode
from tests.integration.waiting import wait_until

SMALL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlightServer]:
    with new_store(tmp_path_factory.mktemp("port")) as store:
        table = pa.table({"id": np.arange(40_000), "x": np.random.default_rng(0).standard_normal(40_000)})
        wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40_000 * 512, np.uint8)), 512)
        table = table.append_column("wide", wide)
        write_dataset(
            store, "numbers", Source(table.schema, ("id",), lambda: iter(table.to_batches(max_chunksize=2_000)))
        )
        with serving(store) as made:
            yield made


@pytest.fixture
def client(server: FlightServer) -> Iterator[Client]:
    made = Client(server.port)
    yield made
    assert made.act("hello")["protocol"] == 1  # whatever was done to it, it answers
    made.close()


def told_by(call: Callable[[], Any]) -> LeptonError:
    """The error that a raw Flight call is answered by. Anything else than one of ours fails the test."""
    with pytest.raises(fl.FlightError) as raised:
        call()
    found = wire_errors.decode(raised.value.extra_info)
    assert found is not None, f"no error of ours: {raised.value}"
    assert "Traceback" not in str(raised.value) and "/tmp" not in str(raised.value)
    return found


# -- requests ----------------------------------------------------------------------------------------------------------

HEADER = st.dictionaries(
    st.sampled_from(
        ["op", "dataset", "session", "columns", "start", "stop", "known", "commit", "updates", "id", "whole", "x"]
    ),
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.text(max_size=10)
    | st.lists(st.integers() | st.text(max_size=3) | st.none(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    max_size=6,
)
BODY = st.one_of(
    st.binary(max_size=100),
    st.binary(max_size=50).map(lambda data: b"LWR1" + data),
    st.tuples(st.sampled_from(sorted(OPERATIONS)), HEADER, st.binary(max_size=80)).map(
        lambda one: encode(one[0], one[1], one[2])
    ),
    st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=40)).map(
        lambda one: struct.pack("<4sI", b"LWR1", one[0]) + one[1]
    ),
)


@SMALL
@given(body=BODY, op=st.sampled_from(sorted(OPERATIONS)) | st.text(max_size=10))
def test_any_body_of_an_action_is_answered_by_type(client: Client, body: bytes, op: str) -> None:
    try:
        list(client.flight.do_action(fl.Action(op, body), client.options))
    except fl.FlightError as error:
        assert wire_errors.decode(error.extra_info) is not None, f"no error of ours: {error}"
        assert "internal error" not in str(error)


@SMALL
@given(body=BODY)
def test_any_ticket_is_answered_by_type(client: Client, body: bytes) -> None:
    try:
        client.flight.do_get(fl.Ticket(body), client.options).read_all()
    except fl.FlightError as error:
        assert wire_errors.decode(error.extra_info) is not None, f"no error of ours: {error}"
        assert "internal error" not in str(error)


@settings(SMALL, max_examples=20)
@given(body=BODY)
def test_any_command_of_a_put_is_answered_by_type(client: Client, body: bytes) -> None:
    with pytest.raises(fl.FlightError) as raised:
        writer, _ = client.flight.do_put(
            fl.FlightDescriptor.for_command(body), pa.schema([("x", pa.int8())]), client.options
        )
        try:
            writer.write_batch(pa.record_batch([pa.array([1], pa.int8())], ["x"]))
            writer.done_writing()
        finally:
            writer.close()
    assert wire_errors.decode(raised.value.extra_info) is not None, f"no error of ours: {raised.value}"


@pytest.mark.parametrize("size", [limits.WIRE_PAYLOAD_BYTES_MAX + limits.WIRE_HEADER_BYTES_MAX + 9, 12 << 20])
def test_a_ticket_that_is_too_large_is_refused(client: Client, size: int) -> None:
    body = b"LWR1" + bytes(size - 4)
    assert isinstance(told_by(lambda: client.flight.do_get(fl.Ticket(body), client.options).read_all()), BadInput)
    assert isinstance(told_by(lambda: list(client.flight.do_action(fl.Action("find", body), client.options))), BadInput)


def test_a_header_that_is_nested_without_end_is_refused(client: Client) -> None:
    header = b'{"op":' + b"[" * 60_000
    body = struct.pack("<4sI", b"LWR1", len(header)) + header
    assert isinstance(told_by(lambda: list(client.flight.do_action(fl.Action("find", body), client.options))), BadInput)


def test_an_operation_is_not_done_by_another_call_than_its_own(client: Client) -> None:
    for op, operation in OPERATIONS.items():
        body = encode(op, {"session": "x", "dataset": "numbers"})
        if operation.call != "get":
            assert isinstance(told_by(partial(client.flight.do_get, fl.Ticket(body), client.options)), BadInput)
        if operation.call != "action":
            results = client.flight.do_action(fl.Action(op, body), client.options)
            assert isinstance(told_by(partial(list, results)), BadInput)


def test_the_type_of_an_action_is_the_operation_of_its_body(client: Client) -> None:
    action = fl.Action("hello", encode("state"))
    assert isinstance(told_by(lambda: list(client.flight.do_action(action, client.options))), BadInput)


def test_calls_of_flight_that_are_none_of_ours_are_refused_by_type(client: Client) -> None:
    descriptor = fl.FlightDescriptor.for_path("numbers")
    options = client.options
    assert isinstance(told_by(lambda: client.flight.get_flight_info(descriptor, options)), BadInput)
    with pytest.raises(OSError, match="no such call") as raised:  # pyarrow's client drops what else is told of this one
        client.flight.get_schema(descriptor, options)
    assert "Traceback" not in str(raised.value)
    assert isinstance(told_by(lambda: list(client.flight.list_flights(b"", options))), BadInput)
    assert isinstance(told_by(lambda: list(client.flight.list_actions(options))), BadInput)

    def exchange() -> None:
        writer, reader = client.flight.do_exchange(fl.FlightDescriptor.for_command(encode("get")), options)
        with writer:
            writer.begin(pa.schema([("x", pa.int8())]))
            writer.done_writing()
            reader.read_all()

    assert isinstance(told_by(exchange), BadInput)


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 5_000, TOKEN + "x", TOKEN[:-1]])
def test_nobody_without_a_credential_gets_further_than_that(server: FlightServer, token: str | None) -> None:
    stranger = Client(server.port, token)
    for call in (
        lambda: stranger.act("hello"),
        lambda: stranger.get("rows", dataset="numbers"),
        lambda: list(stranger.flight.do_action(fl.Action("x", b"garbage"), stranger.options)),
        lambda: stranger.put("x" * 32, [records([(bytes(32), b"")])]),
    ):
        with pytest.raises((NotAuthenticated, TooBusy, fl.FlightUnauthenticatedError, fl.FlightUnavailableError)):
            call()
    stranger.close()


def test_two_credentials_are_none(server: FlightServer) -> None:
    client = Client(server.port)
    header = (b"authorization", f"Bearer {TOKEN}".encode())
    client.options = fl.FlightCallOptions(timeout=30, headers=[header, header])
    with pytest.raises((NotAuthenticated, TooBusy)):  # by now this address has failed often
        client.act("hello")
    client.close()


# -- puts --------------------------------------------------------------------------------------------------------------


def test_a_forged_digest_is_refused_over_the_wire_and_the_session_goes_on(client: Client) -> None:
    session = client.act("open")["session"]
    with pytest.raises(ChunkCorrupt) as raised:
        client.put(session, [records([(digest_of(b"one"), b"other")])])
    assert raised.value.digest == digest_of(b"one").hex()
    client.put(session, [records([(digest_of(b"one"), b"one")])])
    client.act("flush", session=session)
    assert client.values([digest_of(b"one")]) == [(1, b"one")]
    client.act("close", session=session)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("offsets", [[0, 4 << 30, 10], [0, 200_000, 10], [0, -100, 10], [0, 7, 5]])
def test_offsets_that_lie_are_followed_nowhere(client: Client, kind: int, offsets: list[int]) -> None:
    """Flight hands on whatever offsets a stream states: the daemon read beyond its own memory, and ended by SIGSEGV."""
    session = client.act("open")["session"]
    good = records([(digest_of(b"01234"), b"01234"), (digest_of(b"56789"), b"56789")], kind)
    lying = pa.Array.from_buffers(
        pa.large_binary(), 2, [None, pa.py_buffer(np.array(offsets, np.int64)), pa.py_buffer(b"0123456789")]
    )
    with pytest.raises(BadInput):
        client.put(session, [pa.RecordBatch.from_arrays([*good.columns[:4], lying], schema=good.schema)])
    client.put(session, [records([(digest_of(b"whole"), b"whole")])])
    client.act("close", session=session)


def test_a_client_that_leaves_in_the_middle_of_a_put_leaves_nothing_behind(
    client: Client, server: FlightServer
) -> None:
    leaver = Client(server.port)
    session = leaver.act("open")["session"]
    descriptor = fl.FlightDescriptor.for_command(encode("put", {"session": session}))
    writer, reader = leaver.flight.do_put(descriptor, records([]).schema, leaver.options)
    value = os.urandom(1 << 20)
    writer.write_batch(records([(digest_of(value), value)]))
    reader.read()
    del writer, reader
    leaver.close()
    gc.collect()
    wait_until(lambda: not server.admissions["put"].inside)
    with pytest.raises(NotFound):
        client.act("flush", session="0" * 32)
    client.act("close", session=session)


# -- bytes that are no request -------------------------------------------------------------------------------------------


def sent(port: int, data: bytes, end: bool = True) -> bytes:
    """Write raw bytes to the port; what comes back until the server has enough, or for a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.settimeout(0.2)
        answer = b""
        try:
            raw.sendall(data)
            if end:
                raw.shutdown(socket.SHUT_WR)
            while chunk := raw.recv(65_536):
                answer += chunk
        except OSError:
            pass
        return answer


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


SETTINGS = frame(4, 0, 0, b"")
HEADERS = b"\x83\x86\x44\x0a/a.b/DoGet\x41\x04host"  # POST, http, a path, an authority


@settings(SMALL, max_examples=40)
@given(
    data=st.one_of(
        st.binary(max_size=2_000),
        st.binary(max_size=500).map(lambda data: PREFACE + data),
        st.binary(max_size=500).map(lambda data: PREFACE + SETTINGS + data),
        st.integers(0, len(PREFACE)).map(lambda length: PREFACE[:length]),
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=60)), max_size=6
        ).map(lambda frames: PREFACE + SETTINGS + b"".join(frame(*one) for one in frames)),
    )
)
def test_bytes_that_are_no_request_end_their_connection_and_nothing_else(
    client: Client, server: FlightServer, data: bytes
) -> None:
    answer = sent(server.port, data)
    assert b"Traceback" not in answer and b"/tmp" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS where there is none
        PREFACE
        + SETTINGS
        + frame(1, 4, 1, HEADERS)
        + frame(0, 0, 1, b"\0\xff\xff\xff\xff"),  # a message of 4 GiB, announced
        PREFACE + SETTINGS + frame(1, 4, 1, HEADERS) + frame(0, 0, 1, b"\0\0\0\0"),  # cut in its length
        PREFACE + SETTINGS + frame(1, 0, 1, HEADERS),  # headers without an end
        PREFACE + SETTINGS * 5_000,
        PREFACE
        + SETTINGS
        + b"".join(frame(1, 5, 1 + 2 * at, HEADERS) + frame(3, 0, 1 + 2 * at, bytes(4)) for at in range(3_000)),
    ],
    ids=["http1", "tls", "announced", "cut", "unended", "settings", "resets"],
)
def test_known_attacks_on_http2_end_their_connection_and_nothing_else(
    client: Client, server: FlightServer, data: bytes
) -> None:
    before = server.under_way
    answer = sent(server.port, data)
    assert b"Traceback" not in answer
    wait_until(lambda: server.under_way <= before)


def test_headers_that_are_no_text_are_told_nothing_of_this_host(client: Client, server: FlightServer) -> None:
    path = b"/arrow.flight.protocol.FlightService/DoAction"
    for name, value in (
        (b"authorization", b"Bearer \xff\xfe"),
        (b"x", b"\x00\x80"),
        (b"\xc3\xa9", b"x"),
        (b"x-bin", b"\xff" * 50),
    ):
        block = b"\x83\x86" + b"\x44" + bytes([len(path)]) + path + b"\x41\x04host"
        block += b"\x40\x0ccontent-type\x10application/grpc" + b"\x40\x02te\x08trailers"
        block += b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value
        answer = sent(
            server.port, PREFACE + SETTINGS + frame(1, 4, 1, block) + frame(0, 1, 1, b"\0\0\0\0\0"), end=False
        )
        # pyarrow itself answers what is not ASCII, before our code sees it: with a line of its own, and none of ours.
        assert b"lepton" not in answer and b"/tmp" not in answer and b'.py"' not in answer


# -- clients that do nothing -------------------------------------------------------------------------------------------


def looked(server: FlightServer, later_s: float = 0.0) -> set[str]:
    """What is still open after a look at the connections that long from now."""
    server.connections.look(time.monotonic() + later_s)
    return {one.peer for one in open_connections(server.port)}


def local_name(raw: socket.socket) -> str:
    host, port = raw.getsockname()[:2]
    return f"{host}:{port}"


def test_a_connection_that_asks_for_nothing_is_cut_off_and_one_that_did_is_not(
    client: Client, server: FlightServer
) -> None:
    client.act("hello")
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    silent[1].sendall(PREFACE[:10])
    silent[2].sendall(PREFACE + SETTINGS)
    names = {local_name(raw) for raw in silent}
    wait_until(lambda: names <= {one.peer for one in open_connections(server.port)})
    looked(server)  # sees them begin
    looked(server, bounds.KNOWN_WITHIN_S + 1)
    wait_until(lambda: not names & {one.peer for one in open_connections(server.port)})
    client.act("hello")
    for raw in silent:
        raw.settimeout(5)
        while raw.recv(1_000):  # what it was told before
            pass
        raw.close()


def test_too_many_that_nobody_knows_are_cut_off_the_oldest_first(
    client: Client, server: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.act("hello")
    monkeypatch.setattr(bounds, "UNKNOWN_MAX", 4)
    crowd = []
    for _ in range(9):
        crowd.append(socket.create_connection(("127.0.0.1", server.port)))
        wait_until(lambda: local_name(crowd[-1]) in looked(server))
    wait_until(lambda: len({local_name(raw) for raw in crowd} & looked(server)) <= 4)
    assert local_name(crowd[-1]) in looked(server)
    for raw in crowd:
        raw.close()
    client.act("hello")


def test_a_message_without_end_is_cut_off_before_it_fills_the_memory(client: Client, server: FlightServer) -> None:
    """gRPC takes messages of any size, and hands them on when they are whole: 4 GiB of memory for somebody without a credential."""
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.settimeout(1)
        answer = bytearray()

        def drain() -> None:
            try:
                while chunk := raw.recv(1 << 20):
                    answer.extend(chunk)
            except OSError:
                pass

        raw.sendall(PREFACE + SETTINGS + frame(4, 1, 0, b""))
        path = b"/arrow.flight.protocol.FlightService/DoAction"
        block = b"\x83\x86" + b"\x44" + bytes([len(path)]) + path + b"\x41\x04host"
        block += b"\x40\x0ccontent-type\x10application/grpc" + b"\x40\x02te\x08trailers"
        raw.sendall(frame(1, 4, 1, block) + frame(0, 0, 1, b"\0" + struct.pack(">I", 2 << 30)))
        total = 0
        chunk = frame(0, 0, 1, bytes(16_384)) * 16
        with pytest.raises(OSError):
            while total < 1 << 30:
                raw.sendall(chunk)
                total += len(chunk)
        assert total < 512 << 20
        drain()


def test_a_client_that_does_not_read_is_cut_off_and_its_place_is_free(server: FlightServer, client: Client) -> None:
    slow = Client(server.port)
    reader = slow.flight.do_get(fl.Ticket(encode("rows", {"dataset": "numbers"})), slow.options)
    reader.read_chunk()
    wait_until(lambda: server.admissions["get"].inside >= 1)
    wait_until(lambda: any(turn.theirs_since is not None for turn in server.connections._turns))
    looked(server, bounds.SLOW_S - 10)
    assert server.admissions["get"].inside >= 1  # not yet

    def free() -> bool:
        """After a look: one may fall into a moment in which the server fills the buffers between the two, and waits for nobody."""
        looked(server, bounds.SLOW_S + 10)
        return not server.admissions["get"].inside

    wait_until(free)
    with pytest.raises(fl.FlightError):
        for _ in range(1_000):
            reader.read_chunk()
    slow.close()


def test_a_client_that_puts_nothing_is_cut_off(server: FlightServer, client: Client) -> None:
    slow = Client(server.port)
    session = slow.act("open")["session"]
    descriptor = fl.FlightDescriptor.for_command(encode("put", {"session": session}))
    writer, _ = slow.flight.do_put(descriptor, records([]).schema, slow.options)
    wait_until(lambda: server.admissions["put"].inside == 1)
    looked(server, bounds.SLOW_S + 10)
    wait_until(lambda: not server.admissions["put"].inside)
    with pytest.raises(fl.FlightError):
        writer.close()
    slow.close()


def test_a_large_put_is_no_message_without_end(client: Client, server: FlightServer) -> None:
    """What is sent and taken is accounted for, however much it is."""
    session = client.act("open")["session"]
    values = [bytes([at]) * (4 << 20) for at in range(6)]
    batches = [records([(digest_of(value), value)]) for value in values] * 12
    assert client.put(session, batches)[-1]["bytes"] == 12 * sum(map(len, values))
    client.act("close", session=session)


def test_what_is_shut_down_is_the_connection_of_that_peer() -> None:
    from leptonstore.daemon.connections import shut

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    ours = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    accepted = [listener.accept()[0] for _ in ours]
    found = {one.peer: one for one in open_connections(port)}
    assert {local_name(raw) for raw in ours} <= found.keys()
    assert not shut(found[local_name(ours[0])].fd, local_name(ours[1]))  # the descriptor is another's by now
    assert shut(found[local_name(ours[0])].fd, local_name(ours[0]))
    assert ours[0].recv(1) == b""
    accepted[1].sendall(b"x")
    assert ours[1].recv(1) == b"x"
    for raw in (*ours, *accepted, listener):
        raw.close()


@pytest.mark.parametrize(
    ("grpc", "name"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1:4711"),
        ("ipv6:%5B::1%5D:4711", "::1:4711"),
        ("ipv6:[::ffff:10.0.0.7]:1", "10.0.0.7:1"),
    ],
)
def test_grpc_and_the_kernel_name_a_peer_alike(grpc: str, name: str) -> None:
    assert peer_of(grpc) == name
    assert isinstance(Open(0, name, 0), tuple)


def test_nothing_is_left_of_clients_that_came_and_went(server: FlightServer) -> None:
    """Descriptors, threads and places are those of before: sessions that were left open but for their time, streams that were left in the
    middle, puts that failed."""

    def visit(number: int) -> None:
        client = Client(server.port)
        session = client.act("open")["session"]
        value = number.to_bytes(4, "little") * 10_000
        client.put(session, [records([(digest_of(value), value)])])
        with pytest.raises(ChunkCorrupt):
            client.put(session, [records([(digest_of(b""), value)])])
        client.act("flush", session=session)
        reader = client.flight.do_get(fl.Ticket(encode("rows", {"dataset": "numbers"})), client.options)
        reader.read_chunk()
        reader.cancel()
        lease = client.act("lease", commit=server.service.store.state.refs["dataset/numbers/main"].commit)["lease"]
        client.act("release", lease=lease)
        client.act("close", session=session)
        client.close()

    def held() -> tuple[int, int]:
        gc.collect()
        names = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/proc/self/fd/{name}"))
        # A tier keeps the packs that were read lately open: a bounded number of its own.
        return sum(not name.endswith(".pack") for name in names), threading.active_count()

    for number in range(5):
        visit(number)
    wait_until(lambda: not server.under_way)
    before, sessions, leases = held(), len(server.service.sessions), len(server.service.leases)
    for number in range(5, 25):
        visit(number)
    wait_until(lambda: not server.under_way)
    # (The client's own connections, which are in this process, too, go a moment after it.)
    wait_until(lambda: held()[0] <= before[0] + 6 and held()[1] <= before[1] + 4)
    assert not any(admission.inside or admission.waiting for admission in server.admissions.values())
    assert (len(server.service.sessions), len(server.service.leases)) == (sessions, leases)


# -- overload and the end ----------------------------------------------------------------------------------------------


def test_under_overload_a_request_waits_its_turn_or_is_told_when_to_come_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ACTIONS_AT_ONCE", 2)
    monkeypatch.setattr(bounds, "WAITING_MAX", 4)
    with new_store(tmp_path) as store, serving(store) as server:
        hold, inside = threading.Event(), threading.Semaphore(0)
        state = server.service.reading.state

        def held(*arguments: Any) -> Any:
            inside.release()
            hold.wait()
            return state(*arguments)

        monkeypatch.setattr(server.service.reading, "state", held)
        outcomes: list[str] = []

        def ask() -> None:
            client = Client(server.port)
            try:
                client.act("state")
                outcomes.append("ok")
            except TooBusy as error:
                assert error.retry_after_s > 0
                outcomes.append("busy")
            client.close()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            inside.acquire()
        wait_until(lambda: server.admissions["action"].waiting == 4)
        late = [threading.Thread(target=ask) for _ in range(3)]
        for thread in late:
            thread.start()
        for thread in late:
            thread.join()
        assert outcomes == ["busy"] * 3
        hold.set()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["busy"] * 3 + ["ok"] * 6


def test_draining_lets_what_runs_end_and_refuses_what_comes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(tmp_path) as store, serving(store) as server:
        hold, inside = threading.Event(), threading.Event()
        state = server.service.reading.state

        def held(*arguments: Any) -> Any:
            inside.set()
            hold.wait()
            return state(*arguments)

        monkeypatch.setattr(server.service.reading, "state", held)
        client, answers = Client(server.port), []
        asking = threading.Thread(target=lambda: answers.append(client.act("state")))
        asking.start()
        inside.wait()
        assert not server.drain(0.05)
        with pytest.raises(TooBusy, match="about to end"):
            Client(server.port).act("hello")
        hold.set()
        asking.join()
        assert answers[0]["sequence"] == 0
        assert server.drain(10.0)


def test_draining_waits_until_a_session_has_made_its_work_durable(tmp_path: Any) -> None:
    with new_store(tmp_path) as store, serving(store) as server:
        client = Client(server.port)
        session, value = client.act("open")["session"], os.urandom(50_000)
        client.put(session, [records([(digest_of(value), value)])])
        assert not server.drain(0.05)
        with pytest.raises(TooBusy):
            client.act("open")
        with pytest.raises(TooBusy):
            client.act("state")
        assert client.act("find", digest_of(value), session=session)[0] in (0, 1)
        client.act("flush", session=session)
        assert server.drain(10.0)
        with store.again() as local:
            assert local.get(digest_of(value)) == value
        client.act("close", session=session)


def test_the_end_does_not_wait_for_a_client_that_does_not_read(tmp_path: Any) -> None:
    with new_store(tmp_path) as store:
        big = pa.table(
            {
                "id": np.arange(50_000),
                "x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(50_000 * 600, np.uint8)), 600),
            }
        )
        write_dataset(store, "big", Source(big.schema, ("id",), lambda: iter(big.to_batches(max_chunksize=5_000))))
        with serving(store, drain_s=0.0) as server:
            client = Client(server.port)
            reader = client.flight.do_get(fl.Ticket(encode("rows", {"dataset": "big"})), client.options)
            reader.read_chunk()
            assert not server.drain(0.05)
        with pytest.raises(fl.FlightError):
            for _ in range(1_000):
                reader.read_chunk()
        client.close()


def test_a_full_disk_is_told_by_type_over_the_wire(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(tmp_path) as store, serving(store) as server:
        client = Client(server.port)
        session = client.act("open")["session"]
        home = next(iter(server.service.sessions.every())).store.home

        def full(pack: str) -> Any:
            raise StoreFull(f"cannot write {store.url}/packs/{pack}: no space left on device")

        monkeypatch.setattr(home, "create_pack", full)
        value = os.urandom(100_000)
        with pytest.raises(StoreFull) as raised:
            client.put(session, [records([(digest_of(value), value)])])
            client.act("flush", session=session)
        assert store.url not in str(raised.value)
        assert json.dumps(client.act("hello"))
        client.close()
