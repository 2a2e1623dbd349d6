"""The control plane with TLS: client certificates that stand for credentials, and handshakes that never end."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import HERE, Made, make, x509
from daemon_data import GRANTS, Plane, control_plane, filled
from serving_client import TIMEOUT_S

from leptonstore.daemon.tls import ServerTls
from leptonstore.daemon.tokens import TokenRing
from leptonstore.web.limits import WebLimits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Made:
    return make(folder, "authority")


@pytest.fixture(scope="module")
def plane(folder: Path, authority: Made) -> Iterator[Plane]:
    server = make(folder, "server", authority, HERE)
    tls = ServerTls(server.chain, server.key_file, authority.chain)
    with filled(folder / "data") as store, control_plane(store, WebLimits(head_s=2.0), tls=tls.http_context) as running:
        TokenRing.of(store).add("node 7", GRANTS["samples"], certificate="node-7.example")
        yield running


def ask(plane: Plane, path: str, authority: Made, shown: Made | None = None, token: str = "") -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(authority.chain))
    if shown is not None:
        context.load_cert_chain(shown.chain, shown.key_file)
    connection = http.client.HTTPSConnection("localhost", plane.port, context=context, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_client_certificate_stands_for_its_entry(plane: Plane, folder: Path, authority: Made) -> None:
    node = make(folder, "node", authority, [x509.DNSName("node-7.example")])
    assert ask(plane, "/content/dataset/samples@main", authority, node)[0] == 200
    assert ask(plane, "/content/dataset/hidden@main", authority, node)[0] == 403
    assert any('"principal":"node 7"' in line for line in plane.log)
    stranger = make(folder, "stranger", authority, [x509.DNSName("node-8.example")])
    assert ask(plane, "/content", authority, stranger)[0] == 401
    # A token that is given and wrong is never taken for none.
    assert ask(plane, "/content", authority, node, "nonsense")[0] == 401
    assert ask(plane, "/content", authority, token=plane.tokens["read"])[0] == 200
    assert ask(plane, "/healthz", authority)[0] == 200


def test_a_certificate_of_another_authority_gets_nowhere(plane: Plane, folder: Path, authority: Made) -> None:
    foreign = make(folder, "foreign", make(folder, "another authority"), [x509.DNSName("node-7.example")])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(plane, "/content", authority, foreign)


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"])
def test_a_handshake_that_never_ends_is_cut_off(plane: Plane, authority: Made, first: bytes) -> None:
    """uvicorn leaves it 60 s, in which no limit of connections counts it."""
    with socket.create_connection(("127.0.0.1", plane.port), 10.0) as connection:
        connection.sendall(first)
        found = b""
        try:
            while part := connection.recv(1_000):
                found += part
        except ConnectionError:
            pass
        assert b"HTTP" not in found
    assert ask(plane, "/healthz", authority)[0] == 200
