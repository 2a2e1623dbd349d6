"""Every bound of a served model, with its unit and the reason for its value. `ServeLimits` are those that a user may set.

Together they bound the memory of a server, whatever is sent to it: connections x about 150 KiB (READ_BYTES, uvicorn's buffer, a
head), plus the bodies of all requests (`bodies_bytes_max`) and what is decoded from them, plus the rows that wait (`queue_rows_max`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from leptonstore.errors import BadInput
from leptonstore.limits import KIB, MIB

HEAD_BYTES_MAX = (
    16 * KIB
)  # of a request line and its headers: h11's own bound, and what nginx and Apache allow twice over
READ_BYTES = 64 * KIB  # of a connection at a time; as much again waits in uvicorn until a route takes it
BODY_PART_INLINE_BYTES_MAX = (
    64 * KIB
)  # a larger body is parsed in a thread, so that other requests are answered meanwhile
DECODE_THREADS = 2  # that parse bodies and decode images: as many bodies are unpacked at a time
OUTPUT_BYTES_MAX = 16 * MIB  # of one answer's tensor; with many classes a request may have fewer rows
# A number of a JSON body: 17 digits of a float64, sign, point, exponent, comma and a space.
JSON_NUMBER_BYTES_MAX = 26
JSON_SLACK_BYTES = 4 * KIB  # of a JSON body beside its numbers: keys, brackets of small tensors
# What is read of a body that is refused, so that its sender sees the answer and not a reset connection (nginx: lingering_close).
LINGER_BYTES_MAX = 64 * MIB
LINGER_S = 5.0
REFUSED_CONNECTIONS_MAX = 64  # that are told of a full server at a time; those beyond are closed without a word
REFUSED_LINGER_S = 1.0
RETRY_AFTER_S = 1  # that a client is asked to wait: longer than a full queue takes at 4,096 rows a second
PROBE_S_MAX = 10.0  # of a start that is spent on finding batch sizes that agree (steady.py)
TOKENS_MAX = 1_000  # in a token file: each is compared with what a request presents, 0.3 us apiece
TOKEN_FILE_BYTES_MAX = 1 * MIB
TOKEN_FILE_LOOK_S = 1.0  # between two looks whether it has changed
TOKEN_NAME_CHARS_MAX = 100
REQUEST_ID_CHARS_MAX = 64


@dataclass(frozen=True)
class ServeLimits:
    """Raises BadInput for values that make no sense.

    batch_rows          rows that the model is given at a time; a power of two
    wait_ms             that an idle model waits for more rows than it has; a busy one finds the next batch waiting
    queue_rows_max      rows that wait for the model; more are refused (429)
    rows_max            rows of one request
    body_bytes_max      of one request
    bodies_bytes_max    of all requests that are being read or answered; more are refused (503)
    pixels_max          of the encoded images of a request, together: 16 million take 50 MB as RGB and 0.2 s to decode
    connections_max     open at a time
    head_s              from the first byte (or the connection) to the last of the headers
    body_s              for all of a body
    answer_s            from a whole request to its answer; then 504
    write_s             that a client may take no bytes of its answer
    idle_s              that a connection may stay open between two requests
    drain_s             after SIGTERM, for requests that are under way
    drain_wait_s        after SIGTERM, in which requests are still taken while /readyz says 503: a load balancer looks there
    """

    batch_rows: int = 64
    wait_ms: float = 0.0
    queue_rows_max: int = 4_096
    rows_max: int = 256
    body_bytes_max: int = 16 * MIB
    bodies_bytes_max: int = 256 * MIB
    pixels_max: int = 16_000_000
    connections_max: int = 2_048
    head_s: float = 10.0
    body_s: float = 30.0
    answer_s: float = 30.0
    write_s: float = 30.0
    idle_s: float = 15.0
    drain_s: float = 30.0
    drain_wait_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0.0 if field.name in ("wait_ms", "drain_wait_s") else 1 if isinstance(field.default, int) else 0.001
            if not least <= value < float("inf"):
                raise BadInput(f"{field.name} is {value}; it must be at least {least:g}")
        if self.batch_rows & (self.batch_rows - 1):
            raise BadInput(f"batch_rows is {self.batch_rows}; it must be a power of two")
        if self.rows_max > self.queue_rows_max:
            raise BadInput(f"rows_max is {self.rows_max}, more than the {self.queue_rows_max} rows that may wait")
        if self.body_bytes_max > self.bodies_bytes_max:
            raise BadInput(
                f"body_bytes_max is {self.body_bytes_max:,}, more than bodies_bytes_max allows for all requests"
            )
