"""Calls of other members: Arrow Flight, a connection for each member that is called, made when it is needed and kept.

do_get(LWR1 {"op": "block", "from": address, "here": bool} + parts)      -> wire.py's answer
do_get(LWR1 {"op": "block", "from": address, "ahead": true} + parts)     -> nothing; it begins to fetch their blocks
do_action("member", LWR1 {"op": "member", "from": address})              -> JSON: who it is, and of which store
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.members import Member, member_of
from leptonstore.daemon.cluster.wire import Answer, Part, answers_of, payload_of
from leptonstore.errors import BadInput, TierUnavailable, TooBusy
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import encode


class PeerLate(TierUnavailable):
    """A member did not answer in time: it may be dead, or busy."""


class PeerDamaged(TierUnavailable):
    """What a member answered is not what it sent, or no answer at all."""


@dataclass(frozen=True)
class PeerTls:
    """How members are called where the data plane has TLS; all as PEM. chain and key: of a client certificate (mTLS)."""

    roots: bytes
    chain: bytes | None = None
    key: bytes | None = None


class Peers:
    """Any thread; not in a child process made by fork."""

    def __init__(self, mine: str, token: Callable[[], str], store_id: str, tls: PeerTls | None = None) -> None:
        """mine: this daemon's address. token(): the bearer token of a member. store_id: a member of another store is refused."""
        self._mine, self._token, self._store_id, self._tls = mine, token, store_id, tls
        self._lock = threading.Lock()
        self._clients: dict[str, flight.FlightClient] = {}

    def _client(self, address: str) -> flight.FlightClient:
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                options: dict[str, Any] = {}
                if self._tls is not None:
                    options = {"tls_root_certs": self._tls.roots}
                    if self._tls.chain is not None:
                        options |= {"cert_chain": self._tls.chain, "private_key": self._tls.key}
                scheme = "grpc+tcp" if self._tls is None else "grpc+tls"
                client = flight.FlightClient(f"{scheme}://{address}", **options)
                self._clients[address] = client
            return client

    def _options(self, timeout_s: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(
            timeout=timeout_s, headers=[(b"authorization", f"Bearer {self._token()}".encode())]
        )

    @contextmanager
    def _typed(self, address: str) -> Iterator[None]:
        where = f"member {address}"
        try:
            yield
        except flight.FlightTimedOutError:
            raise PeerLate(f"{where} does not answer in time", address) from None
        except flight.FlightUnavailableError as error:
            if isinstance(wire_errors.decode(error.extra_info or b""), TooBusy):
                raise PeerLate(f"{where} is busy", address) from None
            self.forget(address)
            raise TierUnavailable(f"{where} does not answer", address) from None
        except (flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError):
            raise TierUnavailable(
                f"{where} refuses this daemon: do all of the cluster have the same secret?", address
            ) from None
        except OSError as error:
            self.forget(address)
            raise TierUnavailable(f"{where} does not answer ({error.strerror or error})", address) from None
        except pa.ArrowException as error:
            said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise TierUnavailable(f"{where} answers with an error: {said}", address) from None
        except BadInput as error:
            raise PeerDamaged(f"{where}: {error}", address) from None

    def fetch(self, address: str, parts: Sequence[Part], mine: str, here: bool) -> list[Answer | None]:
        """What the member at `address` says of each part; None of one that arrived damaged. mine: the address of who asks.

        here: only of what it has. Raises TierUnavailable (PeerLate, PeerDamaged).
        """
        ticket = flight.Ticket(encode("block", {"from": mine, "here": here}, payload_of(parts)))
        found: list[Answer | None] = []
        with self._typed(address):
            reader = self._client(address).do_get(ticket, self._options(bounds.PEER_REQUEST_S))
            for chunk in reader:
                found += answers_of(chunk.data, parts[len(found) :])
            if len(found) != len(parts):
                raise BadInput(f"it answered {len(found)} of {len(parts)} parts")
        return found

    def ahead(self, address: str, parts: Sequence[Part]) -> None:
        """Let the member at `address` fetch blocks of its own before they are asked for. Raises TierUnavailable."""
        ticket = flight.Ticket(encode("block", {"from": self._mine, "ahead": True}, payload_of(parts)))
        with self._typed(address):
            self._client(address).do_get(ticket, self._options(bounds.PROBE_S)).read_all()

    def ask(self, address: str) -> Member:
        """Who answers at `address`. Raises TierUnavailable, also when it serves another store."""
        host, _, port = address.rpartition(":")
        with self._typed(address):
            socket.create_connection(
                (host.strip("[]"), int(port)), bounds.CONNECT_S
            ).close()  # gRPC takes longer to tell
            results = self._client(address).do_action(
                flight.Action("member", encode("member", {"from": self._mine})), self._options(bounds.PROBE_S)
            )
            body = next(iter(results)).body.to_pybytes()
            try:
                told = json.loads(body)
                if told["store"] != self._store_id:
                    raise TierUnavailable(f"member {address} serves another store", address)
                return member_of(told["member"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BadInput("it does not say who it is") from None

    def forget(self, address: str) -> None:
        """Call it over a new connection next time."""
        with self._lock:
            client = self._clients.pop(address, None)
        del client  # calls that are under way keep it

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()
