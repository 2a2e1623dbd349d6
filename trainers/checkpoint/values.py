"""What of a state is no tensor: numbers, text, lists and dicts, as JSON; with two things that JSON lacks, so that nothing is pickled.

()      {"()": [...]}             a tuple
inf     {"float": "inf"}          also "-inf" and "nan"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leptonstore.errors import BadInput, FormatDamaged

DEPTH_MAX = 32
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encode_value(value: Any, path: str, depth: int = 0) -> Any:
    """As JSON has it. Raises BadInput, naming the path, for what is neither a tensor nor any of these."""
    if depth > DEPTH_MAX:
        raise BadInput(f"{path!r} of the state is nested deeper than {DEPTH_MAX}")
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [encode_value(one, path, depth + 1) for one in value]
        return items if isinstance(value, list) else {"()": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) and key not in ("()", "float") for key in value):
        return {key: encode_value(one, path, depth + 1) for key, one in value.items()}
    raise BadInput(
        f"{path!r} of the state is a {type(value).__module__}.{type(value).__qualname__}: a checkpoint holds tensors, arrays, numbers, "
        "text, lists and dicts of them by name, nothing that would have to be unpickled"
    )


def decode_value(found: Any, what: str, depth: int = 0) -> Any:
    """The inverse. Raises FormatDamaged."""
    if depth > DEPTH_MAX:
        raise FormatDamaged(f"{what} is nested deeper than {DEPTH_MAX}")
    if isinstance(found, list):
        return [decode_value(one, what, depth + 1) for one in found]
    if not isinstance(found, dict):
        return found
    if set(found) == {"()"} and isinstance(found["()"], list):
        return tuple(decode_value(one, what, depth + 1) for one in found["()"])
    if set(found) == {"float"} and found["float"] in _FLOATS:
        return _FLOATS[found["float"]]
    return {key: decode_value(one, what, depth + 1) for key, one in found.items()}
