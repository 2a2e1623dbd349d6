"""text.mask_pii: e-mail addresses, payment cards, IP addresses and telephone numbers of a text become [EMAIL], [CARD], [IP], [PHONE].

What is recognised, and what is not taken for it, stands in texts/pii.py. This is a help, not a guarantee: names and street addresses are
not looked for, and a number that only its reader knows to be a telephone's stays.

With `key_file` each is a pseudonym: [EMAIL:3f9c0a2e51d7], the same wherever the same address occurs, in whatever way it is written, so that
who wrote to whom can still be learnt. It is a keyed BLAKE3 of it: without the key nobody can try addresses out. The key stays in its file;
the recipe holds eight bytes that are derived from it, by which other keys are told apart.

A finding for each text that was changed: `score` is how many were masked, `detail` of what kind, `action` "fix". The text as it was
stays in the parent version (`lepton erase` takes it from there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from blake3 import blake3

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process.findings import Action, findings_table
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.parameters import one_of
from leptonstore.process.operations.parameters import texts as names_of
from leptonstore.process.texts.characters import versions
from leptonstore.process.texts.column import counted, text_column
from leptonstore.process.texts.pii import CARD, EMAIL, IP, KINDS, PHONE, Found, personal, phone_library

_SAID = {
    EMAIL: ("e-mail address", "e-mail addresses"),
    CARD: ("card", "cards"),
    IP: ("IP address", "IP addresses"),
    PHONE: ("telephone number", "telephone numbers"),
}
_PSEUDONYM = "lepton.mask_pii.pseudonym.v1"
_KEY_NAME = "lepton.mask_pii.key-name.v1"


@dataclass(frozen=True)
class MaskPii(RowOperation):
    """Makes [EMAIL], [CARD], [IP] and [PHONE] of what is personal in a text.

    column:   of texts; None: the only one.
    kinds:    what is masked: "email", "card", "ip", "phone".
    regions:  in which telephone numbers are valid without a "+" (ISO 3166: "US", "DE"); the first one that fits says which number it is.
    key_file: of 32 random bytes or more (`head -c 32 /dev/urandom`): pseudonyms instead of labels. It is read when a pipeline begins.
    """

    name: ClassVar[str] = "text.mask_pii"

    column: str | None = None
    kinds: Sequence[str] = ("email", "card", "ip", "phone")
    regions: Sequence[str] = ()
    key_file: str | None = None
    key: bytes | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", names_of(self.name, "kinds", self.kinds))
        object.__setattr__(self, "regions", names_of(self.name, "regions", self.regions))
        for kind in self.kinds:
            one_of(self.name, "kinds", kind, map(str.lower, KINDS))
        if "phone" in self.kinds:
            known = phone_library().SUPPORTED_REGIONS
            for region in self.regions:
                one_of(self.name, "regions", region, sorted(known)) if region not in known else None

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the key."""
        if self.key_file is None:
            return self
        made = replace(self)
        object.__setattr__(made, "key", _key_in(self.key_file))
        return made

    def parameters(self) -> dict[str, Any]:
        """Without the key."""
        return {name: value for name, value in super().parameters().items() if name != "key"}

    def libraries(self) -> dict[str, str]:
        """Unicode's version, which says what a letter is; the library of telephone numbers, whose plans change; the name of the key."""
        found = versions() | ({"phonenumbers": version_of("phonenumbers")} if "phone" in self.kinds else {})
        key = _key_in(self.key_file) if self.key is None and self.key_file is not None else self.key
        return found | ({"key": blake3(key, derive_key_context=_KEY_NAME).hexdigest(8)} if key else {})

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts."""
        return (text_column(schema, self.column, self.name),)

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Mask, and say what was."""
        column, array = batch.schema.names[0], batch.column(0)
        kinds = tuple(kind.upper() for kind in self.kinds)
        texts = array.to_pylist()
        rows, details, scores = [], [], []
        for row, text in enumerate(texts):
            found = personal(text, kinds, self.regions) if text else []
            if found:
                texts[row] = self._masked(text, found)
                count = Counter(one.kind for one in found)
                rows.append(row)
                details.append(", ".join(counted(count[kind], *_SAID[kind]) for kind in KINDS if count[kind]))
                scores.append(float(len(found)))
        if not rows:
            return Made(columns={column: array})
        findings = findings_table("mask_pii", column, rows, details, scores, action=Action.FIX)
        return Made(columns={column: pa.array(texts, array.type)}, findings=findings)

    def _masked(self, text: str, found: list[Found]) -> str:
        parts, at = [], 0
        for one in found:
            parts += [text[at : one.begin], self._label(one)]
            at = one.end
        return "".join([*parts, text[at:]])

    def _label(self, found: Found) -> str:
        if self.key is None:
            return f"[{found.kind}]"
        said = f"{found.kind}\0{found.canonical}".encode()
        return (
            f"[{found.kind}:{blake3(said, key=blake3(self.key, derive_key_context=_PSEUDONYM).digest()).hexdigest(6)}]"
        )


def _key_in(place: str) -> bytes:
    """The key in a file. Raises BadInput."""
    try:
        with Path(place).open("rb") as file:
            key = file.read(limits.SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise BadInput(f"text.mask_pii: key_file {place} cannot be read: {error.strerror}") from error
    if not limits.KEY_FILE_BYTES_MIN <= len(key) <= limits.SECRET_BYTES_MAX:
        raise BadInput(
            f"text.mask_pii: key_file {place} has {len(key):,} bytes; it takes {limits.KEY_FILE_BYTES_MIN} random ones at least"
        )
    return key
