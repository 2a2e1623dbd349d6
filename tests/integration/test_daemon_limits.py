"""Limits of a credential and of an address, over both planes: who is over them is told when to come again, and others do not feel it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.flight as fl
import pytest

from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.errors import TooBusy
from leptonstore.store import Store
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import encode
from leptonstore.testing.daemon import Served, running

RATE = 1  # a second; twice as many at once


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Served, list[str]]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    with Store.create(tmp_path / "store") as store:
        tokens = [TokenRing.of(store).add(name, [Grant(Scope.READ)])[1] for name in ("one", "two")]
    with running(tmp_path / "store", in_process=True, cache_bytes=0, requests_rate=RATE) as made:
        yield made, tokens


def over_http(served: Served, token: str) -> tuple[int, str | None, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", served.told["http_port"], timeout=30)
    try:
        connection.request("POST", "/v1/state", encode("state"), {"authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.getheader("retry-after"), json.loads(response.read())
    finally:
        connection.close()


def over_flight(served: Served, token: str) -> None:
    with fl.connect(("127.0.0.1", served.told["port"])) as client:
        options = fl.FlightCallOptions(timeout=30, headers=[(b"authorization", f"Bearer {token}".encode())])
        try:
            list(client.do_action(fl.Action("state", encode("state")), options))
        except fl.FlightError as error:
            found = wire_errors.decode(error.extra_info)
            assert found is not None
            raise found from None


def test_one_credential_is_slowed_over_both_planes_together_and_another_is_not(
    served: tuple[Served, list[str]],
) -> None:
    made, (one, two) = served
    statuses = [over_http(made, one)[0] for _ in range(12)]
    assert statuses[0] == 200 and statuses[-1] == 429
    status, retry, told = over_http(made, one)
    assert status == 429 and retry is not None and int(retry) >= 1 and told["error"] == "TooBusy"
    with pytest.raises(TooBusy) as busy:
        for _ in range(12):
            over_flight(made, one)
    assert 0 < busy.value.retry_after_s <= 1.0
    over_flight(made, two)
    assert over_http(made, two)[0] == 200


def test_an_address_without_a_valid_credential_is_told_to_wait(served: tuple[Served, list[str]]) -> None:
    made, (one, _) = served
    outcomes = [over_http(made, "wrong")[0] for _ in range(40)]
    assert outcomes[:20] == [401] * 20 and 429 in outcomes[20:]
    with pytest.raises(TooBusy):
        for _ in range(40):
            try:
                over_flight(made, "wrong")
            except Exception as error:
                if isinstance(error, TooBusy):
                    raise
    assert over_http(made, one)[0] == 200  # from the same address
