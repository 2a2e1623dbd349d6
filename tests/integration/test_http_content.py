"""Content over HTTP, as browsers, caches and curl use it: a real server on loopback, and what it says against what the store holds."""

from __future__ import annotations

import email.parser
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from daemon_data import FILES, LARGE, ROWS, Plane, control_plane, filled, jpeg, source
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from leptonstore.daemon.access import AccessSettings
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.dataset import write_dataset
from leptonstore.digest import digest_of

ARROW = "application/vnd.apache.arrow.stream"
LARGE_DIGEST = digest_of(LARGE).hex()
SAMPLES = "/content/dataset/samples@main"
FILES_AT = "/content/dataset/files@main/files"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with filled(tmp_path_factory.mktemp("http") / "data") as store, control_plane(store) as running:
        yield running


def test_names_are_those_that_the_credential_may_read(plane: Plane) -> None:
    def names(token: str, path: str = "/content") -> set[str]:
        return {each["name"] for each in plane.ask(path, token).json()["names"]}

    assert names("read") == {"samples", "files", "hidden"}
    assert names("samples") == {"samples"}
    assert names("other", "/content/dataset") == {"hidden"}
    assert names("read", "/content/model") == set()
    assert plane.ask("/content/tables").status == 404


def test_a_version_is_told_with_its_schema(plane: Plane) -> None:
    ds = plane.dataset("samples")
    told = plane.ask(SAMPLES).json()
    assert (told["commit"], told["rows"], told["ref"], told["message"]) == (ds.commit, ROWS, "main", "all of them")
    assert [column["name"] for column in told["columns"]] == ds.schema.names
    columns = {column["name"]: column for column in told["columns"]}
    assert columns["label"]["classes"] == ["zero", "one", "two"]
    assert columns["image"] == {
        "name": "image",
        "type": "tensor of uint8, 28 x 28",
        "nullable": False,
        "semantic": "image",
    }
    assert plane.ask("/content/dataset/samples").json()["commit"] == ds.commit
    assert plane.ask("/content/dataset/samples@main~1").json()["rows"] == ROWS // 2


def test_rows_as_json_are_the_rows_and_pages_follow_one_another(plane: Plane) -> None:
    expected = plane.dataset("samples").to_arrow(["id", "words"]).to_pylist()
    found, at = [], 0
    while at is not None:
        page = plane.ask(f"{SAMPLES}/rows?start={at}&stop={at + 7}&columns=id,words").json()
        assert page["of"] == ROWS and page["start"] == at
        found += page["rows"]
        at = page["next"]
    assert found == expected
    (row,) = plane.ask(f"{SAMPLES}/rows?start=1&stop=2").json()["rows"]
    assert row["score"] == "NaN" and row["a/b, c%d"] == [0]
    assert plane.ask(row["photo"]["href"]).body == jpeg(1)
    assert plane.ask(f"{SAMPLES}/rows?columns=a/b,%20c%25d&start=2&stop=3").json()["rows"] == [{"a/b, c%d": [0, 1]}]


@pytest.mark.parametrize(
    "query", ["start=-1", "start=x", "start=41", "stop=1e3", "columns=none", "start=1&start=2", "limit=3"]
)
def test_rows_that_make_no_sense_are_refused(plane: Plane, query: str) -> None:
    for accept in ("application/json", ARROW):
        reply = plane.ask(f"{SAMPLES}/rows?{query}", headers={"accept": accept})
        assert (reply.status, reply.json()["error"]) == (400, "BadInput"), reply.body


def test_rows_as_an_arrow_stream_are_the_table(plane: Plane) -> None:
    ds = plane.dataset("samples")
    for query, expected in (
        ("", ds.to_arrow()),
        ("?start=5&stop=9&columns=id,photo", ds.to_arrow(["id", "photo"]).slice(5, 4)),
        ("?start=40", ds.to_arrow().slice(0, 0)),
    ):
        reply = plane.ask(f"{SAMPLES}/rows{query}", headers={"accept": f"{ARROW}, application/json;q=0.5"})
        assert reply.headers["content-type"] == ARROW
        found = pa.ipc.open_stream(reply.body).read_all()
        names = [name for name in found.column_names if name != "score"]  # it has a NaN, which equals nothing
        assert found.schema.equals(expected.schema) and found.num_rows == expected.num_rows
        assert found.select(names).combine_chunks().equals(expected.select(names).combine_chunks())


def test_a_value_is_sent_as_what_it_is(plane: Plane) -> None:
    ds = plane.dataset("samples")
    for row in (0, 7, ROWS - 1):
        photo = plane.ask(f"{SAMPLES}/rows/{row}/photo")
        assert (photo.body, photo.headers["content-type"]) == (jpeg(row), "image/jpeg")
        image = plane.ask(f"{SAMPLES}/rows/{row}/image")
        assert np.array_equal(np.load(io.BytesIO(image.body), allow_pickle=False), ds[row]["image"])
        words = plane.ask(f"{SAMPLES}/rows/{row}/words")
        assert (words.body.decode(), words.headers["content-type"]) == (f"row {row} äöü", "text/plain; charset=utf-8")
        assert plane.ask(f"{SAMPLES}/rows/{row}/label").json() == row % 3
        assert plane.ask(f"{SAMPLES}/rows/{row}/a%2Fb%2C%20c%25d").json() == list(range(row))
    for path in ("3/words", f"{ROWS}/id", "0/none", "9" * 17 + "/id"):
        assert plane.ask(f"{SAMPLES}/rows/{path}").status == 404
    for path in ("-1/id", "x/id", "9" * 5_000 + "/id", "%D9%A1/id"):
        assert plane.ask(f"{SAMPLES}/rows/{path}").status == 400


def test_files_are_served_and_nothing_is_served_that_a_browser_would_run(plane: Plane) -> None:
    for path, data in FILES.items():
        reply = plane.ask(f"{FILES_AT}/{path}")
        assert (reply.status, reply.body) == (200, data), path
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in reply.headers["content-security-policy"]
    assert plane.ask(f"{FILES_AT}/page.html").headers["content-type"].startswith("text/plain")
    listed = plane.ask(FILES_AT).json()
    assert {each["name"] for each in listed["entries"]} == {"a.txt", "deep", "empty", "large.bin", "page.html"}
    for each in listed["entries"]:
        assert plane.ask(each["href"]).status == 200
    table = plane.ask("/content/dataset/samples@main/files/data").json()["entries"]
    parquet = plane.ask(table[0]["href"]).body
    assert pq.read_table(io.BytesIO(parquet)).num_rows == ROWS


@pytest.mark.parametrize(
    "path",
    [
        *("..", "../a.txt", "%2e%2e/a.txt", "%2e%2e%2fa.txt", "..%2f..%2f..%2fetc%2fpasswd", "%252e%252e%252fa.txt"),
        *(
            "/etc/passwd",
            "a.txt/../a.txt",
            "..%5ca.txt",
            "a.txt%00",
            "a%2etxt%2f",
            "%c0%ae%c0%ae/a.txt",
            "...//a.txt",
            "./a.txt",
        ),
    ],
)
def test_paths_that_climb_lead_nowhere(plane: Plane, path: str) -> None:
    reply = plane.ask(f"{FILES_AT}/{path}")
    # One that means a file of the version by another spelling may be that file; nothing else is ever sent.
    assert reply.status in (400, 404) or reply.body == b"hello", reply.body[:100]
    assert b"root:" not in reply.body


def test_a_path_is_decoded_once(plane: Plane) -> None:
    assert plane.ask(f"{FILES_AT}/%61.txt").body == b"hello"
    assert plane.ask(f"{FILES_AT}/%2561.txt").status == 404


# -- caches ------------------------------------------------------------------------------------------------------------


def test_a_digest_in_the_path_is_for_ever_and_a_branch_is_asked_again(plane: Plane) -> None:
    ds = plane.dataset("samples")
    for path in ("", "/rows", "/rows/1/photo"):
        fixed = plane.ask(f"/content/dataset/samples@{ds.commit}{path}")
        assert "immutable" in fixed.headers["cache-control"] and "private" in fixed.headers["cache-control"]
        moving = plane.ask(f"/content/dataset/samples@main{path}")
        assert moving.headers["cache-control"] == "private, no-cache"
        assert fixed.headers["etag"] == moving.headers["etag"]
        again = plane.ask(f"{SAMPLES}{path}", headers={"if-none-match": moving.headers["etag"]})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", moving.headers["etag"])
    short = plane.ask(f"/content/dataset/samples@{ds.commit[:12]}")
    assert short.headers["cache-control"] == "private, no-cache"  # more digits may be needed one day


def test_a_new_commit_changes_the_tag_of_its_branch(tmp_path_factory: pytest.TempPathFactory) -> None:
    with filled(tmp_path_factory.mktemp("moving") / "data") as store, control_plane(store) as plane:
        before = plane.ask("/content/dataset/hidden/rows")
        write_dataset(store, "hidden", source(pa.table({"secret": ["another"]}), ("secret",)))
        after = plane.ask("/content/dataset/hidden/rows", headers={"if-none-match": before.headers["etag"]})
        assert after.status == 200 and after.json()["rows"] == [{"secret": "another"}]


def test_what_is_open_to_everybody_may_be_kept_for_everybody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A shared cache must not hand to others what needed a credential; what needed none it may."""
    open_to_all = AccessSettings(anonymous=(Grant(Scope.READ),))
    with filled(tmp_path_factory.mktemp("open") / "data") as store, control_plane(store, settings=open_to_all) as plane:
        path = f"/content/chunks/{plane.dataset('samples').commit}"
        assert plane.ask(path, None).headers["cache-control"] == "public, max-age=31536000, immutable"
        assert plane.ask(path, "read").headers["cache-control"] == "private, max-age=31536000, immutable"
        assert "authorization" in plane.ask(path, None).headers["vary"]


def test_the_same_revalidation_needs_the_same_permission(plane: Plane) -> None:
    """A tag that somebody knows tells nothing about what is here."""
    commit = plane.dataset("hidden").commit
    headers = {"if-none-match": f'"{commit}"'}
    assert plane.ask(f"/content/chunks/{commit}", "read", headers=headers).status == 304
    assert plane.ask("/content/dataset/hidden@main", "samples", headers=headers).status == 403
    assert plane.ask("/content/dataset/hidden@main", None, headers=headers).status == 401
    # By another dataset's name, too.
    reply = plane.ask(f"/content/dataset/samples@{commit}", "samples", headers=headers)
    assert reply.status in (403, 404), reply.body


# -- ranges, against a model -------------------------------------------------------------------------------------------


def parts_of(reply_headers: dict[str, str], body: bytes) -> list[tuple[int, int, bytes]]:
    """(start, stop, bytes) of each part of a 206."""

    def span(text: str) -> tuple[int, int]:
        positions, _, size = text.removeprefix("bytes ").partition("/")
        first, _, last = positions.partition("-")
        assert int(size) == len(LARGE)
        return int(first), int(last) + 1

    kind = reply_headers["content-type"]
    if not kind.startswith("multipart/byteranges"):
        return [(*span(reply_headers["content-range"]), body)]
    message = email.parser.BytesParser().parsebytes(f"content-type: {kind}\r\n\r\n".encode() + body)
    boundary = kind.partition("boundary=")[2].encode()
    found = []
    for raw in body.split(b"--" + boundary)[1:-1]:
        head, _, data = raw.partition(b"\r\n\r\n")
        names = {
            line.split(b":")[0].strip().lower(): line.split(b":", 1)[1].strip() for line in head.strip().split(b"\r\n")
        }
        found.append((*span(names[b"content-range"].decode()), data[:-2]))
    assert len(message.get_payload()) == len(found)
    return found


POSITIONS = st.one_of(st.integers(0, 200), st.integers(0, len(LARGE) + 200), st.just(len(LARGE) - 1), st.just(10**20))
RANGES = st.lists(
    st.one_of(
        st.tuples(POSITIONS, st.integers(0, 70_000)).map(lambda two: f"{two[0]}-{two[0] + two[1]}"),
        st.integers(0, 70_000).map(lambda size: f"-{size}"),
        st.integers(len(LARGE) - 100, len(LARGE) + 10).map(lambda first: f"{first}-"),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=RANGES, whole=st.sampled_from(["chunk", "file"]))
@example(ranges=["0-0", "-1"], whole="chunk")
@example(ranges=[f"{len(LARGE)}-"], whole="chunk")
@example(ranges=["4194300-4194310"], whole="file")
def test_any_ranges_of_a_large_value_are_its_bytes(plane: Plane, ranges: list[str], whole: str) -> None:
    path = f"/content/chunks/{LARGE_DIGEST}" if whole == "chunk" else f"{FILES_AT}/large.bin"
    reply = plane.ask(path, headers={"range": f"bytes={', '.join(ranges)}"})
    wanted: set[int] = set()
    for text in ranges:
        first, _, last = text.partition("-")
        start = int(first) if first else max(0, len(LARGE) - int(last))
        stop = min(int(last) + 1, len(LARGE)) if first and last else len(LARGE)
        wanted |= set(range(start, stop))
    if not wanted:
        assert (reply.status, reply.headers["content-range"]) == (416, f"bytes */{len(LARGE)}")
        return
    assert reply.status == 206 and int(reply.headers["content-length"]) == len(reply.body)
    found: set[int] = set()
    for start, stop, data in parts_of(reply.headers, reply.body):
        assert data == LARGE[start:stop]
        found |= set(range(start, stop))
    assert found == wanted


def test_if_range_asks_for_the_rest_only_of_the_same_bytes(plane: Plane) -> None:
    path = f"/content/chunks/{LARGE_DIGEST}"
    tag = f'"{LARGE_DIGEST}"'
    rest = plane.ask(path, headers={"range": "bytes=1000-", "if-range": tag})
    assert (rest.status, rest.body) == (206, LARGE[1000:])
    assert plane.ask(path, headers={"range": "bytes=1000-", "if-range": '"another"'}).status == 200
    assert plane.ask(path, headers={"if-match": '"another"'}).status == 412


def test_head_says_what_get_would_and_sends_nothing(plane: Plane) -> None:
    paths = [
        f"/content/chunks/{LARGE_DIGEST}",
        f"{FILES_AT}/large.bin",
        SAMPLES,
        f"{SAMPLES}/rows/1/photo",
        "/content",
        "/healthz",
    ]
    for path in paths:
        got, head = plane.ask(path), plane.ask(path, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        for name in ("content-type", "content-length", "etag", "cache-control", "accept-ranges"):
            assert head.headers.get(name) == got.headers.get(name), (path, name)
    assert plane.ask("/content/dataset/none", method="HEAD").status == 404


def test_a_chunk_is_the_value_of_its_digest(plane: Plane) -> None:
    commit = plane.dataset("samples").commit
    for digest in (commit, LARGE_DIGEST):
        reply = plane.ask(f"/content/chunks/{digest}")
        assert digest_of(reply.body).hex() == digest
        assert reply.headers["etag"] == f'"{digest}"'
    for text, status in (("0" * 64, 404), ("0" * 63, 400), (commit.upper(), 400), ("g" * 64, 400), ("0" * 10_000, 400)):
        assert plane.ask(f"/content/chunks/{text}").status == status


def test_a_chunk_is_seen_by_who_may_read_a_dataset_that_has_it(plane: Plane) -> None:
    """A long value with all of its pieces, too; and what nobody may see is as absent as what is not there."""
    assert plane.ask(f"/content/chunks/{LARGE_DIGEST}", "files").body == LARGE
    absent, other = (
        plane.ask(f"/content/chunks/{'0' * 64}", "samples"),
        plane.ask(f"/content/chunks/{LARGE_DIGEST}", "samples"),
    )
    assert (absent.status, other.status) == (404, 404)
    assert other.json()["message"].replace(LARGE_DIGEST[:16], "0" * 16) == absent.json()["message"]


def test_errors_tell_neither_this_host_nor_other_datasets(plane: Plane) -> None:
    replies = [
        plane.ask("/content/dataset/nothing@main", "read"),
        plane.ask("/content/dataset/nothing", "samples"),
        plane.ask("/content/dataset/samples@none", "samples"),
        plane.ask("/content/dataset/hidden", "samples"),
        plane.ask(f"/content/chunks/{'0' * 64}", "read"),
    ]
    for reply in replies:
        told = reply.json()
        assert set(told) >= {"error", "message", "request_id"} and reply.headers["x-request-id"] == told["request_id"]
        for secret in (plane.store.url, "/tmp", "Traceback", ".py", "files, hidden"):
            assert secret not in reply.body.decode()


def test_damage_that_is_found_before_the_first_byte_has_a_status_of_its_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "data"
    with filled(path) as store, control_plane(store) as plane:
        for pack in path.rglob("*.pack"):
            data = pack.read_bytes()
            pack.chmod(0o600)
            pack.write_bytes(data[:200] + bytes(max(0, len(data) - 2_200)) + data[200:][-2_000:])
        reply = plane.ask(f"/content/chunks/{LARGE_DIGEST}")
        assert reply.status == 500 and reply.json()["error"] in ("ChunkCorrupt", "PackDamaged", "FormatDamaged")
        assert str(path) not in reply.body.decode()
