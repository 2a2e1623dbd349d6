"""Transforms of a configuration, as a loader takes them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.config import TransformConfig
from trainers.reference import called, require_takes, resolve, told


def build_transforms(columns: Mapping[str, Sequence[TransformConfig]]) -> dict[str, list[Any]]:
    """{column: [transform, …]} for `loaders.DataLoader(transforms=…)`.

    A class is made with its parameters; a function is the transform itself, and is called with them beside the value.
    Raises BadInput, naming the column, for a reference or parameters that do not fit.
    """
    return {
        column: [_built(config, f"transform of {column!r}") for config in configs]
        for column, configs in columns.items()
    }


def _built(config: TransformConfig, what: str) -> Any:
    found = resolve(config.reference)
    if isinstance(found, type):
        return called(config.reference, what, **config.params)
    if not config.params:
        return found
    require_takes(found, f"{what} {told(config.reference)}", None, **config.params)
    return functools.update_wrapper(functools.partial(found, **config.params), found)
