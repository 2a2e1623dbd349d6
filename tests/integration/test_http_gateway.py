"""The operations of the data plane over HTTP (/v1): the same requests, and what a put of Arrow must not be."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from daemon_data import LARGE, ROWS, Plane, control_plane, filled
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from serving_client import Reply

from leptonstore.daemon.http import bounds
from leptonstore.daemon.reading import CHUNK_LIST, FOUND
from leptonstore.digest import digest_of
from leptonstore.errors import Conflict, RefMissing
from leptonstore.format import pack as lpk
from leptonstore.store import Store
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.records import PUT_SCHEMA

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with filled(tmp_path_factory.mktemp("http") / "data") as store, control_plane(store) as running:
        yield running


def table(reply: Reply) -> pa.Table:
    assert (reply.status, reply.headers["content-type"]) == (200, ARROW), reply.body
    return pa.ipc.open_stream(reply.body).read_all()


def test_actions_answer_json_or_bytes(plane: Plane) -> None:
    told = plane.act("hello", "samples").json()
    assert told["store"]["name"] == "data"
    by_json = plane.ask("/v1/hello", "samples", "POST", b"{}", {"content-type": "application/json"})
    assert by_json.json() == told
    digests = [digest_of(LARGE), bytes(32)]
    reply = plane.act("find", "read", b"".join(digests))
    assert reply.headers["content-type"] == "application/octet-stream"
    found = np.frombuffer(reply.body, FOUND)
    assert found["kind"].tolist() == [CHUNK_LIST, 0] and found["plain"][0] == len(LARGE)


def test_gets_answer_an_arrow_stream(plane: Plane) -> None:
    rows = table(plane.act("rows", "samples", dataset="samples@main", columns=["id"], start=3, stop=9))
    assert rows["id"].to_pylist() == list(range(3, 9))
    numbers = np.array([7, 0, 7], "<i8").tobytes()
    assert table(plane.act("take", "samples", numbers, dataset="samples@main", columns=["id"]))["id"].to_pylist() == [
        7,
        0,
        7,
    ]
    (listed,) = table(plane.act("get", "read", digest_of(LARGE), whole=True)).to_pylist()
    assert lpk.parse_chunk_list(listed["data"]).total == len(LARGE)
    assert table(plane.act("rows", "samples", dataset="samples@main", start=ROWS, columns=["id"])).num_rows == 0


def test_errors_are_those_of_the_other_plane(plane: Plane) -> None:
    """A client makes the same exception of them, fields and all."""
    reply = plane.act("rows", "admin", dataset="samples@none")
    error = wire_errors.decode(reply.body)
    assert reply.status == 404 and type(error) is RefMissing and "none" in str(error)
    assert len(reply.body) <= 4_096


def test_an_error_before_the_first_batch_is_an_error_and_no_broken_stream(plane: Plane) -> None:
    reply = plane.act("get", "read", bytes(32))
    assert (reply.status, reply.json()["error"], reply.json()["fields"]["digest"]) == (
        404,
        "ChunkMissing",
        bytes(32).hex(),
    )


# -- put ---------------------------------------------------------------------------------------------------------------


def batch_of(values: list[bytes], digests: list[bytes] | None = None) -> pa.RecordBatch:
    names = digests or [digest_of(value) for value in values]
    columns = {
        "digest": pa.array(names, pa.binary(32)),
        "kind": pa.array([1] * len(values), pa.uint8()),
        "content": pa.array([1] * len(values), pa.uint8()),
        "plane_width": pa.array([0] * len(values), pa.uint8()),
        "data": pa.array(values, pa.large_binary()),
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in PUT_SCHEMA], schema=PUT_SCHEMA)


def stream_of(*batches: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def session(plane: Plane) -> str:
    return str(plane.act("open", "write").json()["session"])


def put(plane: Plane, body: bytes, id: str, token: str = "write") -> Reply:
    return plane.ask(f"/v1/put?session={id}", token, "POST", body, {"content-type": ARROW})


def test_what_was_put_and_flushed_is_there(plane: Plane) -> None:
    id, values = session(plane), [bytes([at]) * 5_000 for at in range(20)]
    reply = put(plane, stream_of(batch_of(values[:12]), batch_of(values[12:])), id)
    assert reply.status == 200 and reply.json()["records"] == 20, reply.body
    assert plane.act("flush", "write", session=id).status == 200
    found = np.frombuffer(plane.act("find", "write", b"".join(map(digest_of, values)), session=id).body, FOUND)
    assert found["kind"].all()
    assert plane.act("close", "write", session=id).status == 200


def test_a_put_needs_a_session_of_its_own_and_the_scope(plane: Plane) -> None:
    body = stream_of(batch_of([b"value"]))
    assert put(plane, body, session(plane), "read").status == 403
    assert put(plane, body, session(plane), "admin").status in (400, 403, 404)  # another's session
    assert plane.ask("/v1/put", "write", "POST", body, {"content-type": ARROW}).status == 400
    assert put(plane, body, "none").status in (400, 404)


def test_a_forged_digest_is_refused(plane: Plane) -> None:
    reply = put(plane, stream_of(batch_of([b"value"], [digest_of(b"another")])), session(plane))
    assert reply.status == 400 and reply.json()["error"] == "ChunkCorrupt", reply.body


def bomb() -> bytes:
    """8 GiB of zeros, in a few hundred KiB of zstd, as Arrow's own writer would send them: what it unpacks to, it says itself."""
    zeros = batch_of([bytes(1 << 20)], [bytes(32)])
    return stream_of(zeros, options=pa.ipc.IpcWriteOptions(compression="zstd"))


def test_compressed_buffers_are_refused_before_they_are_unpacked(plane: Plane) -> None:
    """They say themselves how large they become."""
    reply = put(plane, bomb(), session(plane))
    assert reply.status == 400 and "compression" in reply.json()["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ARROW1\0\0",
        bytes(1_000),
        b"\xff\xff\xff\xff" + struct.pack("<i", 1 << 30),
        b"\xff\xff\xff\xff" + struct.pack("<i", -5) + bytes(64),
        b"\xff\xff\xff\xff"
        + struct.pack("<i", bounds.PUT_MESSAGE_HEAD_BYTES_MAX)
        + b"\xff" * bounds.PUT_MESSAGE_HEAD_BYTES_MAX,
        pa.schema([pa.field("x", pa.int8())]).serialize().to_pybytes() + bytes(8),
    ],
    ids=range(7),
)
def test_a_body_that_is_no_stream_of_records_is_refused(plane: Plane, body: bytes) -> None:
    reply = put(plane, body, session(plane))
    assert (reply.status, reply.json()["error"]) == (400, "BadInput"), reply.body


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 2_500),
)
@example(changes=[(0, 255)], cut=100)
def test_an_altered_stream_is_taken_or_refused_and_never_worse(
    plane: Plane, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(stream_of(batch_of([b"some bytes", b"others" * 50])))
    for at, value in changes:
        data[at % len(data)] = value
    reply = put(plane, bytes(data[:cut] if cut % 2 else data), shared_session(plane))
    assert reply.status in (200, 400, 409), reply.body


def shared_session(plane: Plane) -> str:
    """One for many examples: a session is a store of its own."""
    if not hasattr(plane, "shared"):
        plane.shared = session(plane)  # type: ignore[attr-defined]
    return str(plane.shared)  # type: ignore[attr-defined]


def test_a_put_that_ends_early_leaves_the_session_usable(plane: Plane) -> None:
    id, whole = session(plane), stream_of(batch_of([bytes(100_000)]), batch_of([b"x" * 100_000]))
    assert put(plane, whole[: len(whole) // 2], id).status == 400
    assert put(plane, whole, id).status == 200


def test_a_published_version_is_seen_over_content(plane: Plane) -> None:
    """What a client of the other plane does, step by step: put, publish, and read it again. A lost race is told as one."""
    store: Store = plane.store
    record = store.state.refs["dataset/hidden/main"]
    id = session(plane)
    update = {"name": "dataset/hidden/copied", "old": None, "new": record.commit, "metrics": {}, "tag": False}
    told = {"session": id, "id": "a" * 32, "action": "branch", "updates": [update], "ends": [], "author": "test"}
    reply = plane.act("publish", "write", **told)
    assert reply.status == 200, reply.body
    assert plane.ask("/content/dataset/hidden@copied/rows").json()["rows"] == [{"secret": "of another team"}]
    again = plane.act("publish", "write", **{**told, "id": "b" * 32})
    assert again.status == 409 and isinstance(wire_errors.decode(again.body), Conflict), again.body
    assert any(json.loads(line).get("operation") == "publish" for line in plane.log)
