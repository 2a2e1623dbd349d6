"""Whether the parameters that a pipeline file gives are of the types that an operation's fields have: no operation meets a list where it
wants a number.

    str text      bool true or false      int a whole number      float a finite number      X | None either
    Sequence[X] a list of X; a single X is a list of one      Mapping[str, X] a table of X      anything else: not looked at
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from leptonstore.errors import BadInput
from leptonstore.process.operation import Operation


def in_words(kind: type[Operation]) -> dict[str, str]:
    """What each parameter is, for people: "a whole number", "a list (text each)"."""
    return {name: _said(hint) for name, hint in _hints(kind).items()}


def _hints(kind: type[Operation]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # types that are there for type checkers alone
        return {}


def fitted(kind: type[Operation], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with single values as lists where lists are wanted. Raises BadInput."""
    hints = _hints(kind)
    made = {}
    for name, value in parameters.items():
        hint = hints.get(name, Any)
        fits, made[name] = _fit(value, hint)
        if not fits:
            raise BadInput(f"{kind.name}: {name} is {_said(hint)}, not {value!r}")
    return made


def _fit(value: Any, hint: Any) -> tuple[bool, Any]:
    """(whether it fits, the value)."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next((found for one in inner if (found := _fit(value, one))[0]), (False, value))
    if origin in (Sequence, tuple, list):
        return _fit_list(value, inner[0] if inner else Any)
    if origin is Mapping or origin is dict:
        return _fit_table(value, inner[1] if inner else Any)
    if hint is float:
        return _is_number(value), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint in (str, bool, type(None)):
        return isinstance(value, hint), value
    return True, value


def _fit_list(value: Any, inner: Any) -> tuple[bool, Any]:
    several = isinstance(value, (list, tuple))
    found = [_fit(one, inner) for one in (value if several else [value])]
    return all(fits for fits, _ in found), [one for _, one in found]


def _fit_table(value: Any, inner: Any) -> tuple[bool, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False, value
    found = {key: _fit(one, inner) for key, one in value.items()}
    return all(fits for fits, _ in found.values()), {key: one for key, (_, one) in found.items()}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float is near
        return False


def _said(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(one) for one in inner if one is not type(None))
    if origin in (Sequence, tuple, list):
        return f"a list ({_said(inner[0])} each)" if inner else "a list"
    if origin is Mapping or origin is dict:
        return "a table"
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
    return words.get(hint, "something else")
