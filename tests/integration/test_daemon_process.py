"""A daemon as a process: it is ready when it says so, drains on a signal, and says in one line why it cannot start."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.flight as fl
import pytest
from daemon_data import Client

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


def test_it_answers_when_it_says_that_it_is_ready(served: daemon.Served) -> None:
    client = Client(served.told["port"], served.token)
    told = client.act("hello")
    assert told["store"]["name"] == "data" and served.url == f"lepton://127.0.0.1:{served.told['port']}/data"
    client.close()
    assert Path(served.told["token_file"]).stat().st_mode & 0o777 == 0o600


def test_a_second_one_on_the_port_says_so_in_one_line(served: daemon.Served, place: Path) -> None:
    with pytest.raises(daemon.NotStarted) as failed:
        daemon.start(place, port=served.told["port"], http_port=0)
    said = str(failed.value).strip().split("\n")
    assert failed.value.code == 2 and len(said) == 2  # ours, and the daemon's
    assert f"127.0.0.1:{served.told['port']}" in said[1] and "running there already" in said[1]
    assert Client(served.told["port"], served.token).act("hello")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_and_takes_its_token_away(place: Path, number: int) -> None:
    served = daemon.start(place, cache_bytes=0)
    assert served.stop(number) == 0
    assert not Path(served.told["token_file"]).exists()
    served.restart()
    assert json.dumps(served.told["port"]) in served.url
    assert served.stop() == 0


def test_a_session_that_is_open_ends_with_the_daemon(place: Path) -> None:
    served = daemon.start(place, cache_bytes=0)
    client = Client(served.told["port"], served.token)
    session = client.act("open")["session"]
    assert served.stop() == 0
    with pytest.raises(fl.FlightError):
        list(client.flight.do_action(fl.Action("flush", encode("flush", {"session": session})), client.options))
    with Store.open(place) as store:
        assert store.state.packs == {}
