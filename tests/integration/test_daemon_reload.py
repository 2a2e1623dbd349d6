"""A daemon whose certificates are replaced while it works, and one of whose parts ends by itself."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from certificates import HERE, make

from leptonstore.daemon.daemon import Daemon
from leptonstore.daemon.settings import make_settings
from leptonstore.store import Store
from leptonstore.testing import daemon


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Store.create(tmp_path / "data").close()
    return tmp_path / "data"


def shown(port: int, authority: Path, protocols: list[str]) -> int:
    """The serial number of the certificate on a port of loopback."""
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(protocols)  # gRPC ends a connection that names none
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        certificate: dict[str, Any] = dict(wrapped.getpeercert() or {})
        return int(certificate["serialNumber"], 16)


def test_sighup_takes_new_certificates_on_both_planes_and_a_store_that_is_open_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make(tmp_path, "authority")
    first, second = (make(tmp_path, name, authority, HERE) for name in ("first", "second"))
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(first.chain, chain)
    shutil.copy(first.key_file, key)
    monkeypatch.setenv("LEPTON_CA", str(authority.chain))
    with daemon.running(place, folder=tmp_path, cache_bytes=0, tls_cert=str(chain), tls_key=str(key)) as served:
        assert served.url.startswith("lepton+tls://") and served.http_url.startswith("https://")
        ports = ((served.told["port"], ["h2"]), (served.told["http_port"], ["http/1.1"]))
        with Store.open(served.url) as store:
            digest = store.put(b"before")
            store.flush()
            assert {shown(port, authority.chain, how) for port, how in ports} == {first.certificate.serial_number}
            shutil.copy(second.chain, chain)
            shutil.copy(second.key_file, key)
            served.reload()
            assert {shown(port, authority.chain, how) for port, how in ports} == {second.certificate.serial_number}
            assert store.get(digest) == b"before" and store.put(b"after")
            store.flush()
        key.write_text("no key")
        served.reload()
        assert "not reloaded" in served.said()
        assert {shown(port, authority.chain, how) for port, how in ports} == {second.certificate.serial_number}
        with Store.open(served.url) as store:
            assert store.get(digest) == b"before"


def test_a_part_that_ends_by_itself_ends_the_daemon_which_says_which(place: Path, tmp_path: Path) -> None:
    failed = threading.Event()
    settings = make_settings(str(place), port=0, http_port=0, cache_bytes=0, audit_log=str(tmp_path / "audit"))
    served = Daemon(settings)
    served.start(failed.set)
    try:
        served.http._server.begin_to_stop()  # as a bug in it would end it
        assert failed.wait(60) and "HTTP" in served.failure
    finally:
        served.stop()
    assert served.token_file is not None and not served.token_file.exists()


def test_a_daemon_that_cannot_start_leaves_nothing_behind(place: Path, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = make_settings(str(place), port=0, http_port=port, cache_bytes=0, audit_log=str(tmp_path / "audit"))
        for _ in range(3):
            with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1:{port}"):
                Daemon(settings).start()
    left = [one for one in set(threading.enumerate()) - threads if not one.name.startswith("Dummy")]
    assert not left, left
