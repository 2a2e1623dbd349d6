"""What is sent to the control plane by mistake or on purpose: a typed answer, nothing leaked, bounded memory and time, and it lives on."""

from __future__ import annotations

import gc
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from daemon_data import LARGE, Plane, control_plane, filled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_client import TIMEOUT_S, Reply, exchange, parse_reply, raw_exchange, request_bytes, slowly

from leptonstore import errors, limits
from leptonstore.daemon.http import bounds
from leptonstore.daemon.http.app import Hosts
from leptonstore.digest import digest_of
from leptonstore.store import Store
from leptonstore.store.wire.messages import encode
from leptonstore.web.limits import HEAD_BYTES_MAX, WebLimits

LARGE_DIGEST = digest_of(LARGE).hex()
STARTS = [
    "/",
    "/content/",
    "/content/dataset/",
    "/content/dataset/samples@main/",
    "/content/dataset/samples@main/rows/",
    "/v1/",
]
OPS = ["hello", "state", "find", "get", "rows", "take", "history", "lease", "plan", "tell", "flush", "publish", "job"]
ARGUMENTS = [
    "dataset",
    "kind",
    "columns",
    "start",
    "stop",
    "session",
    "known",
    "since",
    "reader",
    "commit",
    "where",
    "updates",
]
PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
VALUES = PLAIN | st.lists(st.text(max_size=3), max_size=3) | st.just("samples@main")
HOSTS = {"localhost": 200, "127.0.0.1:1": 200, "[::1]": 200, "10.1.2.3": 200, "localhost.evil.example": 421, "": 421}
QUICK = WebLimits(head_s=1.0, write_s=1.0, idle_s=5.0, connections_max=40)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with filled(tmp_path_factory.mktemp("http") / "data") as made:
        yield made


@pytest.fixture(scope="module")
def plane(store: Store) -> Iterator[Plane]:
    with control_plane(store, QUICK) as running:
        yield running


def authorized(plane: Plane, path: str, **more: str) -> bytes:
    told = {
        "authorization": f"Bearer {plane.tokens['admin']}",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return request_bytes("GET", path, headers=told)


def is_typed(reply: Reply) -> bool:
    """Whether an error is one of the tree, and says nothing of Python or this host."""
    told = reply.json()
    known = isinstance(getattr(errors, told["error"], None), type)
    leaks = [
        word
        for word in ("Traceback", ".py", "/tmp", "starlette", "uvicorn", "object at")
        if word in reply.body.decode()
    ]
    return known and bool(told["message"]) and not leaks


def works(plane: Plane) -> bool:
    return plane.ask("/content/dataset/samples@main").status == 200


# -- HTTP that is none -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20) + b"\r\n\r\n", 400),  # TLS to a plain port
        (b"GET /healthz\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400),
        (b"POST /v1/hello HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /v1/hello HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /v1/hello HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 2 * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 2 * HEAD_BYTES_MAX + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", 421),
        (b"GET /none HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
        (b"DELETE /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
        (b"GET /v1/hello HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 405),
        (b"POST /v1/none HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 404),
    ],
)
def test_what_is_no_good_request_is_told_so(plane: Plane, data: bytes, status: int) -> None:
    """Heads that are too large are 400 or 431, depending on how their bytes arrive."""
    reply = exchange(plane.url, data)
    assert reply.status == status or (status, reply.status) == (431, 400)
    assert is_typed(reply), reply.body


def test_a_body_whose_end_can_be_read_in_two_ways_hides_no_second_request(plane: Plane) -> None:
    """What a proxy took for a body of 60 bytes was answered as a request of its own."""
    hidden = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    head = b"POST /v1/hello HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = raw_exchange(plane.url, head + b"0\r\n\r\n" + hidden)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(st.binary(max_size=400), st.binary(max_size=300).map(lambda end: b"GET /content HTTP/1.1\r\n" + end))
)
def test_garbage_gets_a_typed_answer_or_none(plane: Plane, data: bytes) -> None:
    answer = raw_exchange(plane.url, data + b"\r\n\r\n")
    assert not answer or is_typed(parse_reply(answer))
    assert b" 5" not in answer[:13]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789/%.~@^:-_?=&+"), max_size=60),
    start=st.sampled_from(STARTS),
)  # fmt: skip
def test_any_path_is_answered_below_500(plane: Plane, path: str, start: str) -> None:
    reply = plane.ask(start + path)
    assert reply.status < 500
    assert reply.status < 400 or is_typed(reply)


def test_a_number_too_long_for_python_is_no_fault_of_ours(plane: Plane) -> None:
    """Routes with a number in them (the dashboard's) made one of it before anybody had looked: 500, for strangers too."""
    for path in ("/ui/dataset/samples/main/rows/", "/content/dataset/samples@main/rows/"):
        reply = plane.ask(f"{path}{'9' * 5_000}", None)
        assert reply.status == 400 and is_typed(reply)


def test_two_credentials_are_none(plane: Plane) -> None:
    line = f"authorization: Bearer {plane.tokens['admin']}\r\n"
    data = f"GET /content HTTP/1.1\r\nhost: localhost\r\n{line}{line}connection: close\r\n\r\n".encode()
    assert exchange(plane.url, data).status == 401


def test_an_unknown_name_in_host_is_refused_and_an_address_is_not(plane: Plane) -> None:
    """A page that rebinds its name to this host sends that name."""
    for host, status in HOSTS.items():
        assert exchange(plane.url, request_bytes("GET", "/healthz", headers={"host": host})).status == status, host
    assert "store.example" in Hosts(["Store.Example"]) and "other.example" not in Hosts(["store.example"])


def test_credentials_of_every_kind(plane: Plane) -> None:
    """What each may is in test_access_matrix; here it is how HTTP says no."""
    for token in (None, "", "nonsense", "x" * 5_000, plane.tokens["read"][:-1] + "x", "lepton_" + "a" * 60):
        reply = plane.ask("/content", token)
        assert (reply.status, reply.json()["error"]) == (401, "NotAuthenticated")
        assert reply.headers["www-authenticate"] == 'Bearer realm="lepton"'
        assert is_typed(reply)
    assert plane.ask("/content", headers={"authorization": "Basic dXNlcjpwYXNz"}, token=None).status == 401
    reply = plane.ask("/content/dataset/samples", "other")
    assert (reply.status, reply.json()["error"]) == (403, "NotPermitted") and "www-authenticate" not in reply.headers
    assert plane.ask("/metrics", "samples").status == 403
    assert plane.ask("/metrics", None).status == 401
    assert not any(token in "".join(plane.log) for token in plane.tokens.values())


# -- bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/octet-stream", 400),
        (b"LWR1", "application/octet-stream", 400),
        (b"LWR1\xff\xff\xff\xff{}", "application/octet-stream", 400),
        (encode("state"), "application/octet-stream", 400),  # of another operation than the path's
        (b"[]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"boot": 5}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),  # what a form of another site can send
        (bytes(limits.WIRE_PAYLOAD_BYTES_MAX + limits.WIRE_HEADER_BYTES_MAX + 9), "application/octet-stream", 413),
    ],
)
def test_a_bad_body_gets_a_4xx_that_says_why(plane: Plane, body: bytes, kind: str, status: int) -> None:
    reply = plane.ask("/v1/hello", "admin", "POST", body, {"content-type": kind})
    assert reply.status == status and is_typed(reply), reply.body


def test_nothing_of_a_body_is_read_before_it_is_known_who_asks(plane: Plane) -> None:
    told = {"content-length": str(10**15), "expect": "100-continue"}
    data = raw_exchange(plane.url, request_bytes("POST", "/v1/hello", headers=told))
    assert parse_reply(data).status == 401  # and no "100 Continue" before it
    told["authorization"] = f"Bearer {plane.tokens['read']}"
    data = raw_exchange(plane.url, request_bytes("POST", "/v1/put", headers=told))
    assert parse_reply(data).status == 403
    data = raw_exchange(plane.url, request_bytes("POST", "/v1/hello", headers=told))
    assert parse_reply(data).status == 413


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    op=st.sampled_from(OPS),
    arguments=st.dictionaries(
        st.sampled_from(ARGUMENTS),
        VALUES,
        max_size=5,
    ),
    payload=st.binary(max_size=70) | st.just(bytes.fromhex(LARGE_DIGEST)),
)  # fmt: skip
def test_any_arguments_and_payload_are_answered_below_500(
    plane: Plane, op: str, arguments: dict[str, object], payload: bytes
) -> None:
    reply = plane.act(op, "admin", payload, **arguments)
    assert reply.status < 500, (reply.body, plane.log[-1])
    assert reply.status < 400 or is_typed(reply)


# -- time and memory ---------------------------------------------------------------------------------------------------


def test_a_head_that_trickles_in_is_not_waited_for(plane: Plane) -> None:
    for first, part in ((b"GET /healthz HTTP/1.1\r\n", b"x: y\r\n"), (b"", b"")):
        reply = parse_reply(slowly(plane.url, first, part))
        assert reply.status == 408 and is_typed(reply)


def test_many_slow_clients_do_not_keep_others_out(plane: Plane) -> None:
    """Connections that say nothing take places (connections_max), which time frees again."""
    held = [socket.create_connection(("127.0.0.1", plane.port), TIMEOUT_S) for _ in range(QUICK.connections_max - 5)]
    for connection in held:
        connection.sendall(b"GET /content HTTP/1.1\r\nhost: ")
    assert works(plane)
    for connection in held:
        connection.settimeout(TIMEOUT_S)
        assert b" 408 " in connection.recv(1_000)
        connection.close()


def test_a_client_that_stops_reading_is_cut_off_and_holds_little_memory(store: Store) -> None:
    """Its answer of 11 MiB is not made further than it is taken, and after write_s it is let go with what it held."""
    with control_plane(store, WebLimits(write_s=0.5)) as plane:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.settimeout(TIMEOUT_S)
            connection.connect(("127.0.0.1", plane.port))
            connection.sendall(authorized(plane, f"/content/chunks/{LARGE_DIGEST}"))
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            until_log = threading.Event()
            while len(plane.log) < 1:
                until_log.wait(0.05)
            told = json.loads(plane.log[-1])
            assert told["error"] == "client_gone" and told["bytes_out"] < len(LARGE) // 2
            with pytest.raises(ConnectionError):
                while connection.recv(1 << 20):
                    pass
        assert plane.metrics.snapshot()["gauges"]["lepton_http_places_taken"] == 0
        assert works(plane)


def test_a_client_that_leaves_the_last_bytes_is_let_go_too(store: Store) -> None:
    """What fits into the buffers is no pause of writing, so that no time ran for it: it kept its place for ever."""
    with control_plane(store, WebLimits(write_s=0.2, idle_s=0.1, connections_max=2)) as plane:
        for _ in range(2):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.settimeout(TIMEOUT_S)
            connection.connect(("127.0.0.1", plane.port))
            path = "/content/dataset/files@main/files/deep/er/b.bin"
            connection.sendall(authorized(plane, path, range="bytes=0-50000"))
        pause = threading.Event()
        while plane.ask("/healthz").status != 200:
            pause.wait(0.05)
        gc.collect()


def test_too_much_at_once_is_told_to_come_again_while_health_is_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every place is taken by a request that waits for a store that hangs, and as many as may wait for one."""
    with control_plane(store, WebLimits(drain_s=5.0)) as plane:
        release = hold(plane, monkeypatch)
        many = bounds.REQUESTS_MAX + bounds.REQUESTS_WAITING_MAX
        connections = [socket.create_connection(("127.0.0.1", plane.port), TIMEOUT_S) for _ in range(many)]
        for connection in connections:
            connection.sendall(authorized(plane, "/content/dataset/samples@main"))
        pause, work = threading.Event(), plane.server._app.work
        while (work.running, work.waiting) != (bounds.REQUESTS_MAX, bounds.REQUESTS_WAITING_MAX):
            pause.wait(0.01)
        reply = plane.ask("/content/dataset/samples@main")
        assert (reply.status, reply.json()["error"]) == (429, "TooBusy")
        assert int(reply.headers["retry-after"]) >= 1
        assert plane.act("hello").status == 429
        assert plane.ask("/healthz", None).status == 200
        assert plane.ask("/metrics").status == 200
        assert plane.ask("/readyz", None).status == 503  # the store does not answer
        release()
        answers = [read_all(connection) for connection in connections]
        assert {parse_reply(answer).status for answer in answers} <= {200, 429}
        assert sum(b" 200 " in answer[:13] for answer in answers) >= bounds.REQUESTS_MAX
        assert works(plane)
        assert plane.ask("/readyz", None).status == 200


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with connection:
        while part := connection.recv(65_536):
            found += part
    return found


def hold(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the store hang, until what is returned is called."""
    go_on, refresh = threading.Event(), plane.service.reading.refresh

    def hangs() -> None:
        go_on.wait(TIMEOUT_S)
        refresh()

    monkeypatch.setattr(plane.service.reading, "refresh", hangs)
    return go_on.set


def test_draining_lets_requests_end_and_takes_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with control_plane(store) as plane:
        plane.server.drain()
        assert (plane.ask("/readyz", None).status, plane.ask("/healthz", None).status) == (503, 200)
        assert works(plane)  # until it stops, it answers
        release = hold(plane, monkeypatch)
        found: list[Reply] = []
        asking = threading.Thread(target=lambda: found.append(plane.ask("/content/dataset/samples@main")))
        asking.start()
        pause = threading.Event()
        while not plane.server._app.work.running:
            pause.wait(0.01)
        stopping = threading.Thread(target=plane.server.stop)
        stopping.start()
        while True:
            try:
                plane.ask("/healthz", None)
            except ConnectionError:
                break
            pause.wait(0.01)
        release()
        asking.join(TIMEOUT_S)
        stopping.join(TIMEOUT_S)
        assert found[0].status == 200 and not stopping.is_alive()


def test_a_bug_is_told_by_its_id_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with control_plane(store) as plane:

        def broken() -> None:
            raise ZeroDivisionError(f"in {store.url}")

        monkeypatch.setattr(plane.service.reading, "refresh", broken)
        reply = plane.ask("/content")
        told = reply.json()
        assert reply.status == 500 and is_typed(reply) and "ZeroDivision" not in reply.body.decode()
        assert told["request_id"] in told["message"] and told["request_id"] in caplog.text
