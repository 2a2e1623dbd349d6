"""Which stretch of a recording is wanted: given once, or with each value, which is then a dict of several columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from loaders.source import BadInput, SourceError


class Span(NamedTuple):
    """Seconds from the beginning of the recording; `end` None: to its end."""

    start: float
    end: float | None

    @classmethod
    def of(cls, value: Any, start: float | str, duration: float | str | None) -> Span:
        """Numbers, or names of fields of `value`. Raises SourceError for what is no time."""
        begin = number_of(value, start)
        if duration is None:
            return cls(begin, None)
        return cls(begin, begin + number_of(value, duration))


def check_times(*times: float | str | None) -> None:
    """Raise BadInput for a time that is given and is none."""
    for time in times:
        if isinstance(time, int | float) and not (math.isfinite(time) and time >= 0):
            raise BadInput(f"a time is a number of seconds from 0 on, or the name of a field, not {time!r}")


def bytes_of(value: Any, field: str) -> Any:
    """The encoded bytes of a value: itself, or a field of it."""
    return field_of(value, field) if isinstance(value, Mapping) else value


def field_of(value: Any, field: str) -> Any:
    """A field of a value. Raises SourceError where there is none."""
    if not isinstance(value, Mapping):
        raise SourceError(
            f"{field!r} is a field of the value, and the value is {type(value).__name__}: "
            "load a struct, or several columns as one (loaders.bundle.Bundle)"
        )
    if field not in value:
        raise SourceError(f"the value has no field {field!r}; it has {', '.join(map(str, value))}")
    return value[field]


def number_of(value: Any, time: float | str) -> float:
    """A time in seconds: the number, or that of a field."""
    found = field_of(value, time) if isinstance(time, str) else time
    try:
        seconds = float(found)
    except (TypeError, ValueError):
        raise SourceError(f"{time!r} is {found!r} and no number of seconds") from None
    if not (math.isfinite(seconds) and seconds >= 0):
        raise SourceError(f"{time!r} is {seconds}, and times are seconds from 0 on")
    return seconds
