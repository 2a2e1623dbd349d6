"""Bounds of an HTTP server, with their units and the reasons for their values. `WebLimits` are those that a user may set.

Together they bound the memory of a server, whatever is sent to it: connections x about 150 KiB (READ_BYTES, uvicorn's buffer, a
head), plus the bodies of all requests (`bodies_bytes_max`), plus what the routes make of them, which they bound themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from leptonstore.errors import BadInput
from leptonstore.limits import KIB, MIB

HEAD_BYTES_MAX = (
    16 * KIB
)  # of a request line and its headers: h11's own bound, and what nginx and Apache allow twice over
READ_BYTES = 64 * KIB  # of a connection at a time; as much again waits in uvicorn until a route takes it
# What is read of a body that is refused, so that its sender sees the answer and not a reset connection (nginx: lingering_close).
LINGER_BYTES_MAX = 64 * MIB
LINGER_S = 5.0
REFUSED_CONNECTIONS_MAX = 64  # that are told of a full server at a time; those beyond are closed without a word
REFUSED_LINGER_S = 1.0
RETRY_AFTER_S = 1  # that a client is asked to wait: longer than a full queue takes
REQUEST_ID_CHARS_MAX = 64
LOGGED_CHARS_MAX = 200  # of a path
FILES_BESIDE_CONNECTIONS = 256  # open files of Python and the store


@dataclass(frozen=True)
class WebLimits:
    """Raises BadInput for values that make no sense. All values are numbers greater than zero, those of `may_be_zero` may be zero.

    bodies_bytes_max    of all requests that are being read or answered; more are refused (503)
    connections_max     open at a time
    head_s              from the first byte (or the connection) to the last of the headers
    body_s              for all of a body
    write_s             that a client may take no bytes of its answer
    idle_s              that a connection may stay open between two requests
    drain_s             after SIGTERM, for requests that are under way
    drain_wait_s        after SIGTERM, in which requests are still taken while /readyz says 503: a load balancer looks there
    """

    bodies_bytes_max: int = 256 * MIB
    connections_max: int = 2_048
    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    idle_s: float = 15.0
    drain_s: float = 30.0
    drain_wait_s: float = 0.0

    @classmethod
    def may_be_zero(cls) -> frozenset[str]:
        """The names of those that may."""
        return frozenset({"drain_wait_s"})

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0.0 if field.name in self.may_be_zero() else 1 if isinstance(field.default, int) else 0.001
            if not least <= value < float("inf"):
                raise BadInput(f"{field.name} is {value}; it must be at least {least:g}")
