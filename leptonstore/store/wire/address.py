"""Where a served store is: lepton://HOST[:PORT][,HOST[:PORT]...]/NAME, or lepton+tls://… for TLS.

Several hosts are daemons of the same store: a client uses whichever answers. No URL holds a secret (credentials.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leptonstore import limits
from leptonstore.errors import BadInput

SCHEME, TLS_SCHEME = "lepton", "lepton+tls"
PORT = 7400
_URL = re.compile(r"lepton(\+tls)?:/", re.IGNORECASE)
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Host(NamedTuple):
    """A name or an address, and a port."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True)
class Address:
    """A served store. Immutable; pickles."""

    hosts: tuple[Host, ...]
    store: str
    tls: bool = False

    @property
    def url(self) -> str:
        """As people write it: equal for equal addresses."""
        return f"{TLS_SCHEME if self.tls else SCHEME}://{','.join(map(str, self.hosts))}/{self.store}"


def is_served(url: str | Path) -> bool:
    """Whether this is the URL of a store behind a daemon."""
    return isinstance(url, str) and _URL.match(url) is not None


def parse_host(text: str, port: int = PORT) -> Host | None:
    """HOST, HOST:PORT or [IPv6]:PORT; None for anything else."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    number = int(found["port"] or port)
    return Host(found["v6"] or found["name"], number) if 0 < number < 1 << 16 else None


def parse_address(url: str) -> Address:
    """Raises BadInput, which says what such a URL looks like."""
    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise BadInput(
            "the URL of a served store holds no user, secret or options: a token stands in LEPTON_TOKEN or LEPTON_TOKEN_FILE"
        )
    authority, _, name = rest.partition("/")
    hosts = [parse_host(text) for text in authority.split(",")]
    name = name.rstrip("/")
    if not rest or None in hosts or len(hosts) > limits.WIRE_HOSTS_MAX or _NAME.fullmatch(name) is None:
        raise BadInput(f"{url[:200]!r} names no served store: write lepton://HOST:{PORT}/NAME (lepton+tls://… for TLS)")
    known = dict.fromkeys(host for host in hosts if host is not None)
    return Address(tuple(known), name, scheme.lower() == TLS_SCHEME)
