"""Ports of loopback for servers that are told theirs, or that come back to the one they had.

A port that `bind` chose is anybody's again as soon as it is closed, also that of a test in another process. These lie below those that
systems choose from (Linux: 32768 and more, macOS: 49152), and above those that Ray gives its workers (10002 to 19999), so that only whoever
asks for one of them by its number has it.

They are drawn from the system's randomness, which no seed governs: two processes of tests whose `random` was seeded alike, as trainings
do, would draw equal ports.
"""

from __future__ import annotations

import random
import socket

PORT_MIN, PORT_END = 20_000, 32_768
_chance = random.SystemRandom()


def free_ports(count: int, above: int = 0) -> list[int]:
    """`count` ports that nobody listens on; above: nor on those that lie so much higher."""
    found: list[int] = []
    while len(found) < count:
        port = _chance.randrange(PORT_MIN, PORT_END - above)
        if port not in found and all(_is_free(one) for one in {port, port + above}):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
