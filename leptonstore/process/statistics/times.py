"""Dates, times of day, timestamps and durations: integers of a unit, and how people write them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}


def is_time(data_type: pa.DataType) -> bool:
    """Whether values are points in time, times of day or durations."""
    kinds = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time, pa.types.is_duration)
    return any(kind(data_type) for kind in kinds)


def unit_of(data_type: pa.DataType) -> str:
    """What its integers count: "s", "ms", "us", "ns" or "day"."""
    if pa.types.is_date32(data_type):
        return "day"
    return "ms" if pa.types.is_date64(data_type) else str(data_type.unit)


def time_text(value: int | float, data_type: pa.DataType) -> str:
    """ISO 8601; timestamps with a time zone in UTC; durations with their unit."""
    number, unit = round(value), unit_of(data_type)
    if pa.types.is_duration(data_type):
        return f"{number:,} {unit}"
    if pa.types.is_time(data_type):
        digits = _DIGITS[unit]
        seconds, rest = divmod(number, 10**digits)
        minutes, second = divmod(seconds, 60)
        part = f".{rest:0{digits}}" if digits else ""
        return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{part}"
    if pa.types.is_date(data_type):
        return str(_moment(number, "D" if unit == "day" else unit).astype("datetime64[D]"))
    return f"{_moment(number, unit)}{'Z' if data_type.tz else ''}"


def _moment(number: int, unit: str) -> np.datetime64:
    """Not as a `datetime`, which knows no nanoseconds and no year 10,000."""
    found: np.datetime64 = np.array([number], f"datetime64[{unit}]")[0]
    return found
