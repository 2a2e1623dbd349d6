"""Every operation x every kind of credential x both transports, against a running daemon: what is allowed, what is refused and how, what
is written down, and that nothing has changed where nothing was allowed.

The table of operations is gone through: one that is added has to say here who may use it, or the test fails.
"""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from leptonstore.daemon.audit import AuditLog
from leptonstore.daemon.cluster.secret import DOCUMENT, peer_token
from leptonstore.daemon.maintenance.alone import at_work
from leptonstore.daemon.operations import OPERATIONS
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.rates import RateLimits
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Source, write_dataset
from leptonstore.digest import digest_of, parse_hex
from leptonstore.store import Store
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import encode
from leptonstore.store.wire.records import PUT_SCHEMA
from leptonstore.testing.daemon import Served, running
from leptonstore.testing.ports import free_ports
from tests.integration.waiting import wait_until

SECRET_VALUE = b"what only those who may read birds are to see " * 5
NO, BAD = "NotPermitted", "NotAuthenticated"

# -- credentials -------------------------------------------------------------------------------------------------------

STRANGERS = ("none", "garbage", "basic", "two words", "wrong secret", "expired", "revoked", "other store's", "too long")
BIRDS, FISH = ("read:birds", "write:birds", "admin:birds"), ("read:fish", "write:fish", "admin:fish")
KNOWN = ("read", "write", "admin", *BIRDS, *FISH, "peer", "member", "local")

NOBODY: frozenset[str] = frozenset()
EVERYBODY = frozenset((*STRANGERS, *KNOWN))
READ_ANY = frozenset((*KNOWN,)) - {"peer", "member"}
READ_STORE = frozenset(("read", "write", "admin", "local"))
READ_BIRDS = READ_STORE | set(BIRDS)
WRITE_ANY = READ_ANY - {"read", "read:birds", "read:fish"}
WRITE_BIRDS = frozenset(("write", "admin", "local", "write:birds", "admin:birds"))
ADMIN_STORE = frozenset(("admin", "local"))
ADMIN_BIRDS = ADMIN_STORE | {"admin:birds"}
ADMIN_ANY = ADMIN_BIRDS | {"admin:fish"}
PEERS = frozenset(("peer", "member"))


@dataclass
class World:
    """A daemon, its store looked at from outside, and the credentials."""

    served: Served
    store: Store
    audit: Path
    credentials: dict[str, str | None]
    ids: dict[str, str]  # of principals
    commit: str
    value: bytes
    flight: fl.FlightClient
    made: int = 0

    def name(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def fingerprint(self) -> tuple[Any, ...]:
        """Changes when anything does."""
        daemon = self.served.daemon
        assert daemon is not None
        self.store.refresh()
        ring = TokenRing.of(self.store)
        jobs = tuple(job.id for job in daemon.jobs.list())
        return (
            self.store.state.sequence,
            tuple(ring.ids()),
            len(daemon.service.sessions),
            jobs,
            len(daemon.service.leases),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            patch.setenv(variable, str(place / variable.lower()))
        with Store.create(place / "store") as store, Store.create(place / "other") as other:
            for name in ("birds", "fish"):
                value = SECRET_VALUE if name == "birds" else b"a fish"
                table = pa.table({"id": [1, 2], "what": pa.array([value, value + b"2"], pa.binary())})
                head = write_dataset(store, name, Source(table.schema, ("id",), lambda t=table: iter(t.to_batches())))
                if name == "birds":
                    commit = head.commit
            store.put(SECRET_VALUE)
            store.flush()
            (port,) = free_ports(1)
            settings = {"port": port, "members": [f"127.0.0.1:{port}"], "audit_log": str(place / "audit.jsonl")}
            with running(place / "store", in_process=True, cache_bytes=0, **settings) as served:
                assert served.daemon is not None
                served.daemon.access.limit(RateLimits(failures=None))
                served.daemon.access.audit_log = AuditLog(place / "audit.jsonl", strangers=None)
                client = fl.connect(("127.0.0.1", port))
                given, ids = _credentials(served, store, other)
                yield World(served, store, place / "audit.jsonl", given, ids, commit, SECRET_VALUE, client)
                client.close()


def _credentials(served: Served, store: Store, other: Store) -> tuple[dict[str, str | None], dict[str, str]]:
    ring = TokenRing.of(store)
    given: dict[str, str | None] = {"none": None, "garbage": "Bearer garbage", "too long": "Bearer " + "x" * 5_000}
    ids = {"local": "local", "member": "peer"}
    for text in ("read", "write", "admin", *BIRDS, *FISH, "peer"):
        token, secret = ring.add(text, [Grant.parse(text)])
        given[text], ids[text] = f"Bearer {secret}", token.id
    good = given["admin"] or ""
    given["basic"] = good.replace("Bearer", "Basic")
    given["two words"] = good + " " + good
    given["wrong secret"] = good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")
    given["expired"] = "Bearer " + ring.add("expired", [Grant.parse("admin")], 1.0, now=lambda: time.time() - 3_600)[1]
    token, secret = ring.add("revoked", [Grant.parse("admin")])
    ring.revoke(token.id)
    given["revoked"] = f"Bearer {secret}"
    token, secret = TokenRing.of(other).add("foreign", [Grant.parse("admin")])
    document = TokenRing.of(other).read(token.id)
    assert document is not None
    store.home.create_document(
        f"tokens/{token.id}", document
    )  # and whoever can write there has even copied its document
    given["other store's"] = f"Bearer {secret}"
    given["local"] = f"Bearer {served.token}"
    shared = store.home.read_document(DOCUMENT, 1_000)
    assert shared is not None
    given["member"] = f"Bearer {peer_token(shared)}"
    return given, ids


# -- transports --------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """outcome: "ok", or the class of the error that was told. data: all that was told, as bytes."""

    outcome: str
    data: bytes
    status: int = 0


@dataclass
class Call:
    """One request. path: of a GET over HTTP alone. batches: of a put."""

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    path: str = ""
    batches: tuple[pa.RecordBatch, ...] = ()


def over_flight(world: World, authorization: str | None, call: Call) -> Answer:
    client = world.flight
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    options = fl.FlightCallOptions(timeout=30, headers=headers)
    body = encode(call.op, call.arguments, call.payload)
    try:
        how = OPERATIONS[call.op].call
        if how == "action":
            told = [result.body.to_pybytes() for result in client.do_action(fl.Action(call.op, body), options)]
        elif how == "get":
            told = [repr(client.do_get(fl.Ticket(body), options).read_all().to_pylist()).encode()]
        else:
            writer, reader = client.do_put(fl.FlightDescriptor.for_command(body), PUT_SCHEMA, options)
            try:
                for batch in call.batches:
                    writer.write_batch(batch)
                writer.done_writing()
                told = [b""]
                while (part := reader.read()) is not None:
                    told.append(part.to_pybytes())
            finally:
                writer.close()
        return Answer("ok", b"".join(told))
    except fl.FlightError as error:
        found = wire_errors.decode(error.extra_info) if error.extra_info else None
        assert found is not None, error
        return Answer(type(found).__name__, str(error).encode() + error.extra_info)


def over_http(world: World, authorization: str | None, call: Call) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", world.served.told["http_port"], timeout=30)
    headers = {} if authorization is None else {"authorization": authorization}
    try:
        if call.path:
            connection.request("GET", call.path, headers=headers)
        elif call.op == "put":
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, PUT_SCHEMA) as writer:
                for batch in call.batches:
                    writer.write_batch(batch)
            headers["content-type"] = "application/vnd.apache.arrow.stream"
            path = f"/v1/put?session={call.arguments['session']}"
            connection.request("POST", path, sink.getvalue().to_pybytes(), headers)
        else:
            headers["content-type"] = "application/octet-stream"
            connection.request("POST", f"/v1/{call.op}", encode(call.op, call.arguments, call.payload), headers)
        response = connection.getresponse()
        data = response.read()
        head = "".join(f"{name}: {value}\n" for name, value in response.getheaders()).encode()
        outcome = "ok" if response.status == 200 else json.loads(data)["error"]
        if response.status == 200 and OPERATIONS[call.op].call == "get" and data:
            data = repr(pa.ipc.open_stream(data).read_all().to_pylist()).encode()
        return Answer(outcome, head + data, response.status)
    finally:
        connection.close()


TRANSPORTS = {"flight": over_flight, "http": over_http}

# -- the operations ----------------------------------------------------------------------------------------------------

Ask = Callable[..., Answer]  # (op, **arguments): with the credential and the transport of the row


class Row(NamedTuple):
    """Who may, and what is asked for. `outcome`: what who may gets."""

    allowed: frozenset[str]
    call: Callable[[World, Ask], Call]
    outcome: str = "ok"


def _session(world: World, ask: Ask) -> str:
    """One of the credential's own; where it has none, another's, which it must not be able to use."""
    answer = ask("open")
    if answer.outcome != "ok":
        return "0" * 32
    return str(json.loads(answer.data[answer.data.index(b"{") :])["session"])


def _put(world: World, ask: Ask) -> Call:
    value = world.name().encode() * 100
    columns = [[digest_of(value)], [1], [1], [0], [value]]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(one, type.type) for one, type in zip(columns, PUT_SCHEMA, strict=True)], schema=PUT_SCHEMA
    )
    return Call("put", {"session": _session(world, ask)}, batches=(batch,))


def _publish(world: World, ask: Ask) -> Call:
    update = {"name": f"dataset/birds/{world.name()}", "old": None, "new": world.commit}
    told = {"id": digest_of(world.name().encode()).hex()[:32], "action": "branch", "updates": [update], "ends": []}
    return Call("publish", {"session": _session(world, ask), **told})


def _token(world: World, ask: Ask) -> Call:
    made, _ = TokenRing.of(world.store).add(world.name(), [Grant.parse("read:birds")])
    return Call("token_revoke", {"token": made.id})


def _job(world: World, ask: Ask) -> Call:
    daemon = world.served.daemon
    assert daemon is not None
    wait_until(
        lambda: not at_work(world.store) and all(job.ended for job in daemon.jobs.list()), lambda: "a job goes on"
    )
    return Call("job", {"kind": "check", "options": {}})


def _lease(world: World, ask: Ask) -> Call:
    answer = ask("lease", commit=world.commit)
    found = answer.data[answer.data.index(b"{") :] if answer.outcome == "ok" else b'{"lease": "0000"}'
    return Call("release", {"lease": json.loads(found)["lease"]})


def just(
    op: str, payload: Callable[[World], bytes] = lambda world: b"", **arguments: Any
) -> Callable[[World, Ask], Call]:
    """A request whose arguments are the same for everybody; "COMMIT" stands for the head of birds."""

    def call(world: World, ask: Ask) -> Call:
        told = {name: world.commit if value == "COMMIT" else value for name, value in arguments.items()}
        return Call(op, told, payload(world))

    return call


def web(op: str, path: str) -> Callable[[World, Ask], Call]:
    return lambda world, ask: Call(op, path=path.format(digest=digest_of(world.value).hex(), commit=world.commit))


def _chunk(world: World) -> bytes:
    return digest_of(world.value)


def _commit(world: World) -> bytes:
    return parse_hex(world.commit)


ROWS: dict[str, Row] = {
    "hello": Row(READ_ANY, just("hello")),
    "state": Row(READ_ANY, just("state")),
    "find": Row(READ_ANY, just("find", _commit)),
    "get": Row(READ_BIRDS, just("get", _commit)),
    "rows": Row(READ_BIRDS, just("rows", dataset="birds")),
    "take": Row(READ_BIRDS, just("take", lambda world: bytes(8), dataset="birds")),
    "history": Row(READ_ANY, just("history")),
    "lease": Row(READ_BIRDS, just("lease", commit="COMMIT")),
    "release": Row(READ_ANY, _lease),
    "plan": Row(READ_ANY, just("plan", _chunk, reader="r")),
    "tell": Row(READ_ANY, just("tell", reader="r")),
    "open": Row(WRITE_ANY, just("open")),
    "put": Row(WRITE_ANY, _put),
    "flush": Row(WRITE_ANY, lambda world, ask: Call("flush", {"session": _session(world, ask)})),
    "publish": Row(WRITE_BIRDS, _publish),
    "close": Row(WRITE_ANY, lambda world, ask: Call("close", {"session": _session(world, ask)})),
    "append": Row(
        ADMIN_STORE,
        lambda world, ask: Call("append", {"settings": {"quota_bytes": (1 << 40) + len(world.name())}, "requires": []}),
    ),
    "job": Row(ADMIN_STORE, _job),
    "jobs": Row(ADMIN_STORE, just("jobs")),
    "stop": Row(ADMIN_STORE, just("stop", job="0" * 16), "NotFound"),
    "token_add": Row(
        ADMIN_BIRDS, lambda world, ask: Call("token_add", {"name": world.name(), "grants": ["read:birds"]})
    ),
    "token_ls": Row(ADMIN_ANY, just("token_ls")),
    "token_revoke": Row(ADMIN_BIRDS, _token),
    "block": Row(PEERS, just("block", **{"from": "x"})),
    "member": Row(PEERS, just("member")),
    "healthz": Row(EVERYBODY, web("healthz", "/healthz")),
    "readyz": Row(EVERYBODY, web("readyz", "/readyz")),
    "openapi": Row(READ_ANY, web("openapi", "/openapi.json")),
    "metrics": Row(READ_STORE, web("metrics", "/metrics")),
    "content": Row(READ_ANY, web("content", "/content")),
    "content.kind": Row(READ_ANY, web("content.kind", "/content/dataset")),
    "content.chunk": Row(READ_BIRDS, web("content.chunk", "/content/chunks/{commit}")),
    "content.version": Row(READ_BIRDS, web("content.version", "/content/dataset/birds")),
    "content.rows": Row(READ_BIRDS, web("content.rows", "/content/dataset/birds/rows")),
    "content.value": Row(READ_BIRDS, web("content.value", "/content/dataset/birds/rows/0/what")),
    "content.files": Row(READ_BIRDS, web("content.files", "/content/dataset/birds/files/")),
}
# What a credential that may ask, but not for this, is told: it is not there.
HIDDEN = {"get": "ChunkMissing", "content.chunk": "ChunkMissing", "lease": "BadInput", "token_revoke": "NotFound"}


def expected(op: str, credential: str) -> str:
    row = ROWS[op]
    if credential in row.allowed:
        return row.outcome
    if credential in STRANGERS:
        return BAD
    if op in HIDDEN and OPERATIONS[op].scope.value in {"read": READ_ANY, "admin": ADMIN_ANY}:
        reach = READ_ANY if OPERATIONS[op].scope.value == "read" else ADMIN_ANY
        return HIDDEN[op] if credential in reach else NO
    return NO


def test_every_operation_stands_in_the_matrix() -> None:
    assert ROWS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("op", ROWS)
def test_who_may_do_what(world: World, op: str) -> None:
    wrong, seen = [], Counter[tuple[str, str | None, str]]()
    before_audit = _audited(world)
    for credential, transport in product((*STRANGERS, *KNOWN), TRANSPORTS):
        if transport == "flight" and " " in OPERATIONS[op].call:
            continue
        send = partial(_send, world, seen, credential, transport)
        call = ROWS[op].call(world, lambda name, send=send, **arguments: send(Call(name, arguments)))
        before = world.fingerprint()
        answer = send(call)
        case = f"{op} {credential} {transport}: {answer.outcome}"
        if answer.outcome != expected(op, credential):
            wrong.append(f"{case}, not {expected(op, credential)}: {answer.data[-300:]!r}")
        if answer.outcome in (NO, BAD):
            if world.fingerprint() != before:
                wrong.append(f"{case}: and yet something changed")
            if transport == "http" and answer.status != (403 if answer.outcome == NO else 401):
                wrong.append(f"{case}: with status {answer.status}")
        if credential not in READ_BIRDS and _tells_of_birds(world, answer):
            wrong.append(f"{case}: tells what it must not: {answer.data[-300:]!r}")
    assert not wrong, "\n".join(wrong)
    # gRPC tells the end of a call some time after its client has the answer.
    wait_until(lambda: _audited(world) - before_audit == seen, lambda: f"{_audited(world) - before_audit}\n{seen}")


def _send(
    world: World, seen: Counter[tuple[str, str | None, str]], credential: str, transport: str, call: Call
) -> Answer:
    """Ask, and note what the audit log is to say of it."""
    answer = TRANSPORTS[transport](world, world.credentials[credential], call)
    _expect(seen, world, call.op, credential, transport, answer.outcome)
    return answer


def _expect(
    seen: Counter[tuple[str, str | None, str]], world: World, op: str, credential: str, transport: str, outcome: str
) -> None:
    """What the audit log is to say of a request."""
    operation = OPERATIONS[op]
    if not (operation.writes or outcome in (NO, BAD)):
        return
    # Over Flight the name of a "get" stands in the request, which nobody looks at before its sender is known.
    name = operation.call if outcome == BAD and transport == "flight" and operation.call != "action" else op
    seen[name, world.ids.get(credential), outcome] += 1


def _audited(world: World) -> Counter[tuple[str, str | None, str]]:
    if not world.audit.exists():
        return Counter()
    lines = [json.loads(line) for line in world.audit.read_text().splitlines()]
    return Counter((line["operation"], line["principal"], line["outcome"]) for line in lines)


def _tells_of_birds(world: World, answer: Answer) -> bool:
    """An error may name the digest that was asked for; an answer may not hold it."""
    if answer.outcome == "ok" and (world.commit.encode() in answer.data or parse_hex(world.commit) in answer.data):
        return True
    return SECRET_VALUE[:20] in answer.data


def test_who_gives_no_credential_may_read_where_that_is_opened_and_nothing_else(world: World, tmp_path: Path) -> None:
    """`--anonymous read`: as a token that grants "read"; what is given and wrong is refused all the same."""
    with running(
        world.store.url, in_process=True, cache_bytes=0, anonymous="read", audit_log=str(tmp_path / "a")
    ) as served:
        assert served.daemon is not None
        served.daemon.access.limit(RateLimits(failures=None))
        with fl.connect(("127.0.0.1", served.told["port"])) as client:
            opened = replace(world, served=served, flight=client)
            for op, (transport, send) in product(ROWS.keys() - {"block", "member"}, TRANSPORTS.items()):
                if transport == "flight" and " " in OPERATIONS[op].call:
                    continue
                for credential in ("none", "wrong secret", "expired", "basic"):
                    ask = partial(_ask, opened, send, credential)
                    before = opened.fingerprint()
                    call = ROWS[op].call(opened, ask)
                    if op == "token_revoke":
                        before = opened.fingerprint()  # which has just made one to revoke
                    answer = send(opened, world.credentials[credential], call)
                    wanted = expected(op, "read" if credential == "none" else credential)
                    assert answer.outcome == wanted, (op, transport, credential, answer)
                    assert opened.fingerprint() == before or op in ("lease", "release"), (op, transport, credential)


def _ask(
    world: World, send: Callable[[World, str | None, Call], Answer], credential: str, op: str, **told: Any
) -> Answer:
    return send(world, world.credentials[credential], Call(op, told))


def test_no_secret_is_in_any_log_or_document(world: World) -> None:
    texts = [world.audit.read_bytes()]
    texts += [TokenRing.of(world.store).read(one) or b"" for one in TokenRing.of(world.store).ids()]
    for name, authorization in world.credentials.items():
        if authorization is not None and name != "garbage":
            assert all(authorization.split("_", 2)[-1].encode() not in text for text in texts), name
