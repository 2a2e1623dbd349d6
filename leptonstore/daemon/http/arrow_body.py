"""The Arrow IPC stream that is the body of a put, message by message, within bounds.

    message   0xFFFFFFFF | length of the description, i32 | description (flatbuffer) | buffers, as many bytes as the description says

Arrow's own reader believes a message's compressed buffers how large they will become, and allocates that. So each description is looked at
here first: a schema or a record batch without compression and dictionaries, of at most so many bytes. The layout of its flatbuffer is that
of Arrow's Message.fbs; what does not fit is refused, and what does is verified again by Arrow.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator

import pyarrow as pa
from starlette.types import Receive

from leptonstore.daemon.http.bounds import PUT_MESSAGE_HEAD_BYTES_MAX, PUT_READ_S
from leptonstore.errors import BadInput, LeptonError

_SCHEMA, _RECORD_BATCH = 1, 3  # MessageHeader
_COMPRESSION = 3  # field of RecordBatch
_GRACE_BYTES_PER_S = 64 << 10  # a message may take PUT_READ_S, and a second for so many of its bytes


class ArrowBody:
    """A request's body for a thread that reads it. `close` it on the event loop: whoever reads is told that it has ended."""

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive, self._loop = receive, loop
        self._held = bytearray()
        self._ended = False
        self._closed = threading.Event()
        self.bytes_in = 0

    def exactly(self, size: int) -> bytes | None:
        """The next bytes; None at the end of the body. Raises BadInput when it ends in the middle, or they do not come."""
        deadline = self._loop.time() + PUT_READ_S + size / _GRACE_BYTES_PER_S
        while len(self._held) < size and not self._ended:
            self._more(deadline - self._loop.time())
        if not self._held and size and self._ended:
            return None
        if len(self._held) < size:
            raise BadInput("the Arrow stream is cut short")
        taken = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return taken

    def _more(self, seconds: float) -> None:
        if self._closed.is_set():
            raise BadInput("the request has ended")
        future = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        try:
            part, self._ended = future.result(max(0.0, seconds))
        except TimeoutError:
            future.cancel()
            raise BadInput(
                f"the body did not arrive: a message may take {PUT_READ_S:g} s, and longer for its size"
            ) from None
        self._held += part
        self.bytes_in += len(part)

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client has gone")
        return message.get("body", b""), not message.get("more_body", False)

    def close(self) -> None:
        """Nothing more is read."""
        self._closed.set()


class Gone(LeptonError):
    """Nobody is there to be answered."""


def put_messages(body: ArrowBody, bytes_max: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the stream, and its batches as they come. bytes_max: of one batch. Both raise BadInput."""
    found = _message(body, bytes_max)
    if found is None or found[0] != _SCHEMA:
        raise BadInput("the body is no Arrow stream")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(found[1]))
    except (pa.ArrowException, OSError):
        raise BadInput("the schema of the Arrow stream cannot be read") from None
    return schema, _batches(body, schema, bytes_max)


def _batches(body: ArrowBody, schema: pa.Schema, bytes_max: int) -> Iterator[pa.RecordBatch]:
    while (found := _message(body, bytes_max)) is not None:
        kind, data = found
        if kind != _RECORD_BATCH:
            raise BadInput("the Arrow stream has more than record batches")
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
            batch.validate(full=True)
        except (pa.ArrowException, OSError):
            raise BadInput("a record batch of the Arrow stream cannot be read") from None
        yield batch


def _message(body: ArrowBody, bytes_max: int) -> tuple[int, bytes] | None:
    """(kind, all of its bytes) of the next message; None at the end."""
    head = body.exactly(8)
    if head is None:
        return None
    mark, length = struct.unpack("<Ii", head)
    if mark != 0xFFFFFFFF or not 0 <= length <= PUT_MESSAGE_HEAD_BYTES_MAX:
        raise BadInput("the body is no Arrow stream")
    if length == 0:
        return None
    description = body.exactly(length) or b""
    kind, size = _described(description)
    if not 0 <= size <= bytes_max:
        raise BadInput(f"a batch has {size:,} bytes; at most {bytes_max:,}")
    return kind, head + description + ((body.exactly(size) or b"") if size else b"")


def _described(data: bytes) -> tuple[int, int]:
    """(kind, bytes of the buffers) of a flatbuffer Message. Raises BadInput."""
    try:
        message = _Table(data, struct.unpack_from("<I", data)[0])
        kind = message.number(1, "<B")
        header = message.table(2)
        if kind == _RECORD_BATCH and (header is None or header.at(_COMPRESSION) is not None):
            raise BadInput("a put takes record batches without compression")
        return kind, message.number(3, "<q")
    except struct.error:
        raise BadInput("the body is no Arrow stream") from None


class _Table:
    """A table of a flatbuffer: field numbers -> places. Raises struct.error beyond the end."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start = data, start
        (back,) = struct.unpack_from("<i", data, start)
        self._vtable = start - back
        if self._vtable < 0:
            raise struct.error("before the beginning")
        (self._size,) = struct.unpack_from("<H", data, self._vtable)

    def at(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return None
        (offset,) = struct.unpack_from("<H", self._data, self._vtable + entry)
        return self._start + int(offset) if offset else None

    def number(self, field: int, form: str) -> int:
        at = self.at(field)
        return 0 if at is None else int(struct.unpack_from(form, self._data, at)[0])

    def table(self, field: int) -> _Table | None:
        at = self.at(field)
        return None if at is None else _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])
