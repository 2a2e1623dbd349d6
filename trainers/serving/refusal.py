"""Refused: what a request to a model is told instead of an answer; beside leptonstore.web.refusal's, what only a model refuses.

{"error": {"type": "queue_full", "message": "4,096 rows are waiting; try again later", "request_id": "9f86…"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leptonstore.web import refusal

TYPES: Mapping[str, int] = {
    **refusal.TYPES,
    "does_not_fit": 422,  # dtype, shape or values that the model does not take
    "queue_full": 429,
    "no_answer": 504,  # the model did not answer in time
}


class Refused(refusal.Refused):
    """`kind` is one of TYPES; `retry_after_s`: when it makes sense to try again."""

    types: ClassVar[Mapping[str, int]] = TYPES
