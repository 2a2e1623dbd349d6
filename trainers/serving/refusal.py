"""Refused: what a request is told instead of an answer. One class, so that nothing else ever reaches a client.

    {"error": {"type": "queue_full", "message": "4,096 rows are waiting; try again later", "request_id": "9f86…"}}

The types and their statuses are those of `TYPES`; messages speak of the request alone, never of files, code or memory.
"""

from __future__ import annotations

TYPES = {
    "malformed": 400,  # bytes that are not what the content type says
    "unauthorized": 401,  # no token, a wrong one, or one that has expired
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "timeout": 408,  # the request did not arrive in time
    "too_large": 413,  # bytes, rows or pixels
    "unsupported_type": 415,
    "misdirected": 421,  # a Host that is not this one's
    "does_not_fit": 422,  # dtype, shape or values that the model does not take
    "queue_full": 429,
    "headers_too_large": 431,
    "internal": 500,
    "busy": 503,  # bodies or connections
    "draining": 503,
    "no_answer": 504,  # the model did not answer in time
}


class Refused(Exception):
    """`kind` is one of TYPES; `retry_after_s`: when it makes sense to try again."""

    def __init__(self, kind: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after_s = kind, message, retry_after_s

    @property
    def status(self) -> int:
        """Of HTTP."""
        return TYPES[self.kind]
