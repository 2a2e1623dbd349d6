"""One request to the control plane, as its handlers see it: who asks, what for, with arguments whose sizes and types were looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from leptonstore.daemon.http.bounds import QUERY_CHARS_MAX, QUERY_FIELDS_MAX
from leptonstore.daemon.principals import Principal
from leptonstore.errors import BadInput

_NUMBER_DIGITS_MAX = 18  # fits into 63 bits


@dataclass
class Ask:
    """path: the named parts of the path, decoded once. query: every name with its values. headers: by name in lower case."""

    principal: Principal
    method: str
    path: Mapping[str, str]
    query: Mapping[str, list[str]] = field(default_factory=dict)
    accept: str = ""
    url_path: str = ""  # encoded, without a slash at its end: links begin with it
    anonymous: bool = False  # nobody in particular asks: caches may keep the answer for everybody

    def number(self, name: str, default: int, most: int) -> int:
        """A number of the query, at most `most`. Raises BadInput."""
        return number_of(self.one(name), f"{name!r}", default, most)

    def one(self, name: str) -> str | None:
        """The value of a name in the query that may come once. Raises BadInput."""
        values = self.query.get(name, [])
        if len(values) > 1:
            raise BadInput(f"{name!r} is given {len(values)} times; give it once")
        return values[0] if values else None

    def known(self, *names: str) -> None:
        """Raises BadInput when the query has another name: a typing error would be an answer to another question."""
        for name in self.query:
            if name not in names:
                raise BadInput(f"there is no parameter {name[:40]!r} here; there {_are(names)}")


def _are(names: tuple[str, ...]) -> str:
    return f"are {', '.join(names)}" if names else "are none"


def number_of(text: str | None, what: str, default: int, most: int) -> int:
    """Raises BadInput."""
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _NUMBER_DIGITS_MAX or int(text) > most:
        raise BadInput(f"{what} must be a whole number from 0 to {most}")
    return int(text)


def query_of(query: bytes) -> dict[str, list[str]]:
    """The query of a URL: each name with its values. Raises BadInput."""
    if len(query) > QUERY_CHARS_MAX:
        raise BadInput(f"the query has {len(query)} characters; at most {QUERY_CHARS_MAX}")
    try:
        return parse_qs(query.decode("ascii"), True, errors="strict", max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:  # UnicodeDecodeError is one
        raise BadInput(f"the query cannot be read, or has more than {QUERY_FIELDS_MAX} parts") from None
