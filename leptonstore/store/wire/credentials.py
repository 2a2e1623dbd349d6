"""What a client shows to a daemon, from its environment: a token, or a certificate. Never in a URL, a pickle or a message.

    LEPTON_TOKEN, LEPTON_TOKEN_FILE             a bearer token, or the file that holds it; else that of a daemon of this user on this host
                                                in
                                                `local_token_path`
    LEPTON_CA                                   certificates that TLS trusts, PEM (else those of the system)
    LEPTON_CLIENT_CERT, LEPTON_CLIENT_KEY       this client's own, PEM (mTLS)

Files are read for each connection, so that a token or a certificate that was replaced is used by the next one.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from leptonstore import limits
from leptonstore.errors import BadInput, NotPermitted
from leptonstore.store.index import cache_home
from leptonstore.store.wire.address import Host

_LOCAL = frozenset(("127.0.0.1", "localhost", "::1"))
_TOKEN_CHARS_MAX = 4_096


@dataclass(frozen=True)
class Credentials:
    """`token`: "" for none. PEM bytes; None: not given."""

    token: str = field(default="", repr=False)
    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


def local_token_path(port: int) -> Path:
    """Where a daemon of this user leaves its token, which listens on `port` of this host."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) if runtime.startswith("/") else cache_home()
    return folder / "lepton" / "daemons" / f"{port}.token"


def credentials_for(host: Host, tls: bool) -> Credentials:
    """What to show to `host`. Raises BadInput for a file that cannot be read, or a token that is none."""
    token = os.environ.get("LEPTON_TOKEN", "").strip()
    named = os.environ.get("LEPTON_TOKEN_FILE", "")
    if not token and named:
        token = _read(named, "LEPTON_TOKEN_FILE").decode("ascii", "replace").strip()
    if not token and host.name in _LOCAL:
        token = _local_token(host.port)
    if token and (not token.isascii() or not token.isprintable() or " " in token):
        raise BadInput("the token (LEPTON_TOKEN, LEPTON_TOKEN_FILE) holds characters that no token has")
    if not tls:
        return Credentials(token)
    files = [os.environ.get(name, "") for name in ("LEPTON_CA", "LEPTON_CLIENT_CERT", "LEPTON_CLIENT_KEY")]
    if bool(files[1]) != bool(files[2]):
        raise BadInput("LEPTON_CLIENT_CERT and LEPTON_CLIENT_KEY belong together: give both, or none")
    names = ("LEPTON_CA", "LEPTON_CLIENT_CERT", "LEPTON_CLIENT_KEY")
    ca, certificate, key = (_read(file, name) if file else None for file, name in zip(files, names, strict=True))
    return Credentials(token, ca, certificate, key, *files)


def _local_token(port: int) -> str:
    try:
        fd = os.open(local_token_path(port), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        # Another user's, or one that others could have written or read, is not believed.
        private = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        return file.read(_TOKEN_CHARS_MAX).decode("ascii", "replace").strip() if private else ""


def _read(file: str, variable: str) -> bytes:
    try:
        data = Path(file).expanduser().read_bytes()
    except PermissionError:
        raise NotPermitted(f"{variable} names {file}, which this user may not read") from None
    except OSError as error:
        raise BadInput(f"{variable} names {file}: {error.strerror or error}") from None
    if len(data) > limits.MIB:
        raise BadInput(f"{variable} names {file}, which is too large to be one")
    return data
