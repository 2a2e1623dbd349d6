"""A state_dict as JSON with its tensors taken out: how the states of other people's objects are stored without pickling them.

    None, booleans, integers, text, finite floats     as they are
    nan, inf, -inf                                     {"float": "nan"}
    list, tuple                                        [...]                {"tuple": [...]}
    dict (any plain keys, in their order)              {"dict": [[key, value], ...]}
    tensor, numpy array                                {"tensor": path}     {"array": path}

Anything else is refused by its path: functions, classes, objects. `decode` trusts nothing: it makes these kinds of values only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from leptonstore.errors import BadInput, FormatDamaged

DEPTH_MAX = 32  # of nested objects: an optimizer's state has four, a Lightning loop's ten
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_PLAIN = (bool, int, str, type(None))


def encode(value: Any, path: str, tensors: dict[str, Tensor | np.ndarray[Any, Any]]) -> Any:
    """JSON of `value`; its tensors and arrays are put into `tensors`, under paths that begin with `path`. Raises BadInput."""
    return _encode(value, path, tensors, 0)


def decode(told: Any, tensor: Callable[[str], Tensor], what: str) -> Any:
    """The inverse. tensor: gives the tensor of a path. Raises FormatDamaged, which calls it `what`."""
    return _decode(told, tensor, what, 0)


def _encode(value: Any, path: str, tensors: dict[str, Any], depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise BadInput(f"{path} is nested too deeply to be stored")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor | np.ndarray):
        while path in tensors:  # of keys that are told alike: 1 and "1"
            path += "'"
        tensors[path] = value.detach() if isinstance(value, Tensor) else value
        return {"tensor" if isinstance(value, Tensor) else "array": path}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [_key(key, path), _encode(one, f"{path}/{_part(key)}", tensors, depth + 1)]
                for key, one in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        items = [_encode(one, f"{path}/{at}", tensors, depth + 1) for at, one in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise BadInput(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}: a checkpoint holds tensors and plain values, nothing that would "
        "have to be unpickled; leave it out of the state, and make it anew"
    )


def _decode(told: Any, tensor: Callable[[str], Tensor], what: str, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise FormatDamaged(f"{what} is nested too deeply")
    if isinstance(told, (*_PLAIN, float)):
        return told
    if isinstance(told, list):
        return [_decode(one, tensor, what, depth + 1) for one in told]
    if isinstance(told, dict) and len(told) == 1:
        ((kind, inside),) = told.items()
        if kind == "float" and inside in _FLOATS:
            return _FLOATS[inside]
        if kind == "tuple" and isinstance(inside, list):
            return tuple(_decode(one, tensor, what, depth + 1) for one in inside)
        if kind in ("tensor", "array") and isinstance(inside, str):
            found = tensor(inside)
            return found if kind == "tensor" else found.numpy()
        if kind == "dict" and isinstance(inside, list) and all(_is_pair(pair) for pair in inside):
            return {key: _decode(one, tensor, what, depth + 1) for key, one in inside}
    raise FormatDamaged(f"{what} is damaged: {told!r:.100}")


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], _PLAIN)


def _key(key: Any, path: str) -> Any:
    if not isinstance(key, _PLAIN):
        raise BadInput(f"{path} has the key {key!r:.60}, which is no text or number")
    return key


def _part(key: Any) -> str:
    """A key as a part of a path, which has no slash in it and is none of "", "." and ".."."""
    text = str(key).replace("/", "|")
    return text if text not in ("", ".", "..") else f"({text})"
