"""Sizes and times as people write and read them.

    size_of("1.5G")       1610612736    B, K, M, G, T, P; KiB and KB mean the same: powers of 1,024, in any case
    seconds_of("12h")     43200.0       s, m, h, d, w
    lifetime_of("90d")    7776000       what seconds_of takes, with its unit; "never" is None
    human_bytes(1536)     "1.5 KiB"

No I/O; any thread.
"""

from __future__ import annotations

import re

from leptonstore.errors import BadInput
from leptonstore.limits import GIB, KIB, LIFETIME_S_MAX, MIB, QUANTITY_MAX

_SIZES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB, "P": MIB * GIB}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)\s*"
_SIZE = re.compile(_NUMBER + r"(?:([KMGTP])(?:i?B)?|B)?", re.IGNORECASE)
_TIME = re.compile(_NUMBER + r"([smhdw]?)")


def size_of(text: str) -> int:
    """Bytes, rounded down: of "500M", "100GiB", "1.5 T" or "4096". Raises BadInput."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"{text!r} is not a size: use 500MiB, 100GiB or 1.5TiB")
    return int(_product(text, found[1], _SIZES[(found[2] or "").upper()]))


def seconds_of(text: str) -> float:
    """Seconds: of "30s", "1.5h" or "90". Raises BadInput."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"{text!r} is not a time: use a number with a unit of s, m, h, d or w, such as 30s")
    return _product(text, found[1], _TIMES[found[2]])


def lifetime_of(text: str) -> int | None:
    """Whole seconds, at least one: of "45m", "12h" or "52w"; None of "never". A bare number is refused: nobody knows its unit.

    Raises BadInput.
    """
    if text == "never":
        return None
    if not text[-1:].isalpha():
        raise BadInput(f"{text!r} is not a lifetime: use a number and a unit, such as 45m, 12h, 30d or 52w, or `never`")
    seconds = seconds_of(text)
    if not 1 <= seconds <= LIFETIME_S_MAX:
        raise BadInput(f"{text!r}: a lifetime is from one second to 300 years, or `never`")
    return int(seconds)


def human_bytes(count: float) -> str:
    """1,536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _product(text: str, number: str, unit: int) -> float:
    value = float(number) * unit
    if value >= QUANTITY_MAX:
        raise BadInput(f"{text!r} is too much")
    return value
