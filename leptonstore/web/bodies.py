"""Bodies of requests, read within bounds: bytes of each, bytes of all, and time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from leptonstore.web.limits import RETRY_AFTER_S
from leptonstore.web.refusal import Refused


class Bodies:
    """Counts what is held in memory for requests. For one event loop."""

    def __init__(self, bytes_max: int, seconds: float) -> None:
        """bytes_max: of all bodies that are held at a time. seconds: for reading one of them."""
        self._bytes_max, self._seconds = bytes_max, seconds
        self.held_bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request, bytes_max: int) -> AsyncIterator[bytes]:
        """The whole body, of at most `bytes_max`. It is counted until the block ends. Raises Refused."""
        require_length(request.headers.get("content-length"), bytes_max)
        parts: list[bytes] = []
        held = 0
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for part in request.stream():
                        if held + len(part) > bytes_max:
                            raise too_large(bytes_max)
                        if self.held_bytes + len(part) > self._bytes_max:
                            raise Refused("busy", "too many requests are being read; try again later", RETRY_AFTER_S)
                        held += len(part)
                        self.held_bytes += len(part)
                        parts.append(part)
            except TimeoutError:
                raise Refused("timeout", f"the body did not arrive within {self._seconds:g} s") from None
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.held_bytes -= held


def require_length(text: str | None, bytes_max: int) -> None:
    """Refuses by its header what would be refused by its bytes. h11 has made sure that it is a number of at most 20 digits."""
    if text is not None and int(text) > bytes_max:
        raise too_large(bytes_max)


def too_large(bytes_max: int) -> Refused:
    """Of a body."""
    return Refused(
        "too_large", f"the body is larger than {bytes_max:,} bytes, the most that a request of this type may have"
    )
