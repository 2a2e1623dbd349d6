"""What the values of a column become together in a batch, where the column has no collate of its own. Knows no framework.

    arrays of fixed width   a tensor
    structs                 a dict of fields, each as said here; numbers in them are a tensor
    lists of numbers        a list of tensors; lists of these, or of structs (windows, too), a list of such lists
    everything else         a list of values

So the type of a batch never depends on the data that happens to be in it: what does not fit is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from loaders.order import Rows
from loaders.source import BadInput, Values

Tensor: TypeAlias = Callable[[Any], Any]  # makes a tensor over a numpy array that it may keep


class RaggedError(BadInput, ValueError):
    """Values of one batch that do not fit together. `sample` is the place in the batch of the first that does not."""

    def __init__(self, message: str, sample: int) -> None:
        super().__init__(message)
        self.sample = sample

    def __reduce__(self) -> tuple[Any, ...]:
        return RaggedError, (str(self), self.sample)


@contextlib.contextmanager
def naming_rows(dataset: str, rows: Rows, column: str) -> Iterator[None]:
    """Inside, a RaggedError names the dataset, the row and the column of the value."""
    try:
        yield
    except RaggedError as error:
        row = int(rows[error.sample]) if error.sample < len(rows) else "?"
        raise RaggedError(f"{dataset} row {row} column {column!r}: {error}", error.sample) from None


def column_batched(values: Values, tensor: Tensor, dataset: str, rows: Rows, column: str) -> Any:
    """What stands in a batch for the values that a source gave for these rows. Raises RaggedError, with the place."""
    if not isinstance(values, list):
        return tensor(values)
    with naming_rows(dataset, rows, column):
        return batched(values, tensor)


def batched(values: list[Any], tensor: Tensor) -> Any:
    """The same of a list. The first value that is not null says what they are. Raises RaggedError."""
    first = next((value for value in values if value is not None), None)
    if isinstance(first, Mapping):
        return fields_batched(values, {}, lambda some: batched(some, tensor))
    if isinstance(first, np.number | np.bool_):
        if any(value is None for value in values):
            message = (
                "null among numbers has no place in a tensor: fill it in a transform, or give the column a collate"
            )
            raise RaggedError(message, next(at for at, value in enumerate(values) if value is None))
        return tensor(np.asarray(values))
    if isinstance(first, np.ndarray | list):
        return [_tensors(value, tensor) for value in values]
    return values


def _tensors(value: Any, tensor: Tensor) -> Any:
    """An array as a tensor, a list or dict with those that are in it; anything else as it is."""
    if isinstance(value, np.ndarray):
        return tensor(_owned(value))
    if isinstance(value, Mapping):
        return {name: _tensors(one, tensor) for name, one in value.items()}
    if not isinstance(value, list):
        return value
    first = next((one for one in value if one is not None), None)
    return [_tensors(one, tensor) for one in value] if isinstance(first, np.ndarray | list | Mapping) else value


def _owned(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array, if no other has its memory; else a copy: a view would keep, and save, the memory of all."""
    return value if value.flags.owndata and value.flags.writeable else np.array(value)


def fields_batched(
    values: list[Any], collates: Mapping[str, Callable[[list[Any]], Any]], other: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """A dict of fields out of dicts: each field's values through its collate, else `other`. Raises RaggedError, naming the field."""
    names = list(dict.fromkeys(name for value in values if value is not None for name in value))
    for sample, value in enumerate(values):
        if value is None:
            raise RaggedError("null among structs has no place in a batch of fields: give the column keep()", sample)
    out: dict[str, Any] = {}
    for name in names:
        try:
            out[name] = collates.get(name, other)([value.get(name) for value in values])
        except RaggedError as error:
            raise RaggedError(f"field {name!r}: {error}", error.sample) from None
    return out
