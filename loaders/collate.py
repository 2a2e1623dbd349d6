"""Collates: how the values of one column become what stands in the batch. DataLoader(collate={"text": pad(0), "audio": ragged()}).

    stack()    values of one shape            -> tensor (batch, *shape)
    pad(...)   sequences of several lengths   -> tensor (batch, longest, *item), and lengths or a mask when asked for
    ragged()   sequences of several lengths   -> {"values": (total, *item), "offsets": int64 (batch + 1,)}, or a nested tensor
    keep()     anything                       -> the list, as it is
    struct(..) dicts                          -> {field: what the field's collate, or the default, makes of it}

A collate is called with the list of a batch's values, one of each sample (numpy arrays, tensors, numbers, dicts, strings or bytes), and
what it returns owns its memory. Any callable on such a list is one; these are frozen, pickle, and run in any thread.

The default, for a column without a collate: numbers become one tensor, dicts are collated field by field, a struct of structs too;
everything whose length varies by its type (strings, bytes, lists of numbers) stays a list of values, lists of numbers as tensors, so that
the type of a batch never depends on the data that happens to be in it. Arrays that a transform made are stacked: where their shapes
differ, RaggedError says which sample, and which collate to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from loaders.order import Rows
from loaders.source import BadInput, ColumnSpec
from loaders.stages import Batch

Collate: TypeAlias = Callable[[list[Any]], Any]
Side: TypeAlias = Literal["left", "right"]


class RaggedError(BadInput, ValueError):
    """Values of one batch that do not fit into one tensor. `sample` is the place of the first such value in its batch."""

    def __init__(self, message: str, sample: int) -> None:
        super().__init__(message)
        self.sample = sample


def pad(
    value: float = 0,
    *,
    length: int | None = None,
    multiple: int | None = None,
    side: Side = "right",
    extra: Literal["lengths", "mask"] | None = None,
    dtype: torch.dtype | None = None,
) -> Pad:
    """Sequences of shape (n, *item) to one tensor (batch, length, *item), filled up with `value`.

    length:   of the result; None: that of the longest in the batch. A longer sequence is refused (RaggedError).
    multiple: the result's length is rounded up to a multiple of it: fewer shapes for compilers, whole tiles for kernels.
    side:     where the filling stands.
    extra:    None: the tensor alone. "lengths": {"values", "lengths": int64 (batch,)}. "mask": {"values", "mask": bool (batch, length)},
              true where a value stands.
    dtype:    of the result, for token numbers that a loss wants as int64; None: that of the values.
    """
    return Pad(value, length, multiple, side, extra, dtype)


def ragged(*, nested: bool = False, dtype: torch.dtype | None = None) -> Ragged:
    """Sequences of shape (n, *item) one after another: {"values": (total, *item), "offsets": int64 (batch + 1,)}.

    Sample i is values[offsets[i] : offsets[i + 1]]. nested: a jagged torch.nested tensor of the two.
    """
    return Ragged(nested, dtype)


def stack(dtype: torch.dtype | None = None) -> Stack:
    """Values of one shape to one tensor (batch, *shape). Raises RaggedError."""
    return Stack(dtype)


def keep() -> Keep:
    """The list of values, as they are."""
    return Keep()


def struct(**fields: Collate) -> Struct:
    """Dicts to a dict: a field that is named here goes through its collate, every other through the default."""
    return Struct(dict(fields))


@dataclass(frozen=True)
class Pad:
    """See `pad`."""

    value: float
    length: int | None
    multiple: int | None
    side: Side
    extra: Literal["lengths", "mask"] | None
    dtype: torch.dtype | None

    def __post_init__(self) -> None:
        for name in ("length", "multiple"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"pad({name}={given}): give a positive number, or leave it out")
        if self.side not in ("left", "right"):
            raise ValueError(f"pad(side={self.side!r}): 'left' or 'right'")
        if self.extra not in (None, "lengths", "mask"):
            raise ValueError(f"pad(extra={self.extra!r}): None, 'lengths' or 'mask'")

    def __call__(self, values: list[Any]) -> Any:
        tensors = _sequences(values, "pad")
        lengths = torch.tensor([len(tensor) for tensor in tensors], dtype=torch.int64)
        longest = int(lengths.max()) if len(lengths) else 0
        width = longest if self.length is None else self.length
        if longest > width:
            sample = int((lengths > width).nonzero()[0])
            raise RaggedError(
                f"a sequence of {int(lengths[sample])} is longer than pad(length={width}): "
                "cut it in a transform, or give a greater length",
                sample,
            )
        if self.multiple is not None:
            width = -(-width // self.multiple) * self.multiple
        dtype = self.dtype or (tensors[0].dtype if tensors else torch.get_default_dtype())
        item = tensors[0].shape[1:] if tensors else ()
        out = torch.full((len(tensors), width, *item), self.value, dtype=dtype)
        for row, tensor in zip(out, tensors, strict=True):
            if len(tensor):
                (row[: len(tensor)] if self.side == "right" else row[-len(tensor) :]).copy_(tensor)
        if self.extra is None:
            return out
        if self.extra == "lengths":
            return {"values": out, "lengths": lengths}
        places = torch.arange(width)
        if self.side == "left":
            places = places.flip(0)
        return {"values": out, "mask": places < lengths[:, None]}


@dataclass(frozen=True)
class Ragged:
    """See `ragged`."""

    nested: bool
    dtype: torch.dtype | None

    def __call__(self, values: list[Any]) -> Any:
        tensors = _sequences(values, "ragged")
        offsets = torch.zeros(len(tensors) + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor([len(tensor) for tensor in tensors], dtype=torch.int64), 0, out=offsets[1:])
        joined = torch.cat(tensors) if tensors else torch.empty(0)
        if self.dtype is not None:
            joined = joined.to(self.dtype)
        if self.nested:
            return torch.nested.nested_tensor_from_jagged(joined, offsets)
        return {"values": joined, "offsets": offsets}


@dataclass(frozen=True)
class Stack:
    """See `stack`."""

    dtype: torch.dtype | None

    def __call__(self, values: list[Any]) -> Tensor:
        tensors = _tensors(values, "stack")
        for sample, tensor in enumerate(tensors):
            if tensor.shape != tensors[0].shape:
                raise RaggedError(
                    f"a value of shape {tuple(tensor.shape)} beside one of {tuple(tensors[0].shape)} makes no tensor: "
                    "give the column collate=pad(...), ragged() or keep(), or a transform that makes one shape of them",
                    sample,
                )
        out = torch.stack(tensors) if tensors else torch.empty(0)
        return out if self.dtype is None else out.to(self.dtype)


@dataclass(frozen=True)
class Keep:
    """See `keep`."""

    def __call__(self, values: list[Any]) -> list[Any]:
        return values


@dataclass(frozen=True)
class Struct:
    """See `struct`."""

    fields: Mapping[str, Collate] = field(default_factory=dict)

    def __call__(self, values: list[Any]) -> dict[str, Any]:
        names = list(dict.fromkeys(name for value in values if value is not None for name in value))
        for name in self.fields:
            if values and name not in names:
                raise ValueError(f"struct({name}=...) names a field that the values do not have; they have {names}")
        for sample, value in enumerate(values):
            if value is None:
                raise RaggedError("null among structs has no place in a batch of fields: give keep()", sample)
        out: dict[str, Any] = {}
        for name in names:
            collate = self.fields.get(name, default)
            try:
                out[name] = collate([value.get(name) for value in values])
            except RaggedError as error:
                raise RaggedError(f"field {name!r}: {error}", error.sample) from None
        return out


def default(values: list[Any]) -> Any:
    """What stands in a batch for a column without a collate; see the module's docstring.

    The first value that is not null decides: of numpy scalars, which stand in structs only, a tensor is made; of dicts a dict; arrays
    become tensors and stay a list; everything else stays as it is.
    """
    first = next((value for value in values if value is not None), None)
    if isinstance(first, Mapping):
        return Struct()(values)
    whole = all(value is not None for value in values)
    if isinstance(first, np.number | np.bool_):
        if not whole:
            sample = next(at for at, value in enumerate(values) if value is None)
            raise RaggedError(
                "null among numbers has no place in a tensor: fill it in a transform, or give keep()", sample
            )
        return torch.from_numpy(np.asarray(values))
    if isinstance(first, np.ndarray):
        return [None if value is None else _own(value) for value in values]
    return values


def collate_column(name: str, collate: Collate, values: list[Any], rows: Rows, dataset: str) -> Any:
    """`collate(values)`; a RaggedError names the dataset, the row and the column of the value that does not fit."""
    try:
        return collate(values)
    except RaggedError as error:
        row = int(rows[error.sample]) if error.sample < len(rows) else "?"
        raise RaggedError(f"{dataset} row {row} column {name!r}: {error}", error.sample) from None


def collated(
    gather: Callable[[Rows], Batch], collates: Mapping[str, Collate], columns: Sequence[ColumnSpec], dataset: str
) -> Callable[[Rows], Batch]:
    """`gather`, then the collate of each column that has one, and the default of every other whose values vary in width.

    Safe from any thread if the collates are.
    """
    made = {spec.name: default for spec in columns if not spec.fixed} | dict(collates)
    if not made:
        return gather

    def gather_and_collate(rows: Rows) -> Batch:
        batch = gather(rows)
        for name, collate in made.items():
            batch[name] = collate_column(name, collate, list(batch[name]), rows, dataset)
        return batch

    return gather_and_collate


def require_collates(collate: Mapping[str, Collate], columns: Sequence[str]) -> None:
    """Raise ValueError for a collate that is no callable, or of a column that is not loaded."""
    for name, made in collate.items():
        if name not in columns:
            raise ValueError(f"collate names {name!r}, which is not loaded; the loader has {', '.join(columns)}")
        if not callable(made):
            raise ValueError(f"collate[{name!r}] must be callable, as pad(0) is, not {made!r}")


def _own(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value))


def _tensors(values: list[Any], what: str) -> list[Tensor]:
    """Tensors over the same memory where that is possible; read-only arrays are copied, which torch would warn of."""
    out = []
    for sample, value in enumerate(values):
        if isinstance(value, Tensor):
            out.append(value)
            continue
        array = value if isinstance(value, np.ndarray) else None if value is None else np.asarray(value)
        if array is None or array.dtype.kind not in "biufc":
            raise RaggedError(
                f"{what}() makes tensors of numbers, and this value is {_named(value)}: "
                "give the column keep(), or a transform that makes numbers of it",
                sample,
            )
        out.append(torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else np.array(array)))
    return out


def _sequences(values: list[Any], what: str) -> list[Tensor]:
    tensors = _tensors(values, what)
    for sample, tensor in enumerate(tensors):
        if tensor.ndim == 0 or tensor.shape[1:] != tensors[0].shape[1:]:
            raise RaggedError(
                f"{what}() joins sequences whose first dimension differs only, and this value has shape "
                f"{tuple(tensor.shape)} beside one of {tuple(tensors[0].shape)}: make them alike in a transform",
                sample,
            )
    return tensors


def _named(value: Any) -> str:
    return "null" if value is None else f"of {type(value).__name__}"
