"""The token of a running daemon, for its own user on its own host: a file that nobody else can read.

    $XDG_RUNTIME_DIR/lepton/daemons/<port>.token, else below the cache directory      mode 0600, in a folder of mode 0700

The daemon writes it when it listens and removes it when it ends; it is worth nothing to a later daemon. Whoever can read it can read
the daemon's memory and its store, too, so it may do everything. Clients find it by themselves (store/wire/credentials.py).
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from leptonstore.store.index import cache_home

RANDOM_BYTES = 32


def local_token_path(port: int) -> Path:
    """Where the token of the daemon that listens on `port` of this host stands."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) if runtime.startswith("/") else cache_home()
    return folder / "lepton" / "daemons" / f"{port}.token"


def write_local_token(port: int) -> str:
    """A new token in the file for `port`, which is replaced as a whole. Raises OSError."""
    path, token = local_token_path(port), secrets.token_urlsafe(RANDOM_BYTES)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(token)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return token


def remove_local_token(port: int, token: str) -> None:
    """Take the file away if it still holds `token`: another daemon may have taken the port."""
    with suppress(OSError, ValueError):
        if local_token_path(port).read_text("ascii") == token:
            local_token_path(port).unlink()
