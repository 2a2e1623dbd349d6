"""Who is signed in to the dashboard: sessions in memory, and one-time codes that begin one.

A session stands for the credential that it began with and asks nothing of its own: every request is authenticated anew by that, so that a
session ends with its token (revoked, expired, fewer grants). It lives in this process and ends with it.

    code = sessions.code("Bearer …")     for the URL that `lepton serve` prints; used up by whoever opens it first
    session = sessions.begin(sessions.redeem(code))
    sessions.find(cookie)                the session of a cookie, while it lives
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from leptonstore.daemon.http import pages_bounds as bounds
from leptonstore.digest import digest_of

SECRET_BYTES = 32


@dataclass
class Session:
    """`secret` is the cookie's value; `form_token` stands in every form; `authorization` is what it authenticates with."""

    secret: str = field(repr=False)
    form_token: str = field(repr=False)
    authorization: str = field(repr=False)
    began: float
    used: float

    def holds(self, form_token: str) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(self.form_token.encode(), form_token.encode("utf-8", "replace"))


class Sessions:
    """Of one daemon. Any thread. `clock`: time.monotonic, or a test's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        # By digest, so that looking one up tells nothing of the secrets there are; the one used last stands last.
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._codes: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def code(self, authorization: str) -> str:
        """A code that signs in once, as whom `authorization` stands for, within CODE_S seconds."""
        made = secrets.token_urlsafe(SECRET_BYTES)
        with self._lock:
            self._codes[_name(made)] = (authorization, self._clock() + bounds.CODE_S)
            while len(self._codes) > bounds.CODES_MAX:
                self._codes.popitem(last=False)
        return made

    def sign_in_path(self, authorization: str) -> str:
        """Where a browser signs in with a new code, after the URL of the control plane."""
        return f"/ui/login?code={self.code(authorization)}"

    def redeem(self, code: str) -> str | None:
        """The authorization of a code, which is used up; None of one that is unknown, used or too old."""
        with self._lock:
            authorization, until = self._codes.pop(_name(code), ("", 0.0))
        return authorization if authorization and self._clock() < until else None

    def begin(self, authorization: str) -> Session:
        """A new session. Of those of one credential, and of all, the oldest ends when there are too many."""
        now = self._clock()
        made = Session(
            secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES), authorization, now, now
        )
        with self._lock:
            self._forget(now)
            mine = [name for name, one in self._sessions.items() if one.authorization == authorization]
            for name in mine[: max(0, len(mine) - bounds.SESSIONS_EACH_MAX + 1)]:
                del self._sessions[name]
            while len(self._sessions) >= bounds.SESSIONS_MAX:
                self._sessions.popitem(last=False)
            self._sessions[_name(made.secret)] = made
        return made

    def find(self, secret: str) -> Session | None:
        """The session of a cookie; None when it has ended, or never was."""
        now = self._clock()
        with self._lock:
            self._forget(now)
            found = self._sessions.get(_name(secret))
            if found is not None:
                found.used = now
                self._sessions.move_to_end(_name(secret))
            return found

    def end(self, session: Session) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(_name(session.secret), None)

    def _forget(self, now: float) -> None:
        over = [
            name
            for name, one in self._sessions.items()
            if now - one.used > bounds.SESSION_IDLE_S or now - one.began > bounds.SESSION_S
        ]
        for name in over:
            del self._sessions[name]


def _name(secret: str) -> bytes:
    return digest_of(secret.encode("utf-8", "replace"))
