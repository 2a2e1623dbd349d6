"""Who is let in: bearer tokens that stand hashed in a file, expire, and can be taken away while a server runs."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_client import exchange, get, raw_exchange, request_bytes
from serving_models import numbers

from leptonstore.errors import BadInput, LeptonWarning, SourceError
from trainers.serving.limits import TOKEN_FILE_LOOK_S, ServeLimits
from trainers.serving.server import ModelServer
from trainers.serving.tokens import TokenFile, add_token, read_tokens, remove_token

ROW = np.zeros((1, 3), "<f4").tobytes()


class Clock:
    """The time of a test."""

    def __init__(self) -> None:
        self.seconds = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.seconds


def test_a_token_is_shown_once_and_stored_as_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    made = [add_token(path, name) for name in ("one", "two")]
    text = path.read_text()
    assert made[0] != made[1] and all(token not in text and token.partition("_")[2] not in text for token in made)
    assert [token.name for token in read_tokens(path)] == ["one", "two"]
    known = TokenFile(path)
    assert [known.name_of(token) for token in (*made, "", made[0][:-1], made[0] + "A")] == [
        "one",
        "two",
        None,
        None,
        None,
    ]
    with pytest.raises(BadInput, match="already"):
        add_token(path, "one")


def test_a_token_expires(tmp_path: Path) -> None:
    clock = Clock()
    token = add_token(tmp_path / "t", "guest", timedelta(hours=1))
    known = TokenFile(tmp_path / "t", now=clock)
    assert known.name_of(token) == "guest"
    clock.seconds += 3_601
    assert known.name_of(token) is None
    for lifetime in (timedelta(0), timedelta(days=-1)):
        with pytest.raises(BadInput):
            add_token(tmp_path / "t", "late", lifetime)


def test_a_token_that_is_taken_away_opens_no_more(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "t"
    token, other = add_token(path, "one"), add_token(path, "two")
    known = TokenFile(path, clock=clock)
    assert known.name_of(token) == "one"
    remove_token(path, "one")
    clock.seconds += TOKEN_FILE_LOOK_S
    assert (known.name_of(token), known.name_of(other)) == (None, "two")
    path.write_text("{}")  # a file that cannot be read opens for nobody
    clock.seconds += TOKEN_FILE_LOOK_S
    assert known.name_of(other) is None
    with pytest.raises(SourceError, match="damaged"):
        remove_token(path, "two")


@given(text=st.text(max_size=300))
def test_nothing_but_the_token_is_the_token(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("tokens") / "t"
    add_token(path, "one")
    known = TokenFile(path)
    assert known.name_of(text) is None
    assert known.name_of(read_tokens(path)[0].sha256) is None  # nor is its hash


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"tokens": [{}]},
        {"tokens": [{"name": "x", "sha256": "00", "expires": None}]},
        {"tokens": [{"name": "x", "sha256": "0" * 64, "expires": "2030-01-01T00:00:00"}]},
        {"tokens": [{"name": "x", "sha256": "0" * 64, "expires": "soon"}]},
        {"tokens": 5},
    ],
)
def test_a_damaged_token_file_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"format": "lepton.tokens", "version": 1, "tokens": []} | change))
    with pytest.raises(SourceError, match=r"tokens\.json"):
        TokenFile(path)
    with pytest.raises(SourceError, match="lepton deploy token"):
        TokenFile(tmp_path / "absent")


# -- a server that asks for them ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModelServer, str]]:
    path = tmp_path_factory.mktemp("tokens") / "t"
    token = add_token(path, "ci")
    with ModelServer(numbers(), ServeLimits(batch_rows=8), token_file=path) as server:
        yield server, token


def status_with(server: ModelServer, *authorization: str) -> int:
    told = "".join(f"authorization: {value}\r\n" for value in authorization)
    head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{told}"
    head += f"content-type: application/octet-stream\r\ncontent-length: {len(ROW)}\r\n\r\n"
    reply = exchange(server.url, head.encode() + ROW)
    if reply.status == 401:
        assert reply.error == "unauthorized" and reply.headers["www-authenticate"].startswith("Bearer")
    return reply.status


def test_only_who_has_a_token_is_answered(guarded: tuple[ModelServer, str]) -> None:
    server, token = guarded
    assert status_with(server, f"Bearer {token}") == status_with(server, f"bearer  {token} ") == 200
    for wrong in ((), ("Bearer",), (f"Basic {token}",), (token,), (f"Bearer {token}x",), (f"Bearer {token[:-1]}",)):
        assert status_with(server, *wrong) == 401
    assert status_with(server, f"Bearer {token}", f"Bearer {token}") == 401
    assert (
        get(server.url, "/metrics").status == get(server.url, "/schema").status == get(server.url, "/x").status == 401
    )
    assert (
        exchange(server.url, request_bytes("GET", "/schema", headers={"authorization": f"Bearer {token}"})).status
        == 200
    )


def test_probes_need_no_token_and_learn_nothing(guarded: tuple[ModelServer, str]) -> None:
    for path in ("/healthz", "/readyz"):
        reply = get(guarded[0].url, path)
        assert reply.status == 200 and set(reply.json()) == {"status"}


def test_others_may_listen_with_tokens_and_leave_only(tmp_path: Path) -> None:
    add_token(tmp_path / "t", "ci")
    with pytest.warns(LeptonWarning, match="in clear"):
        server = ModelServer(numbers(), host="0.0.0.0", allow_remote=True, token_file=tmp_path / "t")
    with server:
        head = b"GET /healthz HTTP/1.1\r\nhost: models.example\r\nconnection: close\r\n\r\n"
        assert exchange(server.url, head).status == 200


# -- how it travels ----------------------------------------------------------------------------------------------------


def test_a_server_speaks_tls(tmp_path: Path) -> None:
    from certificates import HERE, make

    made = make(tmp_path, "localhost", alternative=HERE)
    cert, key = str(made.chain), str(made.key_file)
    with ModelServer(numbers(), tls=(cert, key)) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=cert)
        with urlopen(f"https://localhost:{server.port}/healthz", context=trusting, timeout=60) as reply:
            assert reply.status == 200
        assert raw_exchange(server.url, request_bytes("GET", "/healthz")) == b""  # in clear: closed without a word
    with pytest.raises(SourceError, match=r"localhost\.key"):
        ModelServer(numbers(), tls=(key, cert))


def test_loopback_of_version_six_is_loopback() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        server = ModelServer(numbers(), host="::1")
    except BadInput:
        pytest.skip("this machine has no IPv6")
    with server:
        assert server.url.startswith("http://[::1]:")
        told = {"host": f"[::1]:{server.port}"}
        assert exchange(server.url, request_bytes("GET", "/schema", headers=told)).status == 200
