"""Credentials that a store's daemons know: documents in its home, one for each token or certificate.

    tokens/<16 hex>   a framed document of kind "token" (sealed in an encrypted store):
        {"id", "store", "name", "grants": ["read", "write:birds"], "created_ns", "expires_ns"?, "author",
         "sha256": hash of the whole token | "certificate": a name that a client certificate states}

A token is "lepton_<id>_<43 characters>": 256 random bits, so that a plain hash is as good as a slow one. It is shown once, when it is made,
and stands in clear nowhere. Its id leads to the one document that may fit, and the hashes are compared in constant time; a certificate's
id comes from its name.

Invariants:
- A document is created, or removed, and never changed. Removing it is the revocation.
- It names its store: one that was copied to another store's home opens nothing there.
- A document that cannot be read opens nothing; `lepton token ls` says so.

The clock of whoever makes a token decides when its life ends, the daemon's clock whether it has: CLOCK_TOLERANCE_S is added.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from leptonstore.daemon.principals import Grant, Principal
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, NotFound, listed
from leptonstore.limits import LIFETIME_S_MAX
from leptonstore.store import Store
from leptonstore.store.log import Documents
from leptonstore.tiers.roles import HomePruner

FOLDER = "tokens"
PREFIX = "lepton_"  # so that secret scanners and people recognise one
SECRET_BYTES = 32
TOKENS_MAX = 1_024  # documents of one store: listing them reads each
TOKEN_DOCUMENT_BYTES_MAX = 64 << 10
TOKEN_NAME_CHARS_MAX = 64
TOKEN_CHARS_MAX = 200  # what is longer is no token, and is not hashed
GRANTS_MAX = 256  # of one token
CERTIFICATE_CHARS_MAX = 300  # a DNS name has at most 253, a common name 64, a SPIFFE id is a URI
CLOCK_TOLERANCE_S = 30.0  # a token is good for so long after its end: hosts kept by NTP differ by far less
_TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_[A-Za-z0-9_-]{{43}}")
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Token:
    """One document. Times are nanoseconds since the epoch; `expires_ns` None: never. One of `sha256` (hex) and `certificate` is set."""

    id: str
    store_id: bytes
    name: str
    grants: tuple[Grant, ...]
    created_ns: int
    expires_ns: int | None
    author: str
    sha256: str = ""
    certificate: str = ""

    def body(self) -> dict[str, Any]:
        """What the document says."""
        body: dict[str, Any] = {
            "id": self.id,
            "store": self.store_id.hex(),
            "name": self.name,
            "grants": [str(grant) for grant in self.grants],
            "created_ns": self.created_ns,
            "author": self.author,
        }
        body |= {"certificate": self.certificate} if self.certificate else {"sha256": self.sha256}
        return body if self.expires_ns is None else body | {"expires_ns": self.expires_ns}

    def expired(self, now: float) -> bool:
        """Whether its life has ended at `now` (seconds since the epoch, of the daemon's clock)."""
        return self.expires_ns is not None and now >= self.expires_ns / 1e9 + CLOCK_TOLERANCE_S

    def fits(self, presented: str) -> bool:
        """Whether `presented` is this token. In constant time."""
        return hmac.compare_digest(self.sha256.encode(), _hash(presented).encode())

    @property
    def principal(self) -> Principal:
        """Whom it stands for."""
        return Principal(self.id, self.name, self.grants)

    def to_json(self, now: float) -> dict[str, Any]:
        """For people and scripts: without the hash, which is nobody's business. now: seconds since the epoch."""
        return {
            "id": self.id,
            "name": self.name,
            "grants": [str(grant) for grant in self.grants],
            "created": _when(self.created_ns),
            "expires": None if self.expires_ns is None else _when(self.expires_ns),
            "expired": self.expired(now),
            "author": self.author,
            "certificate": self.certificate or None,
        }


def id_in(presented: str) -> str | None:
    """The id of the document that may fit a presented token; None for what is no token of ours."""
    match = _TOKEN.fullmatch(presented) if len(presented) <= TOKEN_CHARS_MAX else None
    return None if match is None else match[1]


def certificate_id(name: str) -> str:
    """The id of the document for a certificate that states `name`."""
    return hashlib.sha256(b"lepton certificate\0" + name.encode()).hexdigest()[:16]


def parse_token(data: bytes, token_id: str, store_id: bytes, documents: Documents, what: str) -> Token:
    """Raises FormatDamaged or FormatTooNew; of another store's document, too."""
    body = documents.parse(data, "token", what)
    try:
        expires = body.get("expires_ns")
        token = Token(
            id=str(body["id"]),
            store_id=bytes.fromhex(body["store"]),
            name=str(body["name"]),
            grants=tuple(Grant.parse(str(grant)) for grant in body["grants"][:GRANTS_MAX]),
            created_ns=int(body["created_ns"]),
            expires_ns=None if expires is None else int(expires),
            author=str(body["author"]),
            sha256=str(body.get("sha256", "")),
            certificate=str(body.get("certificate", "")),
        )
        if token.id != token_id or bool(token.certificate) == bool(token.sha256):
            raise ValueError("its name, or what it is for, is wrong")
        if token.sha256 and len(bytes.fromhex(token.sha256)) != hashlib.sha256().digest_size:
            raise ValueError("its hash is none of SHA-256")
    except (KeyError, TypeError, ValueError, BadInput) as error:
        raise FormatDamaged(f"{what} is damaged: {error}") from None
    if token.store_id != store_id:
        raise FormatDamaged(f"{what} is of another store: make one here with `lepton token add`")
    return token


class TokenRing:
    """The credentials of one store. Any thread."""

    def __init__(self, home: HomePruner, documents: Documents, store_id: bytes, url: str) -> None:
        self.home, self._documents, self._store_id, self._url = home, documents, store_id, url
        self.damaged: dict[str, Exception] = {}  # documents that the last `all` could not read

    @classmethod
    def of(cls, store: Store) -> TokenRing:
        """Those of a store that is open here."""
        return cls(store.home, store.documents, store.config.store_id, store.url)

    def read(self, token_id: str) -> bytes | None:
        """The document's bytes; None when there is none. Raises TierUnavailable or OSError."""
        return self.home.read_document(f"{FOLDER}/{token_id}", TOKEN_DOCUMENT_BYTES_MAX)

    def parse(self, data: bytes, token_id: str) -> Token:
        """What `read` gave. Raises FormatDamaged or FormatTooNew."""
        return parse_token(data, token_id, self._store_id, self._documents, f"token {token_id} of {self._url}")

    def ids(self) -> list[str]:
        """Of all documents."""
        return [name for name in self.home.documents(FOLDER) if _ID.fullmatch(name)][:TOKENS_MAX]

    def all(self) -> list[Token]:
        """All that can be read, oldest first, expired ones too. Raises TierUnavailable or OSError."""
        self.damaged = {}
        found = []
        for name in self.ids():
            try:
                data = self.read(name)
                if data is not None:
                    found.append(self.parse(data, name))
            except (FormatDamaged, FormatTooNew) as error:
                self.damaged[name] = error
        return sorted(found, key=lambda token: (token.created_ns, token.id))

    def add(
        self,
        name: str,
        grants: Sequence[Grant],
        lifetime_s: float | None = None,
        author: str = "",
        certificate: str = "",
        now: Callable[[], float] = time.time,
    ) -> tuple[Token, str]:
        """A new token and its text, which nobody can tell again; durable when it returns.

        certificate: not a token, but a client certificate that states this name (then the text is empty). lifetime_s: seconds; None: it
        does not expire. Raises BadInput (a bad name, one that is in use, no grants, too many tokens), StoreFull.
        """
        grants = tuple(dict.fromkeys(grants))
        self._check(name, grants, lifetime_s, certificate)
        created = now()
        expires = None if lifetime_s is None else int((created + lifetime_s) * 1e9)
        token_id = certificate_id(certificate) if certificate else secrets.token_hex(8)
        text = "" if certificate else f"{PREFIX}{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        token = Token(
            token_id,
            self._store_id,
            name,
            grants,
            int(created * 1e9),
            expires,
            author,
            sha256="" if certificate else _hash(text),
            certificate=certificate,
        )
        data = self._documents.encode("token", token.body())
        if self.parse(data, token_id) != token:  # what could not be read again would only be found out by its holder
            raise FormatDamaged("the new token does not read back: check this machine's memory")
        if not self.home.create_document(f"{FOLDER}/{token_id}", data):
            raise BadInput(f"there is an entry for the certificate {certificate!r} already: revoke it first")
        return token, text

    def _check(self, name: str, grants: Sequence[Grant], lifetime_s: float | None, certificate: str) -> None:
        if not name.isprintable() or not 1 <= len(name) <= TOKEN_NAME_CHARS_MAX:
            raise BadInput(f"a token's name has 1 to {TOKEN_NAME_CHARS_MAX} printable characters, unlike {name!r:.120}")
        if not grants:
            raise BadInput("a token without a grant opens nothing: grant it something (read, write:NAME, …)")
        if len(grants) > GRANTS_MAX:
            raise BadInput(f"{len(grants)} grants are more than a token has ({GRANTS_MAX}): make several")
        if lifetime_s is not None and not 0 < lifetime_s <= LIFETIME_S_MAX:
            raise BadInput("a token must live for some time, and not for centuries")
        if len(certificate) > CERTIFICATE_CHARS_MAX or not certificate.isprintable():
            raise BadInput(f"a certificate's name has at most {CERTIFICATE_CHARS_MAX} printable characters")
        known = self.all()
        if len(known) + len(self.damaged) >= TOKENS_MAX:
            raise BadInput(f"{self._url} has {TOKENS_MAX:,} tokens already: revoke some with `lepton token revoke`")
        if any(token.name == name for token in known):
            raise BadInput(f"{self._url} has a token {name!r} already: revoke it first, or choose another name")

    def find(self, wanted: str) -> Token:
        """The one whose name `wanted` is, or whose id begins with it. Raises NotFound or BadInput."""
        return choose(self.all(), wanted)

    def revoke(self, token_id: str) -> None:
        """Take it away, durably; no error when it is not there. Raises BadInput for what is no id."""
        if not _ID.fullmatch(token_id):
            raise BadInput(f"{token_id!r:.120} is no id of a token")
        self.home.delete_document(f"{FOLDER}/{token_id}")


def choose(known: Sequence[Token], wanted: str) -> Token:
    """The one whose name `wanted` is, or whose id begins with it. Raises NotFound or BadInput."""
    found = [token for token in known if token.name == wanted] or [one for one in known if one.id.startswith(wanted)]
    if not wanted or not found:
        raise NotFound(f"no token {wanted!r:.120}; there is: {listed(token.name for token in known)}")
    if len(found) > 1:
        raise BadInput(f"{wanted!r} names {len(found)} tokens: give more of the id")
    return found[0]


def _when(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
