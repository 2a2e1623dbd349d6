"""TLS of a daemon: names of clients are the same on both planes, certificates change while it runs, and files that are none are refused."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from certificates import HERE, Made, make, serialization, x509

from leptonstore.daemon.tls import ServerTls, certificate_name, replace_listener
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import SourceError
from leptonstore.store import Store
from leptonstore.testing.daemon import Served, running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Made:
    return make(folder, "authority")


@pytest.fixture(scope="module")
def server(folder: Path, authority: Made) -> Made:
    return make(folder, "server", authority, HERE)


class Echo(fl.FlightServerBase):
    """Says which one it is, and who asks; "slow" waits until it is told to go on."""

    def __init__(self, tag: str, tls: ServerTls, port: int = 0) -> None:
        self.tag, self.go_on, self.asked = tag, threading.Event(), threading.Event()
        super().__init__(f"grpc+tls://127.0.0.1:{port}", **tls.flight_options())

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> list[bytes]:
        if action.type == "slow":
            self.asked.set()
            assert self.go_on.wait(60)
        return [f"{self.tag} {context.peer_identity().decode()}".encode()]


def flight_client(port: int, authority: Made, shown: Made | None = None) -> fl.FlightClient:
    more: dict[str, Any] = {}
    if shown is not None:
        more = {"cert_chain": shown.chain.read_bytes(), "private_key": shown.key_file.read_bytes()}
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
    return fl.FlightClient(
        f"grpc+tls://127.0.0.1:{port}", tls_root_certs=authority.chain.read_bytes(), generic_options=options, **more
    )


def ask(client: fl.FlightClient, what: str = "who") -> str:
    (result,) = client.do_action(what, fl.FlightCallOptions(timeout=30))
    return str(result.body.to_pybytes().decode())


NAMES = {
    "common": ([], None),
    "two common": ([], ["first", "second"]),
    "dns": ([x509.DNSName("node-7.example")], None),
    "several": ([x509.RFC822Name("a@b.example"), x509.DNSName("node-7.example")], None),
    "uri": ([x509.UniformResourceIdentifier("spiffe://example/ns/x"), x509.DNSName("other.example")], None),
    "ipv4": ([x509.IPAddress(ipaddress.ip_address("10.1.2.3"))], None),
    "ipv6": ([x509.IPAddress(ipaddress.ip_address("2001:db8::7"))], None),
}


@pytest.fixture(scope="module")
def named(folder: Path, authority: Made, server: Made) -> Iterator[tuple[ServerTls, Echo]]:
    tls = ServerTls(server.chain, server.key_file, authority.chain)
    with Echo("one", tls) as flight:
        yield tls, flight


@pytest.mark.parametrize("kind", NAMES)
def test_both_planes_know_a_client_by_the_same_name(
    folder: Path, authority: Made, named: tuple[ServerTls, Echo], kind: str
) -> None:
    tls, flight = named
    alternative, common = NAMES[kind]
    shown = make(folder, f"client {kind}", authority, alternative, common)
    _, _, over_flight = ask(flight_client(flight.port, authority, shown)).partition(" ")
    assert over_flight and over_flight == certificate_name(asyncio.run(_seen_by_http(tls, authority, shown)))


def test_without_a_certificate_http_knows_nobody_and_flight_takes_no_connection(
    folder: Path, authority: Made, named: tuple[ServerTls, Echo]
) -> None:
    tls, flight = named
    assert certificate_name(asyncio.run(_seen_by_http(tls, authority, None))) is None
    stranger = make(folder, "stranger", make(folder, "other authority"), [x509.DNSName("node-7.example")])
    for shown in (None, stranger):
        with pytest.raises(fl.FlightError):
            ask(flight_client(flight.port, authority, shown))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(_seen_by_http(tls, authority, stranger))


async def _seen_by_http(tls: ServerTls, authority: Made, shown: Made | None) -> dict[str, Any] | None:
    """The certificate of a client as asyncio's transport tells it, which is what uvicorn has."""
    seen: list[Any] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("ssl_object").getpeercert())
        writer.write(b"x")
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls.http_context)
    async with listener:
        context = ssl.create_default_context(cafile=str(authority.chain))
        if shown is not None:
            context.load_cert_chain(shown.chain, shown.key_file)
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        if await reader.read() != b"x":  # with TLS 1.3 a refusal comes only here
            raise ConnectionError("the server has closed the connection")
        writer.close()
    return seen[0] if seen else None


def test_a_listener_is_replaced_without_cutting_off_what_is_under_way(
    folder: Path, authority: Made, server: Made
) -> None:
    tls = ServerTls(server.chain, server.key_file)
    old = Echo("old", tls)
    client, answers = flight_client(old.port, authority), list[str]()
    under_way = threading.Thread(target=lambda: answers.append(ask(client, "slow")))
    under_way.start()
    assert old.asked.wait(60)
    new, ending = replace_listener(old, lambda: Echo("new", tls, old.port))
    try:
        assert new.port == old.port
        assert ask(flight_client(new.port, authority)).startswith("new")
        assert under_way.is_alive() and ending.is_alive()
        old.go_on.set()
        under_way.join(60)
        ending.join(60)
        assert answers == ["old "] and not ending.is_alive()
    finally:
        new.shutdown()


def serial(port: int, authority: Made) -> str:
    """Of the certificate that is shown at `port`."""
    import socket

    context = ssl.create_default_context(cafile=str(authority.chain))
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        found = secured.getpeercert()
        assert found
        return str(found["serialNumber"])


@pytest.fixture
def renewable(
    tmp_path: Path, authority: Made, server: Made, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Served, Callable[[Made], None], Callable[[Made], None]]]:
    """A daemon with TLS, and what replaces its certificate, and its key."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("LEPTON_CA", str(authority.chain))
    table = pa.table({"id": list(range(100))})
    with Store.create(tmp_path / "store") as store:
        write_dataset(store, "birds", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
    chain, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def new_chain(made: Made) -> None:
        chain.write_bytes(made.chain.read_bytes())

    def new_key(made: Made) -> None:
        key.write_bytes(made.key_file.read_bytes())

    new_chain(server)
    new_key(server)
    key.chmod(0o600)
    with running(tmp_path / "store", in_process=True, cache_bytes=0, tls_cert=str(chain), tls_key=str(key)) as served:
        yield served, new_chain, new_key


def test_a_daemon_reads_its_certificates_again_while_it_serves(folder: Path, authority: Made, renewable: Any) -> None:
    served, new_chain, new_key = renewable
    daemon, ports = served.daemon, (served.told["port"], served.told["http_port"])
    with Store.open(served.url) as opened:
        assert Dataset.open(opened, "birds").to_arrow().num_rows == 100
        before = {serial(port, authority) for port in ports}
        new = make(folder, "renewed", authority, HERE)
        new_chain(new)  # half of a renewal: nothing changes, and the daemon goes on
        with pytest.raises(SourceError):
            daemon.reload(daemon.settings)
        assert {serial(port, authority) for port in ports} == before
        new_key(new)
        daemon.reload(daemon.settings)
        after = {serial(port, authority) for port in ports}
        assert len(before) == len(after) == 1 and before != after
        opened.refresh()  # over a connection that it has to make anew
        assert Dataset.open(opened, "birds").to_arrow().num_rows == 100


def test_clients_do_not_feel_a_renewal(folder: Path, authority: Made, renewable: Any) -> None:
    served, new_chain, new_key = renewable
    stop, counts, errors = threading.Event(), [0, 0], list[Exception]()

    def read(number: int) -> None:
        try:
            with Store.open(served.url) as opened:
                while not stop.is_set():
                    opened.refresh()
                    assert Dataset.open(opened, "birds").take([5, 50])["id"].to_pylist() == [5, 50]
                    counts[number] += 1
        except Exception as error:
            errors.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(3):
            began = list(counts)
            deadline = time.monotonic() + 60
            while any(
                now < then + 3 for now, then in zip(counts, began, strict=True)
            ):  # both read, before each renewal
                assert not errors and time.monotonic() < deadline, errors
                time.sleep(0.01)
            new = make(folder, f"renewed {number}", authority, HERE)
            new_chain(new)
            new_key(new)
            served.daemon.reload(served.daemon.settings)
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert not errors and not served.daemon.failure


@pytest.mark.parametrize("what", ["missing", "garbage", "another key", "encrypted", "huge", "authority"])
def test_files_that_are_none_are_refused_in_a_line(tmp_path: Path, authority: Made, server: Made, what: str) -> None:
    chain, key, client_ca = server.chain, server.key_file, None
    if what == "missing":
        chain = tmp_path / "nowhere.crt"
    elif what == "garbage":
        chain = tmp_path / "garbage.crt"
        chain.write_bytes(b"\x00garbage" * 100)
    elif what == "another key":
        key = authority.key_file
    elif what == "encrypted":
        key, password = tmp_path / "sealed.key", serialization.BestAvailableEncryption(b"secret")
        form = serialization.PrivateFormat.PKCS8
        key.write_bytes(server.key.private_bytes(serialization.Encoding.PEM, form, password))
    elif what == "huge":
        chain = tmp_path / "huge.crt"
        chain.write_bytes(bytes(2 << 20))
    else:
        client_ca = server.key_file  # no certificate in it
    with pytest.raises(SourceError) as refused:
        ServerTls(chain, key, client_ca)
    assert "\n" not in str(refused.value) and "PRIVATE" not in str(refused.value)
