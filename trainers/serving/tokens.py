"""Bearer tokens. A file holds their SHA-256, names and expiry; the token itself is shown once, when it is made.

    {"format": "lepton.tokens", "version": 1,
     "tokens": [{"name": "ci", "sha256": "<64 hex>", "expires": "2027-01-31T00:00:00+00:00"}]}

A token is 256 random bits, so that a plain hash is as good as a slow one, and the file is no secret. A presented token is
compared with every entry, in constant time each. A server looks at the file again when it has changed: removing an entry
locks its holder out within TOKEN_FILE_LOOK_S. A file that has become unreadable opens for nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from leptonstore.errors import BadInput, LeptonError, SourceError
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.tiers.durable import replace_file
from trainers.serving.limits import TOKEN_FILE_BYTES_MAX, TOKEN_FILE_LOOK_S, TOKEN_NAME_CHARS_MAX, TOKENS_MAX

FORMAT, VERSION = "lepton.tokens", 1
PREFIX = "lepton_"  # so that secret scanners and people recognise one
TOKEN_BYTES = 32
TOKEN_CHARS_MAX = 200  # longer ones are not hashed


@dataclass(frozen=True)
class Token:
    """An entry. `expires` is a time with a zone, or None."""

    name: str
    sha256: str
    expires: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "expires": None if self.expires is None else self.expires.isoformat(),
        }


def read_tokens(path: str | Path) -> list[Token]:
    """Raises SourceError for a file that is missing, malformed or unreadable."""
    try:
        with open(path, "rb") as file:
            data = file.read(TOKEN_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SourceError(
            f"cannot read the token file {path}: {error.strerror}; `lepton deploy token` makes one", str(path)
        ) from None
    try:
        if len(data) > TOKEN_FILE_BYTES_MAX:
            raise ValueError("it is too large")
        tree = parse_json(data, "it")
        if tree["format"] != FORMAT or tree["version"] != VERSION or len(tree["tokens"]) > TOKENS_MAX:
            raise ValueError("it is none of this version, or has too many")
        return [_parse(entry) for entry in tree["tokens"]]
    except (KeyError, TypeError, ValueError, LeptonError) as error:
        raise SourceError(f"the token file {path} is damaged: {error}", str(path)) from None


def add_token(path: str | Path, name: str, lifetime: timedelta | None = None) -> str:
    """A new token, which stands in clear nowhere but in the answer. The file is made when there is none.

    Raises BadInput for a name that is taken or not printable, SourceError as `read_tokens`.
    """
    if not name.isprintable() or not 1 <= len(name) <= TOKEN_NAME_CHARS_MAX:
        raise BadInput(f"a token's name has 1 to {TOKEN_NAME_CHARS_MAX} printable characters, unlike {name!r:.120}")
    if lifetime is not None and lifetime <= timedelta(0):
        raise BadInput("a token must live for some time")
    tokens = read_tokens(path) if os.path.exists(path) else []
    if any(token.name == name for token in tokens):
        raise BadInput(f"{path} has a token {name!r} already; take it away first, or choose another name")
    if len(tokens) >= TOKENS_MAX:
        raise BadInput(f"{path} has {TOKENS_MAX:,} tokens already; take some away first")
    secret = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    expires = None if lifetime is None else (datetime.now(UTC) + lifetime).replace(microsecond=0)
    _write(path, [*tokens, Token(name, _hash(secret), expires)])
    return secret


def remove_token(path: str | Path, name: str) -> None:
    """Raises BadInput when there is none of that name, SourceError as `read_tokens`."""
    tokens = read_tokens(path)
    kept = [token for token in tokens if token.name != name]
    if len(kept) == len(tokens):
        raise BadInput(f"{path} has no token {name!r}")
    _write(path, kept)


class TokenFile:
    """The tokens that a server takes. For one thread. `now` and `clock` are those of `time.time` and `time.monotonic`."""

    def __init__(
        self,
        path: str | Path,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises SourceError as `read_tokens`."""
        self._path, self._now, self._clock = path, now, clock
        self._seen = self._mark()
        self._tokens = read_tokens(path)
        self._looked = clock()

    def name_of(self, presented: str) -> str | None:
        """Whose token it is; None for one that is wrong or has expired."""
        self._look()
        if len(presented) > TOKEN_CHARS_MAX:
            return None
        found = None
        hashed = _hash(presented)
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, hashed):
                found = token
        if found is None or (found.expires is not None and found.expires.timestamp() <= self._now()):
            return None
        return found.name

    def _look(self) -> None:
        if self._clock() - self._looked < TOKEN_FILE_LOOK_S:
            return
        self._looked = self._clock()
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._tokens = read_tokens(self._path)
        except SourceError:
            self._tokens = []

    def _mark(self) -> tuple[int, int, int] | None:
        """Changes whenever the file does (it is replaced, never written in place)."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _parse(entry: dict[str, Any]) -> Token:
    name, sha256, text = str(entry["name"]), str(entry["sha256"]), entry["expires"]
    if len(sha256) != 64 or len(bytes.fromhex(sha256)) != 32:
        raise ValueError("a hash is none of SHA-256")
    expires = None if text is None else datetime.fromisoformat(text)
    if expires is not None and expires.tzinfo is None:
        raise ValueError("an expiry has no time zone")
    return Token(name, sha256.lower(), expires)


def _write(path: str | Path, tokens: list[Token]) -> None:
    tree = {"format": FORMAT, "version": VERSION, "tokens": [token.to_dict() for token in tokens]}
    replace_file(Path(path), canonical_json(tree) + b"\n", Path(path).parent)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
