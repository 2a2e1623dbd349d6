"""Arguments of a request: plain JSON values of which nothing is believed before its type and its size were looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonstore import limits
from leptonstore.digest import parse_hex
from leptonstore.errors import BadInput

TEXT_CHARS_MAX = 4_096
_REQUIRED: Any = object()


class Arguments:
    """Typed access. Every method raises BadInput, in one line that names the argument. What an operation does not know is ignored."""

    def __init__(self, op: str, values: Mapping[str, Any]) -> None:
        self._op, self._values = op, values

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is _REQUIRED:
                raise BadInput(f"{self._op!r} needs {name!r}")
            return default
        return value

    def _wrong(self, name: str, what: str) -> BadInput:
        return BadInput(f"{name!r} of {self._op!r} must be {what}")

    def text(self, name: str, default: Any = _REQUIRED, most: int = TEXT_CHARS_MAX) -> Any:
        """A string of at most `most` characters; `default` (which may be None) when it is absent or null."""
        value = self._get(name, default)
        if value is default and default is not _REQUIRED:
            return default
        if not isinstance(value, str) or len(value) > most or "\0" in value:
            raise self._wrong(name, f"text of at most {most} characters")
        return value

    def number(self, name: str, least: int, most: int, default: Any = _REQUIRED) -> Any:
        """An integer from `least` to `most`."""
        value = self._get(name, default)
        if value is default and default is not _REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def names(self, name: str) -> list[str] | None:
        """A list of strings, None when it is absent."""
        value = self._get(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(name, "a list of names")
        return value

    def listed(self, name: str, most: int) -> list[Any]:
        """A list of at most `most` values of any type; empty when it is absent."""
        value = self._get(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, f"a list of at most {most}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; empty when it is absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def commit(self, name: str) -> str:
        """The digest of a commit, 64 hex digits."""
        value = self.text(name, most=2 * len(bytes(32)))
        return hex_digest(value, f"{name!r} of {self._op!r}")


def hex_digest(value: Any, what: str) -> str:
    """`value`, when it is a digest as people see it. Raises BadInput."""
    try:
        if not isinstance(value, str) or value != value.lower():
            raise ValueError
        parse_hex(value)
    except ValueError:
        raise BadInput(f"{what} must be 64 hex digits") from None
    return value


def name_of_ref(value: Any, what: str) -> str:
    """The name of a dataset or a branch is checked where it is used; here only that it is text of a sane length. Raises BadInput."""
    if not isinstance(value, str) or not 0 < len(value) <= 4 * limits.NAME_CHARS_MAX:
        raise BadInput(f"{what} must be the name of a ref")
    return value
