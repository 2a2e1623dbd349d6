"""A daemon as a process: it is ready when it says so, drains on a signal, and says in one line why it cannot start."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import LeptonError
from leptonstore.store import Store
from leptonstore.store.wire.messages import encode
from leptonstore.testing import daemon


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served") / "data"
    Store.create(place).close()
    return place


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[daemon.Served]:
    with daemon.running(place, cache_bytes=0) as served:
        yield served


def asked(url: str, token: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_it_answers_on_both_planes_when_it_says_that_it_is_ready(
    served: daemon.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_TOKEN", served.token)  # its file is in the cache directory of another test
    assert served.url == f"lepton://127.0.0.1:{served.told['port']}/data"
    with Store.open(served.url) as store:
        assert store.put(b"x") and store.state.refs == {}
    assert asked(served.http_url + "/readyz")[0] == 200
    assert asked(served.http_url + "/metrics")[0] == 401
    assert b"lepton_" in asked(served.http_url + "/metrics", served.token)[2]
    assert Path(served.told["token_file"]).stat().st_mode & 0o777 == 0o600


def test_its_line_of_json_holds_no_secret(served: daemon.Served) -> None:
    assert served.token not in json.dumps(served.told)


def test_a_second_one_on_the_port_says_so_in_one_line(served: daemon.Served, place: Path, tmp_path: Path) -> None:
    with pytest.raises(daemon.NotStarted) as failed:
        daemon.start(place, port=served.told["port"], http_port=0, folder=tmp_path)
    said = str(failed.value).strip().split("\n")
    assert failed.value.code == 2 and len(said) == 2  # ours, and the daemon's
    assert f"127.0.0.1:{served.told['port']}" in said[1] and "running there already" in said[1]
    assert asked(served.http_url + "/readyz")[0] == 200


def test_a_taken_http_port_says_so_and_leaves_no_token_behind(
    served: daemon.Served, place: Path, tmp_path: Path
) -> None:
    folder = Path(served.told["token_file"]).parent
    before = set(folder.iterdir())
    with pytest.raises(daemon.NotStarted, match=f"cannot listen on 127.0.0.1:{served.told['http_port']}") as failed:
        daemon.start(place, http_port=served.told["http_port"], folder=tmp_path)
    assert failed.value.code == 2 and "Traceback" not in str(failed.value)
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_and_takes_its_token_away(place: Path, tmp_path: Path, number: int) -> None:
    served = daemon.start(place, cache_bytes=0, folder=tmp_path)
    url = served.url
    assert served.stop(number) == 0
    assert not Path(served.told["token_file"]).exists()
    served.restart()
    assert served.url == url and asked(served.http_url + "/readyz")[0] == 200
    assert served.stop() == 0


def test_what_was_published_is_there_after_kill_9_and_a_token_of_the_dead_one_is_worth_nothing(
    place: Path, tmp_path: Path
) -> None:
    served = daemon.start(place, cache_bytes=0, folder=tmp_path)
    with Store.open(served.url) as store:
        digest = store.put(b"durable")
        store.flush()
    stale = served.token
    served.kill()
    served.restart()
    assert asked(served.http_url + "/metrics", stale)[0] == 401
    with Store.open(served.url) as store:
        assert store.get(digest) == b"durable"
    served.stop()


def test_sighup_reads_settings_again_and_keeps_what_needs_a_restart(place: Path, tmp_path: Path) -> None:
    config, log = tmp_path / "serve.toml", tmp_path / "access.jsonl"
    config.write_text(f'access-log = "{log}"\ncache-bytes = 0\n')
    served = daemon.start(place, folder=tmp_path, config=config)
    try:
        asked(served.http_url + "/healthz")
        log.rename(tmp_path / "old")  # as logrotate does
        config.write_text(f'access-log = "{log}"\ncache-bytes = 0\nbytes-rate = "1B"\nname = "other"\n')
        served.reload()
        assert "name has changed" in served.said()
        status = [asked(served.http_url + "/openapi.json", served.token)[0] for _ in range(3)]
        assert 200 in status and status[-1] == 429  # one byte a second
        assert log.read_text() and served.url.endswith("/data")
        config.write_text("bytes-rate = 'fast'\n")
        served.reload()
        assert "not reloaded" in served.said() and asked(served.http_url + "/readyz")[0] == 200
    finally:
        served.stop()


def test_what_is_not_flushed_when_it_ends_is_put_again_or_the_client_is_told(place: Path, tmp_path: Path) -> None:
    served = daemon.start(place, cache_bytes=0, folder=tmp_path)
    store = Store.open(served.url)
    digest = store.put(b"on its way")
    assert served.stop() == 0
    served.restart()
    try:
        store.flush()
        acknowledged = True
    except LeptonError:
        acknowledged = False
    store.close()
    assert served.stop() == 0
    with Store.open(place) as there:
        assert there.has(digest) == acknowledged


def test_while_it_drains_it_is_not_ready_and_still_answers(place: Path, tmp_path: Path) -> None:
    served = daemon.start(place, cache_bytes=0, folder=tmp_path, drain_wait_s=20)
    assert served.process is not None
    served.process.send_signal(signal.SIGTERM)
    while asked(served.http_url + "/readyz")[0] == 200:
        pass
    assert asked(served.http_url + "/readyz")[0] == 503
    with Store.open(served.url) as store:
        assert store.state.refs == {}
    assert served.stop() == 130  # a second signal ends it at once


@pytest.fixture
def large(tmp_path: Path, source_of: Callable[..., Source]) -> Path:
    """A store whose dataset is more than connections hold: who does not read keeps its request."""
    rows = 16_384
    values = pa.array(np.random.default_rng(0).integers(0, 255, rows * 4_096, dtype=np.uint8))
    table = pa.table({"id": np.arange(rows), "x": pa.FixedSizeListArray.from_arrays(values, 4_096)})
    with Store.create(tmp_path / "large") as store:
        write_dataset(store, "t", source_of(table, ("id",)))
    return tmp_path / "large"


def rows_of(served: daemon.Served, token: str) -> Iterator[pa.RecordBatch]:
    client = fl.connect(("127.0.0.1", served.told["port"]))
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
    for chunk in client.do_get(fl.Ticket(encode("rows", {"dataset": "t"})), options):
        yield chunk.data


def test_a_request_under_way_ends_before_the_daemon_does(large: Path, tmp_path: Path) -> None:
    served = daemon.start(large, cache_bytes=0, folder=tmp_path)
    assert served.process is not None
    batches = rows_of(served, served.token)
    count = next(batches).num_rows
    served.process.send_signal(signal.SIGTERM)
    while asked_or_refused(served.http_url + "/readyz") == 200:
        pass
    count += sum(batch.num_rows for batch in batches)
    assert count == 16_384 and served.process.wait(60) == 0


def test_who_does_not_read_is_cut_off_when_draining_is_over(large: Path, tmp_path: Path) -> None:
    served = daemon.start(large, cache_bytes=0, folder=tmp_path, drain_s=0.5)
    batches = rows_of(served, served.token)
    next(batches)
    assert served.stop() == 0
    with pytest.raises(fl.FlightError):
        list(batches)


def asked_or_refused(url: str) -> int:
    try:
        return asked(url)[0]
    except OSError:  # also ConnectionResetError: it was in the queue of the port when that was closed
        return 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "--tls-cert"),
        ({"host": "no.such.host.invalid"}, "no host"),
        ({"tls_cert": "a.pem"}, "--tls-key together"),
        ({"tls_cert": "/nowhere/a.pem", "tls_key": "/nowhere/a.key"}, "cannot read /nowhere/a.pem"),
        ({"audit_log": "/proc/audit/log"}, "audit log"),
    ],
)
def test_what_is_dangerous_or_wrong_is_refused_in_one_line(
    place: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(daemon.NotStarted) as failed:
        daemon.start(place, folder=tmp_path, **settings)
    lines = str(failed.value).strip().split("\n")
    assert failed.value.code == 2 and len(lines) == 2 and said in lines[1], lines


def test_a_store_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(daemon.NotStarted, match="does not exist") as failed:
        daemon.start(tmp_path / "nothing", folder=tmp_path)
    assert failed.value.code == 3


def test_several_daemons_in_one_process(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    Store.create(other).close()
    with (
        daemon.running(place, in_process=True, cache_bytes=0) as one,
        daemon.running(other, in_process=True, cache_bytes=0) as two,
    ):
        for served, name in ((one, "data"), (two, "other")):
            assert served.daemon is not None and served.url.endswith(f"/{name}")
            with Store.open(served.url) as store:
                assert store.state.refs == {}
    assert not Path(one.told["token_file"]).exists()
