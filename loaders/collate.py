"""Collates: how the values of one column become what stands in the batch. DataLoader(collate={"text": pad(0), "audio": ragged()}).

    stack()    values of one shape            -> tensor (batch, *shape)
    pad(...)   sequences of several lengths   -> tensor (batch, longest, *item), and lengths or a mask when asked for
    ragged()   sequences of several lengths   -> {"values": (total, *item), "offsets": int64 (batch + 1,)}, or a nested tensor
    keep()     anything                       -> the list, as it is
    struct(..) dicts                          -> {field: what the field's collate, or the default, makes of it}

A collate is called with the list of a batch's values, one of each sample (numpy arrays, tensors, numbers, dicts, strings or bytes), and
what it returns owns its memory. Any callable on such a list is one; these are frozen, pickle, and run in any thread.

A column without a collate, and a field of a struct without one, becomes what loaders.batched says. Arrays that a transform made are
stacked (loaders.transforms). Where values do not fit together, RaggedError names dataset, row and column, and which collate to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from loaders.batched import RaggedError, batched, fields_batched

Collate: TypeAlias = Callable[[list[Any]], Any]
Side: TypeAlias = Literal["left", "right"]


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
        for name in self.fields:
            if values and not any(name in value for value in values if value is not None):
                raise ValueError(
                    f"struct({name}=...) names a field that the values do not have; they have {sorted(values[0])}"
                )
        return fields_batched(values, self.fields, default)


def default(values: list[Any]) -> Any:
    """What stands in a batch where there is no collate: loaders.batched, with torch's tensors."""
    return batched(values, lambda array: torch.from_numpy(np.array(array)))  # whose arrays these are is not known here


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
