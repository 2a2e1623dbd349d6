"""What a running daemon knows of its store's tokens: each as fresh as its promise of revocation needs it.

A home that is a directory is asked at every request (15 us): a revocation by anybody holds from the next request on. Of another home
(an object store) a document is read again when it was last seen TOKEN_LOOK_S ago, by one request while others go on with what is known,
up to TOKEN_STALE_S: so a revocation elsewhere holds after TOKEN_STALE_S, one through this daemon at once. A home that does not answer
cannot be asked: then what is known holds for TOKEN_AWAY_S, and from then on nobody is let in (TierUnavailable).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from leptonstore.daemon.tokens import TOKENS_MAX, Token, TokenRing
from leptonstore.errors import FormatDamaged, FormatTooNew, TierUnavailable
from leptonstore.tiers.local import LocalTier

TOKEN_LOOK_S = 1.0
TOKEN_STALE_S = 2.0
TOKEN_AWAY_S = 60.0

log = logging.getLogger("lepton.daemon.access")


@dataclass
class _Seen:
    data: bytes
    token: Token | None  # None: the document opens nothing
    at: float


class LiveTokens:
    """Tokens by id. Any thread; `clock` is that of time.monotonic."""

    def __init__(self, ring: TokenRing, clock: Callable[[], float] = time.monotonic) -> None:
        self.ring, self._clock = ring, clock
        self._at_once = isinstance(ring.home, LocalTier)
        self._guard = threading.Lock()
        self._reading: set[str] = set()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._ids: set[str] = set()
        self._listed_at = -TOKEN_AWAY_S

    def of(self, token_id: str) -> Token | None:
        """The token with this id, None when there is none that can be read. Raises TierUnavailable."""
        with self._guard:
            seen = self._seen.get(token_id)
        if self._at_once:
            return self._read(token_id, seen)
        if seen is None:
            return self._read(token_id, None) if self._exists(token_id) else None
        age = self._clock() - seen.at
        if age < TOKEN_LOOK_S:
            return seen.token
        with self._guard:
            alone = token_id not in self._reading
            self._reading.add(token_id)
        if not alone and age < TOKEN_STALE_S:
            return seen.token
        try:
            return self._read(token_id, seen)
        finally:
            with self._guard:
                self._reading.discard(token_id)

    def forget(self, token_id: str) -> None:
        """It was made or revoked through this daemon: look again."""
        with self._guard:
            self._seen.pop(token_id, None)
            self._listed_at = -TOKEN_AWAY_S

    def _exists(self, token_id: str) -> bool:
        """For ids that were never seen. One listing a second, however many strangers come with ids of their own."""
        with self._guard:
            if self._clock() - self._listed_at < TOKEN_LOOK_S:
                return token_id in self._ids
            self._listed_at = self._clock()
        try:
            ids = set(self.ring.ids())
        except (TierUnavailable, OSError) as error:
            raise _unknown(error) from None
        with self._guard:
            self._ids = ids
        return token_id in ids

    def _read(self, token_id: str, seen: _Seen | None) -> Token | None:
        at = self._clock()  # before: what is removed while we read was there at that time
        try:
            data = self.ring.read(token_id)
        except FormatDamaged:
            data = b""
        except (TierUnavailable, OSError) as error:
            if seen is not None and self._clock() - seen.at < TOKEN_AWAY_S:
                return seen.token
            raise _unknown(error) from None
        if data is None:
            with self._guard:
                self._seen.pop(token_id, None)
                self._ids.discard(token_id)
            return None
        token = seen.token if seen is not None and seen.data == data else self._parse(data, token_id)
        with self._guard:
            self._seen[token_id] = _Seen(data, token, at)
            if len(self._seen) > TOKENS_MAX:
                self._seen.popitem(last=False)
        return token

    def _parse(self, data: bytes, token_id: str) -> Token | None:
        try:
            return self.ring.parse(data, token_id)
        except (FormatDamaged, FormatTooNew) as error:
            log.warning("%s", error)
            return None


def _unknown(error: Exception) -> TierUnavailable:
    log.warning("no credential can be checked: %s", error)
    return TierUnavailable("the store's home does not answer, so no credential can be checked; try again later")
