"""From a step to what is handed out: gather the rows, then one stage after the other. Knows no framework.

gather(rows) -> {column: values}  ->  "_valid" (in pad mode)  ->  stages: the slice of a context-parallel rank, the
tuple of the named columns, the batch transform, pinned memory
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from loaders.order import Rows
from loaders.pad import VALID
from loaders.step import Step

Batch: TypeAlias = dict[str, Any]
Transform: TypeAlias = Callable[[Any], Any]


def maker(
    gather: Callable[[Rows], Batch], stages: Sequence[Transform], valid: Callable[[Step], Any] | None = None
) -> Callable[[Step], Any]:
    """A function from a step to its batch; safe from any thread if its parts are. What is not asked for costs nothing.

    valid: makes the column "_valid"; None outside pad mode.
    """
    if not stages and valid is None:
        return lambda step: gather(step.rows)

    def make(step: Step) -> Any:
        batch: Any = gather(step.rows)
        if valid is not None:
            batch[VALID] = valid(step)
        for stage in stages:
            batch = stage(batch)
        return batch

    return make


def picked(names: tuple[str, ...]) -> Transform:
    """The stage that makes a tuple of the named columns."""
    return functools.partial(_picked, names)


def _picked(names: tuple[str, ...], batch: Any) -> Any:
    return tuple([batch[name] for name in names])


def map_tree(change: Callable[[Any], Any], batch: Any) -> Any:
    """The same dicts, tuples, named tuples and lists with `change(leaf)` for each leaf, in order."""
    if isinstance(batch, dict):
        return {name: map_tree(change, value) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tree(change, value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tree(change, value) for value in batch)
    return change(batch)
