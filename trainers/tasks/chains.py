"""Chains of transforms of a column, from a configuration to what the loader runs.

A stored description (of a model bundle, say) may name transforms of `loaders.transforms` only: nothing else is imported on its word.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import loaders.transforms
from leptonstore.errors import BadInput, FormatDamaged
from loaders.transforms import Transform, as_transform
from trainers.config import TransformConfig, resolve

TRUSTED = "loaders.transforms"
STEPS_MAX = 64  # of a stored chain: far above any


def chain_of(steps: Sequence[TransformConfig], column: str) -> list[Transform]:
    """The transforms of a column. A class is made with its parameters, a function gets them at every call.

    Raises BadInput, naming column and reference, when it does not take them.
    """
    return [_made(resolve(step.reference), step.params, f"{step.reference} of column {column!r}") for step in steps]


def described(chain: Sequence[Transform]) -> list[dict[str, Any]]:
    """A chain as JSON: [{"reference", "params"}, ...]."""
    return [{"reference": _reference(step), "params": _plain(step.parameters())} for step in chain]


def trusted_chain(steps: Any, whose: str) -> list[Transform]:
    """The inverse of `described`, for what was stored. Raises FormatDamaged for transforms that are not this project's."""
    if not isinstance(steps, list) or len(steps) > STEPS_MAX:
        raise FormatDamaged(f"the transforms of {whose} are damaged")
    made = []
    for step in steps:
        module, _, name = str(step.get("reference") if isinstance(step, Mapping) else None).partition(":")
        kind = getattr(loaders.transforms, name, None) if name in loaders.transforms.__all__ else None
        if module != TRUSTED or not (isinstance(kind, type) and issubclass(kind, Transform)) or kind is Transform:
            raise FormatDamaged(f"{whose} names the transform {module}:{name}, which is none of {TRUSTED}")
        params = step.get("params", {})
        if not isinstance(params, Mapping):
            raise FormatDamaged(f"the parameters of {name} of {whose} are damaged")
        try:
            made.append(_made(kind, params, f"{name} of {whose}"))
        except BadInput as error:
            raise FormatDamaged(str(error)) from None
    return made


def is_trusted(chain: Sequence[Transform]) -> bool:
    """Whether `trusted_chain` would make it again."""
    return all(_reference(step).startswith(f"{TRUSTED}:") for step in chain)


def _reference(step: Transform) -> str:
    kind = type(step)
    if getattr(loaders.transforms, kind.__name__, None) is kind and kind.__name__ in loaders.transforms.__all__:
        return f"{TRUSTED}:{kind.__name__}"
    return step.name


def _made(kind: Any, params: Mapping[str, Any], what: str) -> Transform:
    try:
        if isinstance(kind, type):
            return as_transform(kind(**params))
        return as_transform(functools.partial(kind, **params) if params else kind)
    except TypeError as error:
        raise BadInput(f"the transform {what} cannot be made: {error}") from None


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
