"""Bounds of the control plane, each with its unit and its reason. Those of HTTP itself stand in leptonstore/web/limits.py.

Memory for answers is at most REQUESTS_MAX x 2 x (a piece: a batch or a chunk, of some MiB): one piece that is sent, one that is read ahead.
"""

from __future__ import annotations

from leptonstore.limits import KIB, MIB

# -- how much at once --------------------------------------------------------------------------------------------------
THREADS = 8  # that may block on the store; a slow bucket is what waits, not a processor
REQUESTS_MAX = 64  # that use the store at a time, those that are being sent included
REQUESTS_WAITING_MAX = 256  # for a place, each with its head read; more are told to come again (429), and so is
PLACE_WAIT_S = 5.0  # who has waited for so long: what waits longer is asked for again anyhow
STEP_S = 120.0  # for one step of an answer (a batch, a chunk); a store that hangs for longer is told as unavailable
READY_S = 2.0  # for asking whether the store answers
READY_LOOK_S = 1.0  # between two such looks: probes that come more often get the last answer

# -- requests ----------------------------------------------------------------------------------------------------------
# Of a body to /v1/<operation>: a request on the wire, of which limits.py bounds both parts.
PUT_MESSAGE_HEAD_BYTES_MAX = 64 * KIB  # of an Arrow message's description; five columns need 500 bytes
PUT_READ_S = 30.0  # for a body, or a message of a put; who is slower is refused
PUTS_MAX = 8  # at a time: each has a thread for as long as its body takes
RANGES_MAX = 16  # of one request; a header with more is taken for none, as nginx does
QUERY_CHARS_MAX, QUERY_FIELDS_MAX = 4_096, 64
PATH_PART_CHARS_MAX = (
    4_000  # between two slashes: Python makes no number of more than 4,300 digits, and says so with an exception
)

# -- answers -----------------------------------------------------------------------------------------------------------
SEND_BYTES = 256 * KIB  # handed to the connection at a time: what waits there for a slow client is no more than this
JSON_ROWS_DEFAULT, JSON_ROWS_MAX = 100, 1_000  # of one answer in JSON; Arrow has no such bound
JSON_BYTES_MAX = 8 * MIB  # after which an answer in JSON says where to go on
VALUE_BYTES_MAX = (
    64 * MIB
)  # of a value that is made in memory (tensors, lists); bytes and text are read in pieces of any length
FILES_MAX = 1_000_000  # of a version that is shown as files: 300 bytes of memory each
FILES_LISTED_MAX = 10_000  # of one directory in one answer
MOUNTS_MAX = 4  # versions that are kept as files
IMMUTABLE_S = 31_536_000  # a year: as long as HTTP's caches take anything for
