"""TLS of both planes: certificates that can be replaced while the daemon runs, and names of clients that show one of their own.

Files are PEM. A certificate authority for clients (`client_ca`) turns on mutual TLS: the data plane then takes no connection without a
certificate that it signed; the HTTP plane asks for one and takes connections without (browsers, probes of an orchestrator), whose requests
need a token. Whom a certificate stands for is decided by `access.py`.

Reload. HTTP: each handshake takes the newest context. Flight: pyarrow's server cannot change its certificates, and does not share its port
(gRPC's SO_REUSEPORT is turned off in Arrow), so `replace_listener` starts another one on the port while the old one ends: what was under
way there goes on to its end; connections that come in between (9 ms on an idle host) are refused, and clients try again.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from leptonstore.errors import LeptonError, SourceError

PEM_BYTES_MAX = 1 << 20  # of one file: a chain has a few KiB, a bundle of authorities some hundred
LISTEN_WAIT_S = 10.0  # for the port to become free again
LISTEN_TRY_S = 0.005

log = logging.getLogger("lepton.daemon.tls")


class ServerTls:
    """What the planes need to speak TLS. Any thread."""

    def __init__(self, certificate: str | Path, key: str | Path, client_ca: str | Path | None = None) -> None:
        """Reads the files. Raises SourceError when they cannot be read, or do not belong together."""
        self._files = (Path(certificate), Path(key), None if not client_ca else Path(client_ca))
        self._guard = threading.Lock()
        self._pem, context = self._load()
        self.http_context = NewestContext(context)

    def reload(self) -> bool:
        """Read the files again: whether they have changed. Raises SourceError; then all is as before."""
        with self._guard:
            pem, context = self._load()
            changed, self._pem = pem != self._pem, pem
            self.http_context.newest = context
        return changed

    def flight_options(self) -> dict[str, Any]:
        """Arguments of pyarrow.flight.FlightServerBase, whose location begins with grpc+tls://."""
        with self._guard:
            certificate, key, client_ca = self._pem
        return {
            "tls_certificates": [(certificate, key)],
            "verify_client": client_ca is not None,
            "root_certificates": client_ca,
        }

    def _load(self) -> tuple[tuple[bytes, bytes, bytes | None], ssl.SSLContext]:
        certificate, key, client_ca = self._files
        pem = (_read(certificate), _read(key), None if client_ca is None else _read(client_ca))
        if os.stat(key).st_mode & 0o077:
            log.warning("the private key %s can be read by others: chmod 600 it", key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(
                certificate, key, password=""
            )  # one that needs a password must not ask the terminal
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise SourceError(
                f"{certificate} and {key} are no certificate with its key: {_why(error)}", str(certificate)
            ) from None
        if client_ca is not None:
            try:
                context.load_verify_locations(client_ca)
            except (OSError, ValueError) as error:
                raise SourceError(f"{client_ca} holds no certificates: {_why(error)}", str(client_ca)) from None
            context.verify_mode = ssl.CERT_OPTIONAL
        return pem, context


class NewestContext(ssl.SSLContext):
    """Stands for another context, which can be replaced: every handshake of asyncio's begins with the `newest`."""

    newest: ssl.SSLContext

    def __new__(cls, newest: ssl.SSLContext) -> NewestContext:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.newest = newest
        return made

    def __init__(self, newest: ssl.SSLContext) -> None:
        pass

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """As SSLContext's, of the newest."""
        return self.newest.wrap_bio(*arguments, **named)

    def wrap_socket(self, *arguments: Any, **named: Any) -> ssl.SSLSocket:
        """As SSLContext's, of the newest."""
        return self.newest.wrap_socket(*arguments, **named)


def certificate_name(peer: Mapping[str, Any] | None) -> str | None:
    """The name by which a verified certificate (as of SSLSocket.getpeercert) is known: the first of its alternative names (DNS, e-mail,
    URI, IP), or when it has none its first common name. Just as gRPC chooses, whose name Flight tells as `peer_identity`."""
    if not peer:
        return None
    names = [
        (kind, name) for kind, name in peer.get("subjectAltName", ()) if kind in ("DNS", "email", "URI", "IP Address")
    ]
    if names:
        kind, name = names[0]
        return str(ipaddress.ip_address(name.strip())) if kind == "IP Address" else str(name)
    for part in peer.get("subject", ()):
        for kind, name in part:
            if kind == "commonName":
                return str(name)
    return None


class _Server(Protocol):
    def shutdown(self) -> None: ...


_S = TypeVar("_S", bound=_Server)


def replace_listener(old: _S, make: Callable[[], _S], wait_s: float = LISTEN_WAIT_S) -> tuple[_S, threading.Thread]:
    """Start a Flight server where `old` listens, which ends with its last call. Returns the new one, and the thread that waits for the old.

    make: starts a server on the same port, or raises OSError or pyarrow's error while that is taken. Raises LeptonError when the port
    does not become free within `wait_s`: then nothing listens there any more.
    """
    ending = threading.Thread(target=old.shutdown, name="lepton-flight-ends", daemon=True)
    ending.start()
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return make(), ending
        except (OSError, _arrow_error()) as error:
            if time.monotonic() > deadline:
                raise LeptonError(f"the port cannot be listened to again: {error}") from None
        time.sleep(LISTEN_TRY_S)


def _arrow_error() -> type[Exception]:
    import pyarrow as pa

    return pa.ArrowException


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
    if len(data) > PEM_BYTES_MAX:
        raise SourceError(f"{path} is larger than {PEM_BYTES_MAX:,} bytes: it is no PEM file", str(path))
    return data


def _why(error: Exception) -> str:
    """What OpenSSL says, without its function names."""
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).replace("_", " ").lower()
