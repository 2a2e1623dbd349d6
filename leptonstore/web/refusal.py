"""Refused: what a request is told instead of an answer. One class, so that nothing else ever reaches a client.

The types and their statuses are those of `TYPES` and of who uses this; messages speak of the request alone, never of files, code or memory.
How an error looks as JSON is its server's choice (`Told`), the same for all of its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

TYPES: Mapping[str, int] = {
    "malformed": 400,  # bytes that are not what the content type says
    "unauthorized": 401,  # no token, a wrong one, or one that has expired
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "timeout": 408,  # the request did not arrive in time
    "too_large": 413,
    "unsupported_type": 415,
    "misdirected": 421,  # a Host that is not this one's
    "headers_too_large": 431,
    "internal": 500,
    "busy": 503,  # bodies or connections
    "draining": 503,
}


class Refused(Exception):
    """`kind` is one of `types`; `retry_after_s`: when it makes sense to try again; `headers` go with the answer."""

    types: ClassVar[Mapping[str, int]] = TYPES

    def __init__(
        self, kind: str, message: str, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after_s = kind, message, retry_after_s
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self.types[self.kind]

    @property
    def ends(self) -> bool:
        """Whether its connection is closed: who is slow is not waited for again; who sends what is not HTTP as we know it may mean
        something else by the rest."""
        return self.kind in ("timeout", "headers_too_large", "misdirected", "draining")


Told = Callable[[Refused, str | None], dict[str, Any]]
"""(what is refused, the request's id; None where there was no request) -> the JSON of an error."""


def nested(refused: Refused, request_id: str | None) -> dict[str, Any]:
    """{"error": {"type": "busy", "message": "…", "request_id": "9f86…"}}"""
    told = {"type": refused.kind, "message": refused.message}
    return {"error": told if request_id is None else told | {"request_id": request_id}}
