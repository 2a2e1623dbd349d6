"""Bodies of answers, sent in steps: each is made in a thread while the one before is taken by the client.

A client that stops reading stops its answer (uvicorn's flow control; web/protocol.py cuts it off in the end), and one that goes away ends
it: the iterator is closed, and nothing more is read from the store.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import pyarrow as pa
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from leptonstore.daemon.http.bounds import SEND_BYTES
from leptonstore.daemon.http.failures import Failed
from leptonstore.daemon.http.ranges import choose
from leptonstore.daemon.http.work import Work
from leptonstore.digest import Buffer

ARROW_STREAM = "application/vnd.apache.arrow.stream"
_END_OF_ARROW = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True)
class Source:
    """Bytes that may be asked for in parts.

    tag: their entity tag, without quotes. read: [start, stop) -> pieces, in order; it may block, unless all of it is `ready`.
    """

    size: int
    tag: str
    media: str
    read: Callable[[int, int], Iterator[Buffer]]
    headers: Mapping[str, str] = field(default_factory=dict)
    ready: bool = False

    @classmethod
    def of(cls, data: Buffer, tag: str, media: str, headers: Mapping[str, str]) -> Source:
        """Bytes that are in memory."""
        return cls(len(data), tag, media, lambda start, stop: iter((memoryview(data)[start:stop],)), headers, True)

    def made_ready(self, bytes_max: int) -> Source:
        """The same; when it has at most so many bytes, they are read now, in this thread, which saves the way to another for each."""
        if self.ready or self.size > bytes_max:
            return self
        return Source.of(b"".join(self.read(0, self.size)), self.tag, self.media, self.headers)


class Ranged:
    """The answer to a GET or HEAD of a Source: all of it, parts of it, or that the client has it."""

    def __init__(self, source: Source, work: Work) -> None:
        self._source, self._work = source, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        source, is_get = self._source, scope["method"] == "GET"
        chosen = choose(_joined(scope), source.tag, source.size, ranges=is_get)
        headers = {**source.headers, "etag": f'"{source.tag}"', "accept-ranges": "bytes"}
        if chosen.status == 412:
            raise Failed("Conflict", "this is not the version that If-Match names", 412)
        if chosen.status == 416:
            size = {"content-range": f"bytes */{source.size}"}
            raise Failed(
                "BadInput", f"there are {source.size} bytes, and none of those that Range names", 416, headers=size
            )
        if chosen.status == 304:
            await _send_head(send, 304, headers)
            await _end(send)
            return
        parts = _Parts(source, chosen.parts) if len(chosen.parts) > 1 else None
        start, stop = chosen.parts[0]
        if parts is not None:
            headers |= {"content-type": parts.media, "content-length": str(parts.size)}
        else:
            headers |= {"content-type": source.media, "content-length": str(stop - start)}
            if chosen.status == 206:
                headers["content-range"] = f"bytes {start}-{stop - 1}/{source.size}"
        if not is_get:
            await _send_head(send, chosen.status, headers)
            await _end(send)
            return
        pieces = parts.pieces() if parts is not None else source.read(start, stop) if stop > start else iter(())
        if source.ready:
            await _send_head(send, chosen.status, headers)
            for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await _end(send)
            return
        await send_pieces(receive, send, self._work, pieces, chosen.status, headers)


class _Parts:
    """multipart/byteranges."""

    def __init__(self, source: Source, parts: tuple[tuple[int, int], ...]) -> None:
        self._source, boundary = source, secrets.token_hex(16)
        self.media = f"multipart/byteranges; boundary={boundary}"
        self._heads = [
            f"\r\n--{boundary}\r\ncontent-type: {source.media}\r\n"
            f"content-range: bytes {start}-{stop - 1}/{source.size}\r\n\r\n".encode("latin-1")
            for start, stop in parts
        ]
        self._parts, self._tail = parts, f"\r\n--{boundary}--\r\n".encode()
        self.size = sum(map(len, self._heads)) + sum(stop - start for start, stop in parts) + len(self._tail)

    def pieces(self) -> Iterator[Buffer]:
        for head, (start, stop) in zip(self._heads, self._parts, strict=True):
            yield head
            yield from self._source.read(start, stop)
        yield self._tail


class ArrowStream:
    """Record batches as an Arrow IPC stream."""

    def __init__(
        self,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        work: Work,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._schema, self._batches, self._work = schema, batches, work
        self._headers = {"content-type": ARROW_STREAM, **(headers or {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await _send_head(send, 200, self._headers)
            await _end(send)
            return
        await send_pieces(receive, send, self._work, arrow_pieces(self._schema, self._batches), 200, self._headers)


def arrow_pieces(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[Buffer]:
    """The messages of an IPC stream. The first is made with the first batch, so that an error there comes before anything was sent."""
    first = next(batches, None)
    yield memoryview(schema.serialize())
    if first is not None:
        yield memoryview(first.serialize())
    for batch in batches:
        yield memoryview(batch.serialize())
    yield _END_OF_ARROW


async def send_pieces(
    receive: Receive, send: Send, work: Work, pieces: Iterator[Buffer], status: int, headers: Mapping[str, str]
) -> None:
    """Send them as a body. The head goes with the first piece: what is raised before that is an answer of its own. Raises
    ClientDisconnect when the client has gone."""
    gone = asyncio.ensure_future(_until_gone(receive))
    started = False
    try:
        async with aclosing(work.steps(pieces)) as steps:
            async for piece in steps:
                if not started:
                    await _send_head(send, status, headers)
                    started = True
                for start in range(0, len(piece), SEND_BYTES):
                    if gone.done():
                        raise ClientDisconnect
                    part = memoryview(piece)[start : start + SEND_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                del piece
        if not started:
            await _send_head(send, status, headers)
        await _end(send)
    finally:
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # what comes after a whole request is nothing that we asked for


async def _send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _joined(scope: Scope) -> dict[str, str]:
    """Headers by name; those that came several times as one list."""
    joined: dict[str, str] = {}
    for name, value in Headers(scope=scope).items():
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined
