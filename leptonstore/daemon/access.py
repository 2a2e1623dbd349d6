"""Who asks: credentials become principals; requests are counted against limits; writes and denials go into the audit log.

Both planes call it, in this order: `authenticate` (the headers are there, nothing of the body was read), `charge`, then the operation,
which asks `principal.require`, and at its end `audit` (and `spend`, with its bytes).

What counts as a credential, the first that is given: an `authorization: Bearer TOKEN` header (a store's token, or the token of this
running daemon, which stands in a file that only its user can read); else a client certificate that TLS has verified, for which the
store has an entry; else nothing, which is what `--anonymous` allows, if anything. A credential that is given and wrong is never taken
for none.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from leptonstore.daemon.audit import AuditLog
from leptonstore.daemon.live_tokens import LiveTokens
from leptonstore.daemon.operations import Operation, Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.daemon.rates import RateLimits, Rates, too_busy
from leptonstore.daemon.tokens import (
    CERTIFICATE_CHARS_MAX,
    TOKEN_CHARS_MAX,
    Token,
    TokenRing,
    certificate_id,
    id_in,
)
from leptonstore.errors import LeptonError, NotAuthenticated
from leptonstore.store import Store
from leptonstore.store.log import user_name

__all__ = ["Access", "AccessSettings", "Grant", "Principal"]

LOCAL = Principal("local", user_name(), (Grant(Scope.ADMIN),))  # who can read the daemon's own files
PEER = Principal("peer", "another daemon", (Grant(Scope.PEER),))  # who has the cluster's secret
ANONYMOUS_ID = "anonymous"
_DENIED = "no valid credential was given: set LEPTON_TOKEN (see `lepton token add`), or use a client certificate"

log = logging.getLogger("lepton.daemon.access")


@dataclass(frozen=True)
class AccessSettings:
    """What an administrator chooses. anonymous: what is granted to those who give no credential at all."""

    anonymous: tuple[Grant, ...] = ()
    rates: RateLimits = field(default_factory=RateLimits)


@dataclass
class Failures:
    """Counts of refused credentials, for metrics."""

    refused: int = 0
    slowed: int = 0  # of them, those that were told to wait


class Access:
    """The gate of one daemon. Any thread; `now` and `clock` are those of time.time and time.monotonic."""

    def __init__(
        self,
        ring: TokenRing,
        settings: AccessSettings | None = None,
        audit_log: AuditLog | None = None,
        local_token: str | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """local_token: of this running daemon (local_token.py); audit_log: None keeps none."""
        self._settings = settings or AccessSettings()
        self.tokens = LiveTokens(ring, clock)
        self.audit_log, self._local_token = audit_log, local_token
        self._now = now
        self._clock, self._rates = clock, Rates(self._settings.rates, clock)
        self.failures = Failures()
        self.is_peer: Callable[[str], bool] = lambda authorization: False  # of a cluster: Cluster.is_peer

    @classmethod
    def of(
        cls,
        store: Store,
        settings: AccessSettings | None = None,
        audit_log: AuditLog | None = None,
        local_token: str | None = None,
    ) -> Access:
        """That of a daemon which serves `store`."""
        return cls(TokenRing.of(store), settings, audit_log, local_token)

    # -- who -------------------------------------------------------------------------------------------------------

    def authenticate(self, authorization: str | None, certificate: str | None, address: str) -> Principal:
        """Whom a request comes from.

        authorization: the value of that header. certificate: the name that a verified client certificate states
        (tls.certificate_name; Flight's peer_identity). address: the peer's IP address, without a port. Raises NotAuthenticated (which never
        says what was wrong), TooBusy (an address that fails too often), TierUnavailable (the store's home cannot be asked).
        """
        if authorization is not None:
            found = self._bearer(authorization)
        elif certificate:
            found = self._certificate(certificate)
        elif self._settings.anonymous:
            return Principal(ANONYMOUS_ID, ANONYMOUS_ID, self._settings.anonymous)
        else:
            found = None
        if found is not None:
            return found
        self._failed(address)
        raise NotAuthenticated(_DENIED)

    def _bearer(self, authorization: str) -> Principal | None:
        scheme, _, presented = authorization.partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented or len(presented) > TOKEN_CHARS_MAX:
            return None
        if self._local_token is not None and hmac.compare_digest(
            presented.encode("utf-8", "surrogatepass"), self._local_token.encode()
        ):
            return LOCAL
        if self.is_peer(f"Bearer {presented}"):
            return PEER
        token_id = id_in(presented)
        token = None if token_id is None else self.tokens.of(token_id)
        return self._valid(token) if token is not None and token.fits(presented) else None

    def _certificate(self, name: str) -> Principal | None:
        if len(name) > CERTIFICATE_CHARS_MAX:
            return None
        token = self.tokens.of(certificate_id(name))
        return self._valid(token) if token is not None and token.certificate == name else None

    def _valid(self, token: Token) -> Principal | None:
        return None if token.expired(self._now()) else token.principal

    def _failed(self, address: str) -> None:
        """Count it. An address that fails often is told to wait instead; a valid credential passes from there all the same."""
        self.failures.refused += 1
        wait = self._rates.failures.take(address, 1)
        if wait:
            self.failures.slowed += 1
            raise too_busy("too many requests without a valid credential came from this address", wait)

    # -- how much --------------------------------------------------------------------------------------------------

    def limit(self, rates: RateLimits) -> None:
        """From now on these limits hold. Everybody begins anew with a full bucket."""
        self._rates = Rates(rates, self._clock)

    def charge(self, principal: Principal, operation: Operation, bytes: int = 0, address: str = "") -> None:
        """Count a request, and `bytes` of it. Raises TooBusy; then the request is not to be done."""
        if principal is PEER:  # its clients are counted where they ask
            return
        self._rates.charge(principal.id, address, operation.name)
        self.spend(principal, bytes, address)

    def spend(self, principal: Principal, bytes: int, address: str = "") -> None:
        """Count bytes that came in or went out. Never raises: too many of them refuse the next request."""
        if principal is not PEER:
            self._rates.spend(principal.id, address, bytes)

    # -- what happened ---------------------------------------------------------------------------------------------

    def audit(
        self,
        principal: Principal | None,
        operation: Operation | str,
        what: str = "",
        outcome: LeptonError | str = "ok",
        address: str = "",
    ) -> None:
        """Write down a write or a denial. principal: None when nobody was authenticated. outcome: "ok", or the error.

        what: names only (a ref, a dataset, a job), never an argument that could hold a secret.
        """
        if self.audit_log is None:
            return
        told = type(outcome).__name__ if isinstance(outcome, LeptonError) else outcome
        name = operation if isinstance(operation, str) else operation.name
        if principal is None:
            self.audit_log.write(name, told, None, "", address, what)
        else:
            self.audit_log.write(name, told, principal.id, principal.name, address, what)

    def close(self) -> None:
        """Close the audit log; the next line opens it again."""
        if self.audit_log is not None:
            self.audit_log.close()
