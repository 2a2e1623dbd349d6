"""What carries requests to one daemon, and answers back: Flight (flight_plane.py), or HTTP (http_plane.py) where Flight cannot be used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Unreached(Exception):
    """No answer came: the daemon is not there, ended, or the connection was lost. What was asked for may have been done or not."""


class Plane(Protocol):
    """Requests to one daemon; `request` is encoded (messages.py). Any thread, this process.

    All raise Unreached, or the LeptonError that the daemon answered.
    """

    def act(self, request: bytes, seconds: float) -> bytes:
        """The answer of an action, whole."""
        ...

    def stream(self, request: bytes, seconds: float) -> Iterator[pa.RecordBatch]:
        """The batches of a "get", as they come. Closing the iterator ends the request."""
        ...

    def send(
        self, request: bytes, session: str, batches: Sequence[pa.RecordBatch], seconds: float
    ) -> Mapping[str, Any]:
        """A "put" of at least one batch; what the daemon says when it has them all."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...

    def abandon(self) -> None:
        """In a forked child: the connections are the parent's; they are neither used nor ended here."""
        ...
