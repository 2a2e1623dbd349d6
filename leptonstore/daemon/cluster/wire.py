"""What one member asks of another (operation `block`), as the payload of an LWR1 request, and what it is answered.

    payload: 32 bytes for each part: pack (16 bytes) | u32 number of the block | u32 start | u32 stop | u32 flags (1: it will be kept)
    answer:  record batches (state: uint8, check: 16 bytes, data: large_binary, holder: text or null), a row for each part, in order

state: 0 here is the data; 1 it is not here (asked of one that does not own it); 2 there is no such pack; 3 the bucket does not answer.
check: the beginning of the BLAKE3 of the data. holder: the address of a member nearer to the asker that has a copy of the block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from leptonstore.daemon.cluster import bounds
from leptonstore.digest import Buffer, digest_of
from leptonstore.errors import BadInput

DATA, NOT_HERE, NO_PACK, UNAVAILABLE = range(4)
KEPT = 1
CHECK_BYTES = 16
_PART = struct.Struct("<16sIIII")
PART_BYTES = _PART.size
_NUMBER_MAX = 1 << 20
SCHEMA = pa.schema(
    [
        pa.field("state", pa.uint8(), nullable=False),
        pa.field("check", pa.binary(CHECK_BYTES), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
        pa.field("holder", pa.utf8()),
    ]
)


class Part(NamedTuple):
    """Bytes [start, stop) of block `number` of a pack."""

    pack: str
    number: int
    start: int
    stop: int
    kept: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """The block."""
        return self.pack, self.number

    @property
    def offset(self) -> int:
        """Where it begins in the pack."""
        return self.number * bounds.BLOCK_BYTES + self.start


@dataclass(frozen=True)
class Answer:
    """What a peer said of one part."""

    state: int
    data: Buffer = b""
    holder: str | None = None


def parts_of(pack: str, offset: int, length: int) -> list[Part]:
    """The parts that a range of a pack consists of."""
    size, parts, end = bounds.BLOCK_BYTES, [], offset + length
    while offset < end:
        number = offset // size
        stop = min(end, (number + 1) * size)
        parts.append(Part(pack, number, offset - number * size, stop - number * size))
        offset = stop
    return parts


def payload_of(parts: Iterable[Part]) -> bytes:
    """As a request carries them."""
    return b"".join(
        _PART.pack(bytes.fromhex(part.pack), part.number, part.start, part.stop, KEPT * part.kept) for part in parts
    )


def parse_parts(payload: Buffer) -> list[Part]:
    """Raises BadInput."""
    count, rest = divmod(len(payload), PART_BYTES)
    if rest or count > bounds.PEER_REQUEST_RANGES:
        raise BadInput(f"a request for parts of blocks has {len(payload)} bytes")
    parts = []
    for pack, number, start, stop, flags in _PART.iter_unpack(bytes(payload)):
        if not start < stop <= bounds.BLOCK_BYTES or number >= _NUMBER_MAX or flags > KEPT:
            raise BadInput(f"a request for bytes {start} to {stop} of block {number}: there are none")
        parts.append(Part(pack.hex(), number, start, stop, flags == KEPT))
    return parts


def batch_of(answers: Sequence[Answer]) -> pa.RecordBatch:
    """As a batch of the answer."""
    return pa.record_batch(
        [
            pa.array([one.state for one in answers], pa.uint8()),
            pa.array([digest_of(one.data)[:CHECK_BYTES] for one in answers], pa.binary(CHECK_BYTES)),
            pa.array([one.data for one in answers], pa.large_binary()),
            pa.array([one.holder for one in answers], pa.utf8()),
        ],
        schema=SCHEMA,
    )


def answers_of(batch: pa.RecordBatch, parts: Sequence[Part]) -> list[Answer | None]:
    """What a batch says of `parts`, in order; None of a part whose bytes do not match their check, or cannot be what was asked for.

    Raises BadInput when it is no answer to them.
    """
    if batch.schema != SCHEMA or batch.num_rows > len(parts):
        raise BadInput("a peer's answer does not fit the request")
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        raise BadInput(f"a peer's answer is damaged: {error}") from None
    states, checks, holders = (batch.column(name).to_pylist() for name in ("state", "check", "holder"))
    column, found = batch.column("data"), list[Answer | None]()
    for at, part in enumerate(parts[: batch.num_rows]):
        data = memoryview(column[at].as_buffer()).cast("B")  # Arrow's are of signed bytes
        whole = states[at] in (DATA, NOT_HERE, NO_PACK, UNAVAILABLE) and len(data) <= part.stop - part.start
        if not whole or digest_of(data)[:CHECK_BYTES] != checks[at]:
            found.append(None)
        else:
            found.append(Answer(states[at], data, holders[at]))
    return found
