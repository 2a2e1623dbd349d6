"""check.text_charset: texts that were decoded wrongly, hold what cannot be printed, or are written in other scripts than they should be.

A finding for each of these that a text has; `score` is a share of its characters (of its letters, for scripts):

    unprintable   U+FFFD (what stands for bytes that could not be decoded), controls but tab and line ends, non-characters, private use and
                  unassigned code points: more than `unprintable`
    mojibake      UTF-8 that was read as Windows-1252 or Latin-1: "cafÃ©", "donâ€™t". Sequences that such a mistake makes of é or ’
                  are counted, where they are three characters or more: a lone "Ã»" can be Portuguese in capitals before a quotation mark.
    scripts       letters of other scripts than `scripts` (texts/scripts.py: latin, greek, cyrillic, han, ...): more than `other`

Nulls are left to check.nulls.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.findings import findings_table, joined
from leptonstore.process.operations.parameters import texts as names_of
from leptonstore.process.texts.characters import versions
from leptonstore.process.texts.column import Characters, characters, counted, number_in, text_column
from leptonstore.process.texts.scripts import NO_SCRIPT, script_number, scripts

_MOJIBAKE_CHARACTERS_MIN = 3


@dataclass(frozen=True)
class TextCharset(RowCheck):
    """Texts that were decoded wrongly, hold what cannot be printed, or are written in other scripts than they should be.

    column:      of texts; None: the only one.
    unprintable: the largest share of characters that may be so.
    mojibake:    whether it is looked for.
    scripts:     that letters may be of; none: any.
    other:       the largest share of letters of other scripts.
    """

    name: ClassVar[str] = "check.text_charset"

    column: str | None = None
    unprintable: float = 0.0
    mojibake: bool = True
    scripts: Sequence[str] = ()
    other: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        number_in(self.name, "unprintable", self.unprintable, 0, 1)
        number_in(self.name, "other", self.other, 0, 1)
        object.__setattr__(self, "scripts", tuple(one.lower() for one in names_of(self.name, "scripts", self.scripts)))
        for name in self.scripts:
            script_number(self.name, name)

    def libraries(self) -> dict[str, str]:
        """Unicode's version says what is assigned."""
        return versions()

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts."""
        return (text_column(schema, self.column, self.name),)

    def find(self, batch: pa.RecordBatch) -> Found:
        """Up to three findings for each text."""
        array, column = batch.column(0), batch.schema.names[0]
        text = characters(array)
        found = [self._unprintable(text, column), self._scripts(text, column)]
        if self.mojibake and text.codes.dtype != np.uint8:
            found.append(self._mojibake(array, column))
        return Found(joined(found))

    def _unprintable(self, text: Characters, column: str) -> pa.Table:
        count = text.count(unprintable()[text.codes])
        share = count / np.maximum(text.lengths, 1)
        rows = np.flatnonzero(share > self.unprintable)
        details = [f"{counted(number, 'character')} that cannot be printed" for number in count[rows].tolist()]
        return findings_table(self.tag, column, rows, details, share[rows])

    def _scripts(self, text: Characters, column: str) -> pa.Table | None:
        if not self.scripts:
            return None
        names, table = scripts()
        script = table[text.codes]
        allowed = np.zeros(len(names) + 1, np.bool_)
        allowed[[NO_SCRIPT, *(names[name] for name in self.scripts)]] = True
        letters, others = text.count(script != NO_SCRIPT), text.count(~allowed[script])
        share = others / np.maximum(letters, 1)
        rows = np.flatnonzero(share > self.other)
        wanted = " or ".join(self.scripts)
        details = [f"{one:.0%} of its letters are not {wanted}" for one in share[rows].tolist()]
        return findings_table(self.tag, column, rows, details, share[rows])

    def _mojibake(self, array: pa.Array, column: str) -> pa.Table:
        rows, details, scores = [], [], []
        for row, text in enumerate(array.to_pylist()):
            wrong = mojibake_characters(text) if text and not text.isascii() else 0
            if text and wrong >= _MOJIBAKE_CHARACTERS_MIN:
                rows.append(row)
                details.append(f"UTF-8 that was read as another encoding: {wrong:,} characters such as Ã© or â€™")
                scores.append(wrong / len(text))
        return findings_table(self.tag, column, rows, details, scores)


@cache
def unprintable() -> NDArray[np.bool_]:
    """Of each code point."""
    table = np.zeros(0x110000, np.bool_)
    for point in range(len(table)):
        table[point] = unicodedata.category(chr(point)) in ("Cc", "Cn", "Co", "Cs")
    table[[9, 10, 13]] = False
    table[0xFFFD] = True
    table.flags.writeable = False
    return table


def _as_read(first: int, last: int) -> str:
    """The characters that bytes first to last are read as, by Windows-1252 where it has them and by Latin-1, for a class of a pattern."""
    found = {chr(byte) for byte in range(first, last + 1)}
    found |= {bytes([byte]).decode("cp1252", "ignore") for byte in range(first, last + 1)} - {""}
    return "".join(re.escape(one) for one in sorted(found))


# What is made of U+0080 to U+00FF, U+2000 to U+207F (punctuation), U+20A0 to U+20BF (currencies), U+FFFD, and of four bytes (pictographs).
_REST = _as_read(0x80, 0xBF)
_MOJIBAKE = re.compile(
    f"[ÂÃ][{_REST}]|â[{_as_read(0x80, 0x82)}][{_REST}]|ï¿½|ð[{_as_read(0x90, 0xBF)}][{_REST}][{_REST}]"
)


def mojibake_characters(text: str) -> int:
    """How many of its characters stand in sequences of mojibake."""
    return sum(len(one) for one in _MOJIBAKE.findall(text))
