"""What each Unicode character is to a comparison of texts, as tables that are indexed by code point.

    SEPARATOR  spaces, punctuation, mathematical and currency signs, controls: ends a word, and is not compared
    WORD       letters, digits, combining marks
    ALONE      a word of its own: scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar), pictographs
    IGNORED    what nobody sees: soft hyphens, zero-width characters, variation selectors

Case is folded where that is one character for another (Unicode's simple folding: ß stays ß). The tables are those of Python's Unicode
version, which belongs to recipes (`versions`).
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

SEPARATOR, WORD, ALONE, IGNORED = range(4)

_POINTS = 0x110000
_ASCII = 128
_CASED_BELOW = 0x20000  # no letter beyond has case
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3040, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def versions() -> dict[str, str]:
    """What decides the tables, for recipes."""
    return {"unicode": unicodedata.unidata_version}


@cache
def kinds(ascii_only: bool = False) -> NDArray[np.uint8]:
    """SEPARATOR, WORD, ALONE or IGNORED of each code point. The whole table takes 0.1 s to make, once a process."""
    points = _ASCII if ascii_only else _POINTS
    of_category = {"L": WORD, "N": WORD, "M": WORD, "So": ALONE, "Cf": IGNORED}
    made = np.zeros(points, np.uint8)
    for point in range(points):
        category = unicodedata.category(chr(point))
        made[point] = of_category.get(category, of_category.get(category[0], SEPARATOR))
    if not ascii_only:
        for first, last in _WITHOUT_SPACES:
            part = made[first : last + 1]
            part[part == WORD] = ALONE
        made[0xFE00 : 0xFE0F + 1] = IGNORED
        made[0xE0100 : 0xE01EF + 1] = IGNORED
    made.flags.writeable = False
    return made


@cache
def folded(ascii_only: bool = False) -> NDArray[np.uint32]:
    """The code point of each one without case."""
    made = np.arange(_ASCII if ascii_only else _POINTS, dtype=np.uint32)
    for point in range(min(len(made), _CASED_BELOW)):
        other = chr(point).casefold()
        if len(other) == 1:
            made[point] = ord(other)
    made.flags.writeable = False
    return made
