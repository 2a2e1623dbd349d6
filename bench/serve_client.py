"""The client of bench.serve: connections that stay open, each asking again as soon as it is answered. A process of its own.

python -m bench.serve_client PORT CONNECTIONS SECONDS ROWS ROW_BYTES    one JSON line: requests, seconds, latencies in ms
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any


async def ask(port: int, body: bytes, until: float, latencies: list[float]) -> None:
    """Raw rows in, raw outputs out, until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kind = b"application/octet-stream"
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: %s\r\naccept: %s\r\ncontent-length: %d\r\n\r\n"
    request = head % (kind, kind, len(body)) + body
    while time.perf_counter() < until:
        start = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode("latin-1"))
        length = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        latencies.append(time.perf_counter() - start)
    writer.close()


async def run(port: int, connections: int, seconds: float, body: bytes) -> dict[str, Any]:
    """All connections at a time."""
    latencies: list[float] = []
    start = time.perf_counter()
    await asyncio.gather(*(ask(port, body, start + seconds, latencies) for _ in range(connections)))
    took = time.perf_counter() - start
    ordered = sorted(latencies)
    p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
    return {"requests": len(ordered), "seconds": took, "p50_ms": p50, "p99_ms": p99}


if __name__ == "__main__":
    port, connections, seconds, rows, row_bytes = sys.argv[1:]
    made = asyncio.run(run(int(port), int(connections), float(seconds), os.urandom(int(rows) * int(row_bytes))))
    print(json.dumps(made))
