"""Parts of the dashboard without a browser: sessions and codes end, lines of a history join what they should, work is bounded."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the extra server is not installed")

from starlette.routing import Router

from leptonstore.daemon.access import Access
from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.daemon.http import pages_measure, pages_rows
from leptonstore.daemon.http.pages import Pages
from leptonstore.daemon.http.pages_audit import tail
from leptonstore.daemon.http.pages_charts import time_chart
from leptonstore.daemon.http.pages_context import PagesContext
from leptonstore.daemon.http.pages_graph import LANE_WIDTH, LANES_MAX, lanes
from leptonstore.daemon.http.pages_measure import Measures
from leptonstore.daemon.http.pages_seen import Seen
from leptonstore.daemon.http.pages_session import Sessions
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import RefMissing
from leptonstore.process.charts import as_bytes
from leptonstore.store import Store


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# -- sessions ------------------------------------------------------------------------------------------------------


def test_a_code_is_good_once_and_for_some_minutes() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    first, second = sessions.code("Bearer a"), sessions.code("Bearer a")
    assert sessions.redeem(first) == "Bearer a"
    assert sessions.redeem(first) is None and sessions.redeem("") is None
    clock.now += bounds.CODE_S
    assert sessions.redeem(second) is None


def test_codes_that_nobody_uses_are_few() -> None:
    sessions = Sessions()
    codes = [sessions.code("Bearer a") for _ in range(bounds.CODES_MAX + 5)]
    assert [sessions.redeem(code) is not None for code in codes] == [False] * 5 + [True] * bounds.CODES_MAX


def test_a_session_ends_when_it_is_idle_or_old() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    idle, busy = sessions.begin("Bearer a"), sessions.begin("Bearer a")
    for _ in range(int(bounds.SESSION_S / bounds.SESSION_IDLE_S * 2)):
        assert sessions.find(busy.secret) is busy
        clock.now += bounds.SESSION_IDLE_S / 2 + 1
    assert sessions.find(idle.secret) is None
    assert sessions.find(busy.secret) is None  # used all the time, and a day old


def test_sessions_are_bounded_and_each_credential_has_its_own_share() -> None:
    sessions = Sessions()
    other = sessions.begin("Bearer b")
    made = [sessions.begin("Bearer a") for _ in range(bounds.SESSIONS_EACH_MAX + 3)]
    assert [sessions.find(one.secret) is not None for one in made] == [False] * 3 + [True] * bounds.SESSIONS_EACH_MAX
    assert sessions.find(other.secret) is other
    for number in range(bounds.SESSIONS_MAX):
        sessions.begin(f"Bearer {number}")
    assert len(sessions) == bounds.SESSIONS_MAX


def test_a_session_is_found_by_its_secret_alone_and_tells_it_to_nobody() -> None:
    sessions = Sessions()
    one, other = sessions.begin("Bearer secret-of-a"), sessions.begin("Bearer b")
    assert sessions.find(one.form_token) is None and sessions.find(one.secret[:-1]) is None
    assert one.holds(one.form_token) and not one.holds(other.form_token) and not one.holds("")
    assert one.secret not in repr(one) and "secret-of-a" not in repr(one)
    sessions.end(one)
    assert sessions.find(one.secret) is None and sessions.find(other.secret) is other


class _Requests:
    """Asks the routes themselves, by a scheme of one's choice, without a server."""

    def __init__(self, store: Store, scheme: str) -> None:
        self.pages = Pages(PagesContext(store, "data", Access.of(store, local_token="secret"), Metrics()))
        self._router, self._scheme = Router(self.pages.routes()), scheme

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, list[str]], str]:
        path, _, query = path.partition("?")
        given = {"host": "lepton.example:7401", "content-type": "application/x-www-form-urlencoded"} | headers
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()], "scheme": self._scheme,
            "client": ("10.0.0.1", 5), "server": ("lepton.example", 7401), "root_path": "", "http_version": "1.1",
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        with ThreadPoolExecutor(1) as own:  # a test before this one may have left a loop in our thread
            own.submit(lambda: asyncio.run(self._router(scope, receive, send))).result()
        told: dict[str, list[str]] = {}
        for name, value in sent[0]["headers"]:
            told.setdefault(name.decode(), []).append(value.decode())
        return sent[0]["status"], told, b"".join(one.get("body", b"") for one in sent[1:]).decode()


@pytest.mark.parametrize(("scheme", "name"), [("https", "__Host-lepton-7401"), ("http", "lepton-7401")])
def test_cookies_are_secure_where_the_connection_is(store: Store, scheme: str, name: str) -> None:
    requests = _Requests(store, scheme)
    code = requests.pages.sign_in_path("Bearer secret")
    status, headers, _ = requests.ask("GET", code)
    (cookie,) = headers["set-cookie"]
    assert status == 200 and cookie.startswith(f"{name}=")
    assert ("Secure" in cookie) == (scheme == "https")
    assert all(part in cookie for part in ("HttpOnly", "Path=/", "SameSite=strict")) and "Max-Age" not in cookie
    assert requests.ask("GET", "/ui", cookie=cookie.partition(";")[0])[0] == 200
    assert requests.ask("GET", "/ui", cookie=f"other-7401={cookie}")[0] == 303


def test_looking_at_a_link_does_not_use_it_up(store: Store) -> None:
    """A chat program that fetches the head of a link must not sign in in its reader's place."""
    requests = _Requests(store, "http")
    code = requests.pages.sign_in_path("Bearer secret")
    assert requests.ask("HEAD", code)[0] == 200
    status, headers, _ = requests.ask("GET", code)
    assert status == 200 and headers["set-cookie"][0].startswith("lepton-7401=")


def test_a_bug_tells_an_id_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*of: object) -> None:
        raise RuntimeError(f"a secret of {store.url}")

    requests = _Requests(store, "http")
    monkeypatch.setattr(Seen, "names", broken)
    status, _, body = requests.ask("GET", "/ui/dataset", authorization="Bearer secret")
    assert status == 500 and "a secret of" not in body and store.url not in body
    id = body.partition("Request <code>")[2].partition("<")[0]
    assert id and any(id in record.getMessage() for record in caplog.records)


def test_pages_are_refused_when_too_many_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = _Requests(store, "http")
    monkeypatch.setattr(bounds, "WAITING_MAX", -bounds.THREADS)
    status, headers, _ = requests.ask("GET", "/ui/dataset", authorization="Bearer secret")
    assert status == 429 and int(headers["retry-after"][0]) >= 1


def test_a_page_that_takes_too_long_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    requests = _Requests(store, "http")
    monkeypatch.setattr(Seen, "names", lambda *of: release.wait(60))
    monkeypatch.setattr(bounds, "PAGE_S", 0.05)
    status, _, body = requests.ask("GET", "/ui/dataset", authorization="Bearer secret")
    release.set()
    assert status == 429 and "longer than" in body


# -- lines of a history --------------------------------------------------------------------------------------------


@st.composite
def _histories(draw: st.DrawFn) -> list[tuple[str, tuple[str, ...]]]:
    """Versions, none before its children; parents are later ones."""
    count = draw(st.integers(0, 14))
    rows = []
    for at in range(count):
        later = st.integers(at + 1, count - 1) if at + 1 < count else st.nothing()
        parents = draw(st.lists(later, max_size=3, unique=True)) if at + 1 < count else []
        rows.append((str(at), tuple(map(str, parents))))
    return rows


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_histories())
def test_lines_lead_from_each_version_to_its_parents(history: list[tuple[str, tuple[str, ...]]]) -> None:
    """Followed through the rows, the lines that leave a version's dot below end at the dots of exactly its parents."""
    drawn = lanes(history)
    assert len(drawn) == len(history)
    last = (LANES_MAX - 1) * LANE_WIDTH + LANE_WIDTH // 2
    assume(not any(last in (one.x1, one.x2) for row in drawn for one in row.strokes))  # further ones are drawn over it
    for at, (version, parents) in enumerate(history):
        reached = set()
        for stroke in drawn[at].strokes:
            if stroke.y1 == "0":
                continue
            x, row = stroke.x2, at + 1
            while True:
                on = [one for one in drawn[row].strokes if one.y1 == "0" and one.x1 == x]
                assert len(on) == 1, (version, row)
                if on[0].y2 != "100%":
                    assert on[0].x2 == drawn[row].x
                    break
                x, row = on[0].x2, row + 1
            reached.add(history[row][0])
        assert reached == set(parents)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_histories())
def test_no_line_ends_in_the_air(history: list[tuple[str, tuple[str, ...]]]) -> None:
    drawn = lanes(history)
    for above, below in pairwise(drawn):
        leaving = {one.x2 for one in above.strokes if one.y2 == "100%"}
        entering = {one.x1 for one in below.strokes if one.y1 == "0"}
        assert leaving == entering
    assert not drawn or not [one for one in drawn[-1].strokes if one.y2 == "100%"]


# -- charts --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e12), min_size=2, max_size=60), st.booleans())
def test_a_chart_stays_inside_of_its_box(values: list[float], binary: bool) -> None:
    chart = time_chart("x", "Sent", [("Sent", values), ("Received", [0.0] * len(values))], as_bytes, 60, binary)
    for series in chart.series:
        points = [tuple(map(float, one.split())) for one in series.path.removeprefix("M").split("L")]
        assert len(points) == len(values)
        assert all(0 <= x <= 320 and 0 <= y <= 100 for x, y in points)
    assert all(0 <= top < 100 for top, _ in chart.ticks) and chart.ticks


def test_a_chart_of_nothing_has_an_axis() -> None:
    chart = time_chart("x", "Sent", [("Sent", [0] * 60)], as_bytes, 60, binary=True)
    assert chart.ticks and chart.series[0].now == "0 B"


# -- the store behind the pages ------------------------------------------------------------------------------------


@pytest.fixture
def numbers(store: Store, source_of: Callable[..., Source]) -> Dataset:
    table = pa.table({"id": np.arange(5_000), "even": np.arange(5_000) % 2 == 0})
    return write_dataset(store, "numbers", source_of(table, ("id",)))


def test_a_search_goes_on_where_it_stopped(numbers: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page by page, whatever is looked through at a time, every row that fits is found once; also when time is always up."""
    monkeypatch.setattr(bounds, "SEARCH_STEP_ROWS", 700)
    for seconds in (60.0, -1.0):
        monkeypatch.setattr(bounds, "SEARCH_S", seconds)
        found, at = [], 0
        while True:
            part = pages_rows.search(numbers, "even and id < 4000", at)
            assert len(part.rows) <= bounds.ROWS_PAGE
            found += part.rows
            if part.next is None:
                break
            assert part.next > at
            at = part.next
        assert found == list(range(0, 4_000, 2))


def test_what_belongs_to_others_is_not_there(numbers: Dataset, source_of: Callable[..., Source]) -> None:
    """Also by its digest, under the name of what may be seen: as if it did not exist."""
    store = numbers.store
    mine = write_dataset(store, "mine", source_of(pa.table({"id": [1]}), ("id",)))
    seen, who = Seen(store), Principal("t", "t", (Grant(Scope.READ, "mine"),))
    assert [one.name for one in seen.names(who, "dataset")] == ["mine"]
    assert seen.version(who, "dataset", "mine", mine.commit)[1] == mine.commit
    with pytest.raises(RefMissing) as hidden:
        seen.version(who, "dataset", "numbers", "main")
    with pytest.raises(RefMissing) as absent:
        seen.version(who, "dataset", "nothing", "main")
    assert str(hidden.value).replace("numbers", "nothing") == str(absent.value)
    with pytest.raises(RefMissing):
        seen.version(who, "dataset", "mine", numbers.commit)


def test_figures_of_the_store_are_measured_seldom_and_never_waited_for(
    numbers: Dataset, source_of: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, release, times = threading.Event(), threading.Event(), []
    real = pages_measure.measure

    def slow(store: Store) -> object:
        times.append(1)
        assert release.wait(60)
        try:
            return real(store)
        finally:
            measured.set()

    monkeypatch.setattr(pages_measure, "measure", slow)
    measures = Measures(numbers.store)
    for _ in range(5):
        assert measures.usage() is None and measures.measuring()
    release.set()
    assert measured.wait(60)
    while measures.measuring():
        measured.wait(0.01)
    found = measures.usage()
    assert found is not None and found.usage.names[0].name == "dataset/numbers"
    write_dataset(numbers.store, "more", source_of(pa.table({"id": [1]}), ("id",)))
    assert measures.usage() is found  # out of date, and not due yet
    assert times == [1]
    measures.close()


def test_a_versions_columns_are_measured_once(numbers: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    measures = Measures(numbers.store)
    monkeypatch.setattr(bounds, "STATS_WAIT_S", 30.0)
    found = measures.stats(numbers)
    assert found is not None and found.rows == 5_000 and set(found.columns) == {"id", "even"}
    monkeypatch.setattr(Dataset, "stats", None)
    assert measures.stats(numbers) is found
    monkeypatch.setattr(bounds, "STATS_ROWS_MAX", 10)
    assert Measures(numbers.store).stats(numbers) is None
    measures.close()


# -- the audit log -------------------------------------------------------------------------------------------------


def test_the_end_of_the_audit_log_is_read_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert tail(path, 5) == []
    lines = [json.dumps({"operation": f"op {at}", "what": "x" * 200}) for at in range(5_000)]
    path.write_text("\n".join([*lines, "not json", '"nor an entry"', '{"cut": ']))
    assert [one["operation"] for one in tail(path, 3)] == ["op 4997", "op 4998", "op 4999"]
    path.rename(tmp_path / "audit.jsonl.1")
    path.write_text('{"operation": "newest"}\n')
    assert [one["operation"] for one in tail(path, 2)] == ["op 4999", "newest"]


def test_plain_bytes_count_each_chunk_once(store: Store, source_of: Callable[..., Source]) -> None:
    """What repeats is deduplicated, what is left is compressed: the three figures that the overview shows."""
    rng = np.random.default_rng(0)
    values = [rng.bytes(40_000) for _ in range(20)] + [bytes(40_000)] * 5
    table = pa.table({"id": range(25), "data": pa.array(values, pa.large_binary())})
    write_dataset(store, "one", source_of(table, ("id",)))
    write_dataset(store, "other", source_of(table.slice(0, 24), ("id",)))
    usage = pages_measure.measure(store)
    logical = sum(name.logical for name in usage.names)
    assert logical > 49 * 40_000
    assert 21 * 40_000 < usage.plain_bytes < 22 * 40_000
    assert 20 * 40_000 < usage.live_bytes < 21 * 40_000
