"""Chains of transforms of a column, from a configuration to what the loader runs.

A stored description (of a model bundle, say) may name transforms of `loaders.transforms` only: nothing else is imported on its word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import loaders.transforms
from leptonstore.errors import BadInput, FormatDamaged
from loaders.transforms import FunctionTransform, Transform, as_transform
from trainers.config import TransformConfig
from trainers.transforms import build_transforms

TRUSTED = "loaders.transforms"
STEPS_MAX = 64  # of a stored chain: far above any


def chain_of(steps: Sequence[TransformConfig], column: str) -> list[Transform]:
    """The transforms of a column (trainers.transforms). Raises BadInput, naming column and reference, when they cannot be made."""
    return [as_transform(step) for step in build_transforms({column: steps})[column]]


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
        known = isinstance(kind, type) and issubclass(kind, Transform) and kind not in (Transform, FunctionTransform)
        if module != TRUSTED or kind is None or not known:
            raise FormatDamaged(f"{whose} names the transform {module}:{name}, which is none of {TRUSTED}")
        params = step.get("params", {})
        if not isinstance(params, Mapping):
            raise FormatDamaged(f"the parameters of {name} of {whose} are damaged")
        try:
            made.append(kind(**params))
        except (TypeError, ValueError, BadInput) as error:
            raise FormatDamaged(f"the transform {name} of {whose} is damaged: {error}") from None
    return made


def _reference(step: Transform) -> str:
    kind = type(step)
    if getattr(loaders.transforms, kind.__name__, None) is kind and kind.__name__ in loaders.transforms.__all__:
        return f"{TRUSTED}:{kind.__name__}"
    return step.name


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
