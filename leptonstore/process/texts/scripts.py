"""The script of each letter, by code point, as far as Unicode's names of characters tell it.

Python has no table of scripts. The name of a letter begins with its script (LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00), which is
right for letters; digits, punctuation, marks and symbols belong to no script here.
"""

from __future__ import annotations

import unicodedata
from difflib import get_close_matches
from functools import cache

import numpy as np
from numpy.typing import NDArray

from leptonstore.errors import BadInput, listed

NO_SCRIPT = 0

_FIRST_WORDS = {
    "cjk": "han",
    "fullwidth": "latin",
    "ideographic": "han",
    "mathematical": "latin",
    "halfwidth": "katakana",
}
_SHARED = frozenset({"modifier", "feminine", "masculine", "micro"})  # letters of no script: ʰ ª º µ
_POINTS = 0x110000


@cache
def scripts() -> tuple[dict[str, int], NDArray[np.uint16]]:
    """Number of each script, by lower-case name, and that of each code point (NO_SCRIPT: none). 0.2 s, once a process."""
    numbers: dict[str, int] = {}
    table = np.zeros(_POINTS, np.uint16)
    for point in range(_POINTS):
        character = chr(point)
        if unicodedata.category(character)[0] == "L":
            word = unicodedata.name(character, "").partition(" ")[0].partition("-")[0].lower()
            if word and word not in _SHARED:
                table[point] = numbers.setdefault(_FIRST_WORDS.get(word, word), len(numbers) + 1)
    table.flags.writeable = False
    return numbers, table


def script_number(who: str, name: str) -> int:
    """Raises BadInput for a name that is none, with the nearest that is."""
    known, _ = scripts()
    found = known.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {listed(known)}"
        raise BadInput(f"{who}: there is no script {name!r}; {hint}")
    return found
