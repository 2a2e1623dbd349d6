"""Bounds of a served model, with their units and the reasons for their values; those of HTTP itself are leptonstore.web.limits'.
`ServeLimits` are those that a user may set.

Together they bound the memory of a server, whatever is sent to it: what leptonstore.web.limits adds up, plus what is decoded from
bodies, plus the rows that wait (`queue_rows_max`).
"""

from __future__ import annotations

from dataclasses import dataclass

from leptonstore.errors import BadInput
from leptonstore.limits import KIB, MIB
from leptonstore.web.limits import WebLimits

BODY_PART_INLINE_BYTES_MAX = (
    64 * KIB
)  # a larger body is parsed in a thread, so that other requests are answered meanwhile
DECODE_THREADS = 2  # that parse bodies and decode images: as many bodies are unpacked at a time
OUTPUT_BYTES_MAX = 16 * MIB  # of one answer's tensor; with many classes a request may have fewer rows
# A number of a JSON body: 17 digits of a float64, sign, point, exponent, comma and a space.
JSON_NUMBER_BYTES_MAX = 26
JSON_SLACK_BYTES = 4 * KIB  # of a JSON body beside its numbers: keys, brackets of small tensors
PROBE_S_MAX = 10.0  # of a start that is spent on finding batch sizes that agree (steady.py)
TOKENS_MAX = 1_000  # in a token file: each is compared with what a request presents, 0.3 us apiece
TOKEN_FILE_BYTES_MAX = 1 * MIB
TOKEN_FILE_LOOK_S = 1.0  # between two looks whether it has changed
TOKEN_NAME_CHARS_MAX = 100


@dataclass(frozen=True)
class ServeLimits(WebLimits):
    """Raises BadInput for values that make no sense. Beside those of WebLimits:

    batch_rows          rows that the model is given at a time; a power of two
    wait_ms             that an idle model waits for more rows than it has; a busy one finds the next batch waiting
    queue_rows_max      rows that wait for the model; more are refused (429)
    rows_max            rows of one request
    body_bytes_max      of one request
    pixels_max          of the encoded images of a request, together: 16 million take 50 MB as RGB and 0.2 s to decode
    answer_s            from a whole request to its answer; then 504
    """

    batch_rows: int = 64
    wait_ms: float = 0.0
    queue_rows_max: int = 4_096
    rows_max: int = 256
    body_bytes_max: int = 16 * MIB
    pixels_max: int = 16_000_000
    answer_s: float = 30.0

    @classmethod
    def may_be_zero(cls) -> frozenset[str]:
        """The names of those that may."""
        return super().may_be_zero() | {"wait_ms"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_rows & (self.batch_rows - 1):
            raise BadInput(f"batch_rows is {self.batch_rows}; it must be a power of two")
        if self.rows_max > self.queue_rows_max:
            raise BadInput(f"rows_max is {self.rows_max}, more than the {self.queue_rows_max} rows that may wait")
        if self.body_bytes_max > self.bodies_bytes_max:
            raise BadInput(
                f"body_bytes_max is {self.body_bytes_max:,}, more than bodies_bytes_max allows for all requests"
            )
