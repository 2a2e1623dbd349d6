"""What a client of the control plane is told instead of an answer: {"error": class, "message", "fields", "request_id"}.

The class is one of leptonstore.errors; class, message and fields are as store/wire/errors.py tells them on the other plane too, so that
a client of either makes the same error of them. What HTTP itself refuses (a Host, a slow head) has a class here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leptonstore.errors import LeptonError, TooBusy
from leptonstore.store.wire import errors as wire_errors
from leptonstore.web.refusal import Refused

_CLASSES = {
    "unauthorized": "NotAuthenticated",
    "not_found": "NotFound",
    "internal": "LeptonError",
    "busy": "TooBusy",
    "draining": "TooBusy",
}  # of what web/ refuses; anything else is the client's fault


class Failed(Refused):
    """An answer that is an error, with a status of its own choice. `kind` is the name of a class of leptonstore.errors."""

    def __init__(
        self,
        kind: str,
        message: str,
        status: int,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(kind, message, retry_after_s, headers)
        self._status, self.fields = status, dict(fields or {})

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self._status


def failed(error: LeptonError, status: int | None = None) -> Failed:
    """`error`, of which nothing is left that is only for this host (service.failure), as an answer; `status`: another than its class's."""
    body = wire_errors.to_json(error)
    retry = max(1, math.ceil(error.retry_after_s)) if isinstance(error, TooBusy) else None
    return Failed(body["error"], body["message"], status or wire_errors.status_of(error), retry, fields=body["fields"])


def told(refused: Refused, request_id: str | None) -> dict[str, Any]:
    """The JSON of an error."""
    own = isinstance(refused, Failed)
    body: dict[str, Any] = {
        "error": refused.kind if own else _CLASSES.get(refused.kind, "BadInput"),
        "message": refused.message,
    }
    if isinstance(refused, Failed) and refused.fields:
        body["fields"] = refused.fields
    return body if request_id is None else body | {"request_id": request_id}
