"""Collecting: what is new comes in, what is there stays, every row says where it is from; and what goes wrong."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from click.testing import CliRunner

from leptonstore import limits
from leptonstore.cli.collect import command
from leptonstore.dataset import Dataset
from leptonstore.dataset.branches import create_ref
from leptonstore.dataset.importers import file_listing
from leptonstore.errors import BadInput, DuplicateKey, SchemaError, SourceError
from leptonstore.process.collect import Writer, collect, collect_sql, items_of_list, items_of_place, watch
from leptonstore.process.collect.fetch import Fetcher, Rate, rate_of
from leptonstore.process.collect.items import Item, extra_fields
from leptonstore.store import Store

DAY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Clock:
    """A day later with every look."""

    def __init__(self) -> None:
        self.days = 0

    def __call__(self) -> datetime.datetime:
        self.days += 1
        return DAY + datetime.timedelta(days=self.days)


@pytest.fixture(autouse=True)
def clocks_that_tick_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written count as settled, but for the test that is about that."""
    monkeypatch.setattr("leptonstore.process.collect.items.RACY_COARSE_NS", -(10**15))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    (root / "a").mkdir(parents=True)
    (root / "one.txt").write_text("one")
    (root / "a" / "two.txt").write_text("two")
    (root / "a" / "big.bin").write_bytes(bytes(range(256)) * 200)
    (root / ".hidden").write_text("no")
    return root


class _Handler(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]]
    busy: ClassVar[dict[str, int]]  # answers of 503 before the real one
    asked: ClassVar[list[str]]
    moved: ClassVar[dict[str, str]]  # where redirects lead

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.partition("?")[0]
        if self.busy.get(name, 0):
            self.busy[name] -= 1
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.files.get(name)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"files": {}, "busy": {}, "asked": [], "moved": {}})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", handler
    running.shutdown()
    thread.join()
    running.server_close()


def _rows(ds: Dataset | None) -> dict[str, dict[str, Any]]:
    assert ds is not None
    return {row["path"]: row for row in ds.to_arrow().to_pylist()}


# -- files -------------------------------------------------------------------------------------------------------


def test_rows_say_where_they_are_from(store: Store, folder: Path) -> None:
    done = collect(store, "raw", items_of_place(folder), licence="CC0-1.0", clock=Clock())
    rows = _rows(done.dataset)
    assert sorted(rows) == ["a/big.bin", "a/two.txt", "one.txt"]
    two = rows["a/two.txt"]
    assert two["data"] == b"two" and two["bytes"] == 3 and two["licence"] == "CC0-1.0"
    assert two["digest"] == blake3(b"two").hexdigest()
    assert two["source"] == "file:a/two.txt" and two["collected_at"] > DAY


def test_only_what_changed_is_fetched_and_the_rest_stays_as_it_is(store: Store, folder: Path) -> None:
    clock = Clock()
    first = _rows(collect(store, "raw", items_of_place(folder), clock=clock).dataset)
    again = collect(store, "raw", items_of_place(folder), clock=clock)
    assert (again.unchanged, again.fetched_bytes) == (3, 0) and _rows(again.dataset) == first
    (folder / "one.txt").write_text("ONE and more")
    (folder / "new.txt").write_text("new")
    done = collect(store, "raw", items_of_place(folder), clock=clock)
    assert (done.added, done.changed, done.unchanged) == (1, 1, 2)
    assert done.fetched_bytes == len("ONE and more") + len("new")
    rows = _rows(done.dataset)
    assert (
        rows["a/two.txt"] == first["a/two.txt"] and rows["one.txt"]["collected_at"] > first["one.txt"]["collected_at"]
    )
    assert done.dataset is not None and len(done.dataset.commit_object.parents) == 1


def test_a_file_that_was_touched_keeps_its_row_and_time(store: Store, folder: Path) -> None:
    clock = Clock()
    first = _rows(collect(store, "raw", items_of_place(folder), clock=clock).dataset)
    (folder / "one.txt").unlink()
    (folder / "one.txt").write_text("one")
    done = collect(store, "raw", items_of_place(folder), clock=clock)
    assert (done.added, done.changed, done.unchanged) == (0, 0, 3)
    assert _rows(done.dataset)["one.txt"]["collected_at"] == first["one.txt"]["collected_at"]
    assert collect(store, "raw", items_of_place(folder), clock=clock).fetched_bytes == 0


def test_a_file_within_a_tick_of_its_clock_is_looked_at_again(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leptonstore.process.collect.items.RACY_COARSE_NS", file_listing.RACY_COARSE_NS * 10_000)
    collect(store, "raw", items_of_place(folder))
    assert collect(store, "raw", items_of_place(folder)).fetched_bytes > 0


def test_files_that_are_gone_stay_until_they_are_to_be_deleted(store: Store, folder: Path) -> None:
    collect(store, "raw", items_of_place(folder))
    (folder / "one.txt").unlink()
    kept = collect(store, "raw", items_of_place(folder))
    assert kept.gone == 1 and kept.removed == 0 and "one.txt" in _rows(kept.dataset)
    done = collect(store, "raw", items_of_place(folder), delete=True)
    assert done.removed == 1 and sorted(_rows(done.dataset)) == ["a/big.bin", "a/two.txt"]


def test_patterns_choose_by_name_or_by_path(folder: Path) -> None:
    assert [one.path for one in items_of_place(folder, ["*.txt"])] == ["a/two.txt", "one.txt"]
    assert [one.path for one in items_of_place(folder, ["a/*"], ["*.bin"])] == ["a/two.txt"]


def test_links_out_of_the_folder_are_passed_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret")
    assert "link.txt" not in [one.path for one in items_of_place(folder)]


def test_a_pipe_in_a_folder_is_not_waited_for(store: Store, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert collect(store, "raw", items_of_place(folder)).added == 3
    with pytest.raises(SourceError, match="not a regular file"):
        Fetcher().fetch(Item("pipe", folder / "pipe"))  # a file when it was listed


def test_files_that_go_while_they_are_collected_are_no_failures(store: Store, folder: Path) -> None:
    items = []
    for item in items_of_place(folder):
        items.append(item)
        shutil.rmtree(folder / "a", ignore_errors=True)
    done = collect(store, "raw", items)
    assert (done.added, done.failed) == (1, [])


def test_texts_are_strings_and_what_is_none_is_told(store: Store, folder: Path) -> None:
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    done = collect(store, "texts", items_of_place(folder, ["*.txt"]), kind="text")
    assert [path for path, _ in done.failed] == ["bad.txt"] and "UTF-8" in done.failed[0][1]
    assert _rows(done.dataset)["one.txt"]["text"] == "one"


def test_what_was_fetched_before_an_interrupt_is_kept(store: Store, folder: Path) -> None:
    def items() -> Iterator[Item]:
        yield from items_of_place(folder, ["*.txt"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(store, "raw", items(), workers=1, fetcher=Fetcher())
    there = Dataset.open(store, "raw")
    done = collect(store, "raw", items_of_place(folder))
    assert done.unchanged == len(there) >= 1 and len(_rows(done.dataset)) == 3


def test_commits_are_made_on_the_way(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COLLECT_COMMIT_ROWS", 1)
    done = collect(store, "raw", items_of_place(folder), workers=1)
    assert done.dataset is not None
    messages = []
    ds = done.dataset
    while True:
        messages.append(ds.commit_object.message)
        if not ds.commit_object.parents:
            break
        ds = ds.at("before", ds.commit_object.parents[0].hex())
    assert messages == ["collect 1 files"] * 3


def test_a_bucket_is_collected_by_its_etags(store: Store, bucket_url: str) -> None:
    from leptonstore.dataset.places import place_of

    root = place_of(f"{bucket_url}/raw")
    for name, data in (("a/x.bin", b"1" * 100), ("y.bin", b"2" * 100)):
        with (root / name).creating() as file:  # type: ignore[union-attr]
            file.write(data)
    done = collect(store, "raw", items_of_place(str(root)))
    assert done.added == 2 and all(row["tag"] for row in _rows(done.dataset).values())
    assert _rows(done.dataset)["a/x.bin"]["source"] == f"{root}/a/x.bin"
    with (root / "y.bin").creating() as file:  # type: ignore[union-attr]
        file.write(b"3" * 100)  # as many bytes
    again = collect(store, "raw", items_of_place(str(root)))
    assert (again.changed, again.unchanged, again.fetched_bytes) == (1, 1, 100)


# -- lists -------------------------------------------------------------------------------------------------------


def test_a_list_of_urls_is_fetched_and_checked(store: Store, server: tuple[str, Any], tmp_path: Path) -> None:
    url, handler = server
    handler.files |= {"/a.bin": b"alpha", "/b.bin": b"beta"}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in handler.files.items()}
    manifest = tmp_path / "list.csv"
    manifest.write_text(
        "url,path,sha256,licence,label\n"
        f"{url}/a.bin?token=secret,x/a.bin,{sums['/a.bin']},MIT,cat\n"
        f"{url}/b.bin,x/b.bin,{sums['/b.bin']},,dog\n"
    )
    done = collect(store, "web", items_of_list(manifest), more=extra_fields(manifest), licence="unknown")
    rows = _rows(done.dataset)
    assert (
        rows["x/a.bin"]["data"] == b"alpha"
        and rows["x/a.bin"]["licence"] == "MIT"
        and rows["x/a.bin"]["label"] == "cat"
    )
    assert rows["x/b.bin"]["licence"] == "unknown"
    assert rows["x/a.bin"]["source"] == f"{url}/a.bin", "a query may be a signature"
    asked = len(handler.asked)
    assert collect(store, "web", items_of_list(manifest), more=extra_fields(manifest)).unchanged == 2
    assert len(handler.asked) == asked, "the checksums of the list did not change"


def test_what_is_not_what_its_checksum_says_does_not_come_in(
    store: Store, server: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = server
    handler.files |= {"/a": b"alpha", "/b": b"forged"}
    manifest = tmp_path / "list.jsonl"
    lines = [{"url": f"{url}/a", "blake3": blake3(b"alpha").hexdigest()}, {"url": f"{url}/b", "md5": "0" * 32}]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = collect(store, "web", items_of_list(manifest))
    assert done.added == 1 and len(done.failed) == 1
    assert "md5" in done.failed[0][1] and "not 00000000" in done.failed[0][1]


def test_a_server_that_is_busy_is_asked_again_and_a_missing_file_is_told(
    store: Store, server: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = server
    handler.files["/a"] = b"alpha"
    handler.busy["/a"] = 2
    urls = tmp_path / "urls.txt"
    urls.write_text(f"# what we want\n{url}/a\n{url}/gone\n")
    done = collect(store, "web", items_of_list(urls))
    assert handler.asked.count("/a") == 3
    assert done.added == 1 and "404" in done.failed[0][1]


def test_nothing_that_can_be_collected_is_an_error(store: Store, tmp_path: Path) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text("http://127.0.0.1:9/closed\n")
    fetcher = Fetcher()
    with pytest.raises(SourceError, match="none of 1 files"):
        collect(store, "web", [Item("x", one.place) for one in items_of_list(urls)], fetcher=_impatient(fetcher))
    assert "dataset/web/main" not in store.state.refs


def _impatient(fetcher: Fetcher) -> Fetcher:
    import urllib3

    fetcher._http = urllib3.PoolManager(retries=urllib3.Retry(0))
    return fetcher


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("../../etc/passwd", "not one inside"),
        ("/etc/passwd", "not one inside"),
        ("file:///etc/passwd", "a file of this machine"),
        ("local:///etc/passwd", "not local:"),
        ("zip://passwd::file:///etc/archive.zip", "not zip:"),
        ("filecache:///::file:///etc/passwd", "not filecache:"),
        ("s3://bucket/a::file:///etc/passwd", "not s3:"),
    ],
)
def test_a_list_cannot_name_files_of_the_machine(tmp_path: Path, line: str, what: str) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_text(line + "\n")
    with pytest.raises(SourceError, match=what):
        list(items_of_list(urls))


def test_a_list_that_is_one_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    urls = tmp_path / "urls.txt"
    urls.write_bytes(b"http://h/a\n" + b"x" * (limits.COLLECT_LIST_LINE_BYTES_MAX + 1))
    with pytest.raises(SourceError, match="line 2 has over"):
        list(items_of_list(urls))


def test_what_a_list_says_anew_of_a_file_comes_in_though_its_checksum_stays(
    store: Store, server: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = server
    handler.files["/a"] = b"alpha"
    manifest = tmp_path / "list.csv"
    head, checksum = "url,path,blake3,licence,label\n", blake3(b"alpha").hexdigest()
    for licence, label in (("MIT", "cat"), ("MIT", "dog"), ("CC0", "dog")):
        manifest.write_text(f"{head}{url}/a,a,{checksum},{licence},{label}\n")
        done = collect(store, "web", items_of_list(manifest), more=extra_fields(manifest), clock=lambda: DAY)
        assert done.added + done.changed == 1
        row = _rows(done.dataset)["a"]
        assert (row["licence"], row["label"], row["collected_at"]) == (licence, label, DAY)
    assert collect(store, "web", items_of_list(manifest), more=extra_fields(manifest)).unchanged == 1


@pytest.mark.parametrize("name", ["data", "digest", "source", "collected_at", "tag"])
def test_a_list_with_a_column_that_files_have_of_their_own_is_refused_before_anything_is_fetched(
    store: Store, tmp_path: Path, name: str
) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"path": "not there", name: "x"}) + "\n")
    with pytest.raises(BadInput, match=f"a column '{name}'.*rename"):
        collect(store, "web", items_of_list(manifest), more=extra_fields(manifest))


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/loop", "http://[::bad"])
def test_redirects_lead_to_http_alone_and_not_in_circles(
    store: Store, server: tuple[str, Any], tmp_path: Path, place: str
) -> None:
    url, handler = server
    handler.moved["/loop"] = place
    urls = tmp_path / "urls.txt"
    urls.write_text(f"{url}/loop\n")
    with pytest.raises(SourceError, match=r"none of 1 files.*could not be fetched|none of 1 files.*answers 302"):
        collect(store, "web", items_of_list(urls))


@pytest.mark.parametrize("path", ["../up", "/top", "a//b", "a/./b", "a\\b", "x" * 2000])
def test_rows_have_names_that_an_export_can_use(tmp_path: Path, path: str) -> None:
    manifest = tmp_path / "list.jsonl"
    manifest.write_text(json.dumps({"url": "http://h/x", "path": path}) + "\n")
    with pytest.raises(BadInput, match="cannot name a row"):
        list(items_of_list(manifest))


def test_two_items_of_one_path_are_refused(store: Store, folder: Path) -> None:
    (one, *_) = items_of_place(folder, ["one.txt"])
    with pytest.raises(BadInput, match=r"two files would be row 'one\.txt'"):
        collect(store, "raw", [one, one])


def test_another_dataset_is_not_written_into(store: Store, folder: Path) -> None:
    collect(store, "raw", items_of_place(folder))
    with pytest.raises(SchemaError, match=r"no column .text.; its content was collected as .file.: say --kind file"):
        collect(store, "raw", items_of_place(folder, ["*.txt"]), kind="text")


def test_nothing_is_fetched_for_a_tag(store: Store, folder: Path) -> None:
    done = collect(store, "raw", items_of_place(folder))
    assert done.dataset is not None
    create_ref(store, "dataset", "raw", "v1", done.dataset.commit, tag=True)
    (folder / "one.txt").unlink()
    with pytest.raises(BadInput, match=r"raw@v1 is a tag, which never moves: write to a branch"):
        collect(store, "raw", items_of_place(folder), branch="v1")


def test_a_rate_lets_requests_through_one_after_another() -> None:
    time, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time[0] += seconds

    rate = Rate(rate_of("4/s"), lambda: time[0], sleep)
    for _ in range(5):
        rate.wait()
    assert slept == [0.25] * 4
    assert rate_of("120/m") == 2.0
    with pytest.raises(BadInput, match="is no rate"):
        rate_of("fast")


def test_an_interrupt_does_not_wait_for_the_turns_of_those_in_flight(
    store: Store, server: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = server
    handler.files |= {f"/{number}": b"data" for number in range(20)}
    urls = tmp_path / "urls.txt"
    urls.write_text("".join(f"{url}/{number}\n" for number in range(20)))

    def interrupt(items: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        collect(store, "web", items_of_list(urls), fetcher=Fetcher(Rate(rate_of("1/h"))), workers=4, progress=interrupt)
    assert not [one for one in threading.enumerate() if one.name.startswith("lepton-collect")], before
    assert len(_rows(Dataset.open(store, "web"))) == 1


def test_a_fetcher_that_was_stopped_can_be_used_again(store: Store, folder: Path) -> None:
    fetcher = Fetcher()
    fetcher.stop()
    assert collect(store, "raw", items_of_place(folder), fetcher=fetcher).added == 3


# -- watching ----------------------------------------------------------------------------------------------------


def test_a_watched_directory_is_collected_when_files_come(store: Store, folder: Path) -> None:
    stop = threading.Event()
    looks = watch(
        folder, lambda items: collect(store, "raw", items), lambda: items_of_place(folder), settle_s=0.0, stop=stop
    )
    assert next(looks).added == 3
    (folder / "late.txt").write_text("late")
    added = 0
    while not added:  # every look follows a change, so this ends with the one that was made here
        added = next(looks).added
    stop.set()
    assert added == 1 and "late.txt" in _rows(Dataset.open(store, "raw"))


def test_a_file_that_is_being_written_is_left_until_it_is_quiet(store: Store, folder: Path) -> None:
    looks = watch(folder, lambda items: collect(store, "raw", items), lambda: items_of_place(folder), settle_s=10_000.0)
    assert next(looks).added == 0


def test_a_file_that_is_written_to_again_is_not_deleted_as_gone(store: Store, folder: Path) -> None:
    collect(store, "raw", items_of_place(folder))
    looks = watch(
        folder,
        lambda items: collect(store, "raw", items, delete=True),
        lambda: items_of_place(folder),
        settle_s=10_000.0,
    )
    done = next(looks)
    assert (done.gone, done.removed) == (0, 0) and len(_rows(done.dataset)) == 3


def test_only_directories_of_this_machine_are_watched(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no directory"):
        next(watch(tmp_path / "none", lambda items: collect(store, "raw", items), lambda: iter(())))


# -- SQL ---------------------------------------------------------------------------------------------------------


def test_rows_of_sql_are_kept_up_to_date_by_key(store: Store, tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "app.duckdb"
    with duckdb.connect(str(file)) as database:
        database.execute(
            "create table trips as select i as id, i * 1.5 as fare, 'x' || i as name from range(1000) t(i)"
        )
    ask = "select * from trips"
    first = collect_sql(store, "trips", ask, ("id",), file, licence="internal", clock=clock)
    assert first.added == 1000 and first.dataset is not None and first.dataset.keyed
    row = first.dataset[0]
    assert row["source"] == "sql:app.duckdb" and row["licence"] == "internal" and len(row["digest"]) == 64
    with duckdb.connect(str(file)) as database:
        database.execute(
            "update trips set fare = 0 where id = 7; insert into trips values (5000, 1, 'new');"
            "delete from trips where id = 3"
        )
    done = collect_sql(store, "trips", ask, ("id",), file, clock=clock)
    assert (done.added, done.changed, done.unchanged, done.gone) == (1, 1, 998, 1)
    assert done.dataset is not None
    times = dict(zip(*(done.dataset.to_arrow([name])[0].to_pylist() for name in ("id", "collected_at")), strict=True))
    assert times[8] == row["collected_at"] and times[7] > times[8] and 3 in times
    gone = collect_sql(store, "trips", ask, ("id",), file, delete=True, clock=clock)
    assert gone.removed == 1 and gone.dataset is not None and len(gone.dataset) == 1000


def test_sql_reads_parquet_and_bad_statements_are_told(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"k": ["a", "b"], "v": [1, None]}), tmp_path / "t.parquet")
    done = collect_sql(store, "t", f"from '{tmp_path}/t.parquet'", ("k",))
    assert done.added == 2 and done.dataset is not None and done.dataset[1]["v"] is None
    for statement, what in (
        ("selec 1", "cannot run"),
        ("create table x(i int)", "one SELECT"),
        ("select 1 as a", "'k' is no column"),
    ):
        with pytest.raises(BadInput, match=what):
            collect_sql(store, "t", statement, ("k",))
    with pytest.raises(SchemaError, match="rename it"):
        collect_sql(store, "t", "select 'a' as k, 'x' as source", ("k",))
    with pytest.raises(SourceError, match="cannot open"):
        collect_sql(store, "t", "select 1", ("k",), tmp_path / "none.duckdb")


# -- the writer --------------------------------------------------------------------------------------------------

EVENTS = pa.schema([("partition", pa.int32()), ("offset", pa.int64()), ("body", pa.string())])
KEY = ("partition", "offset")


def _event(offset: int, body: str = "") -> dict[str, Any]:
    return {"partition": 0, "offset": offset, "body": body or f"event {offset}"}


def test_sql_that_gives_a_key_twice_far_apart_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SQL_BATCH_ROWS", 2_048)
    with pytest.raises(DuplicateKey, match="two rows with id = 0"):
        collect_sql(store, "rows", "select range % 5000 as id, range as x from range(5008) order by range", ("id",))


def test_a_writer_makes_few_versions_and_all_rows_are_there(store: Store) -> None:
    with Writer(store, "events", EVENTS, KEY, rows=100) as writer:
        durable = [writer.append([_event(at)]) for at in range(250)]
    assert durable.count(True) == 2 and durable[99] and durable[199]
    ds = Dataset.open(store, "events")
    assert len(ds) == 250 and len(store.state.refs) == 1


def test_messages_that_come_again_after_a_crash_are_one_row(store: Store) -> None:
    writer = Writer(store, "events", EVENTS, KEY, rows=100)
    for at in range(150):
        writer.append(
            [_event(at)]
        )  # then the process is gone: 100 are durable, and the consumer's offset says 100 at most
    with Writer(store, "events", EVENTS, KEY) as again:
        again.append([_event(at) for at in range(90, 200)])
        again.append([_event(199, "the later one")])
    ds = Dataset.open(store, "events")
    assert ds.to_arrow(["offset"])[0].to_pylist() == list(range(200)) and ds[199]["body"] == "the later one"


def test_a_version_is_made_when_rows_have_waited_long_enough(store: Store) -> None:
    time = [0.0]
    writer = Writer(store, "events", EVENTS, KEY, seconds=30.0, clock=lambda: time[0])
    assert not writer.append([_event(0)])
    time[0] = 31.0
    assert writer.append([_event(1)]) and writer.flushed and len(Dataset.open(store, "events")) == 2


def test_rows_that_do_not_fit_a_writer_are_told(store: Store) -> None:
    with pytest.raises(SchemaError, match="the key 'id' is no column"):
        Writer(store, "events", EVENTS, ("id",))
    writer = Writer(store, "events", EVENTS, KEY)
    with pytest.raises(SchemaError, match="'offset' is missing"):
        writer.append([{"partition": 1}])


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_says_what_came_and_names_what_failed(store: Store, folder: Path, tmp_path: Path) -> None:
    runner, place = CliRunner(), ["--store", store.url]
    found = runner.invoke(command, ["files", str(folder), "raw", "--include", "*.txt", "--kind", "text", *place])
    assert found.exit_code == 0 and "2 new; 6 B fetched" in found.output
    (folder / "bad.txt").write_bytes(b"\xff")
    found = runner.invoke(
        command, ["files", str(folder), "raw", "--include", "*.txt", "--kind", "text", "--json", *place]
    )
    value = json.loads(found.stdout.splitlines()[-1])
    assert found.exit_code == 1 and value["failed"][0]["path"] == "bad.txt" and value["unchanged"] == 2
    (tmp_path / "l.csv").write_text("path,kind\nraw/one.txt,a\n")
    found = runner.invoke(command, ["list", str(tmp_path / "l.csv"), "listed", "--rate", "100/s", "--json", *place])
    assert (
        json.loads(found.stdout.splitlines()[-1])["added"] == 1
        and Dataset.open(Store.open(store.url), "listed")[0]["kind"] == "a"
    )
    found = runner.invoke(command, ["watch", str(folder), "seen", "--settle", "0", "--rounds", "1", *place])
    assert found.exit_code == 0 and "4 new" in found.output
    found = runner.invoke(command, ["sql", "select 1 as id, 'x' as v", "rows", "--key", "id", *place])
    assert found.exit_code == 0 and "1 new" in found.output
