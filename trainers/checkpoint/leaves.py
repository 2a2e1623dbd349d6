"""A state and its leaves: a nested dict of tensors and numbers <-> paths of tensors, with the memory that holds them.

    {"model": {fqn: tensor}, "optimizer": {fqn: {key: tensor | number}}, "rng": {"rank-0": {"cpu": uint8}}}

    model/<fqn>    optimizer/<key>/<fqn>    rng/rank-<r>/cpu          everything else: its keys, joined by "/"

A leaf is a torch tensor (on any device, in any layout of memory), a DTensor, a numpy array (of ml_dtypes, too), `Shards` of another
framework, or a scalar: what JSON has, and tuples (values.py). Nothing else can be saved: it is refused by its path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from leptonstore.errors import BadInput
from trainers.checkpoint.cells import Bits, Box, whole
from trainers.checkpoint.layout import BITS, ITEM_BYTES, Described, Held, check_path
from trainers.checkpoint.values import decode_value, encode_value

State: TypeAlias = Mapping[str, Any]


class Memory(NamedTuple):
    """The memory of one box, by its bits.

    read: an array as large as the box, which may be a view of the tensor itself. write: makes the tensor hold such an array; where
    `read` gives a view that can be written to, writing there is enough, and `write` is None.
    """

    box: Box
    read: Callable[[], Bits]
    write: Callable[[Bits], None] | None


class Leaf(NamedTuple):
    """A tensor of a state, and what this process holds of it."""

    tensor: Described
    memory: tuple[Memory, ...]

    @property
    def held(self) -> Held:
        """Without the memory."""
        return Held(self.tensor, tuple(memory.box for memory in self.memory))


class Shards:
    """Parts of a tensor that another framework keeps (jax: `addressable_shards`). Arrays are written to in place by `restore`.

    shape: of the whole tensor. parts: (offsets, array) of each part that this process holds; none of them overlaps another.
    """

    def __init__(
        self, dtype: str, shape: Sequence[int], parts: Sequence[tuple[Sequence[int], np.ndarray[Any, Any]]]
    ) -> None:
        self.dtype, self.shape = dtype, tuple(shape)
        self.parts = [(tuple(offsets), array) for offsets, array in parts]


class Flat(NamedTuple):
    """A state, flat. `scalars` are as JSON has them; `set_scalar` puts one back where it was."""

    leaves: dict[str, Leaf]
    scalars: dict[str, Any]
    places: dict[str, tuple[MutableMapping[str, Any], str]]

    def set_scalar(self, path: str, value: Any) -> None:
        """Raises BadInput where the state cannot be written to."""
        container, key = self.places[path]
        try:
            container[key] = decode_value(value, path)
        except TypeError:
            raise BadInput(f"the state cannot take {path!r}: {type(container).__name__} is read-only") from None


def flatten(state: State) -> Flat:
    """Raises BadInput, naming the path, for what cannot be saved."""
    flat = Flat({}, {}, {})
    for path, container, key in _walk(state):
        check_path(path)
        value = container[key]
        if path in flat.leaves or path in flat.scalars:
            raise BadInput(f"two values of the state are called {path!r}")
        leaf = leaf_of(value, path)
        if leaf is not None:
            flat.leaves[path] = leaf
        else:
            flat.scalars[path] = encode_value(value, path)
            flat.places[path] = container, key
    return flat


def _walk(state: State) -> Iterator[tuple[str, Any, str]]:
    for section, value in state.items():
        if section == "optimizer" and isinstance(value, Mapping):
            for name, states in value.items():
                if not isinstance(states, Mapping):
                    yield f"optimizer/{name}", value, name
                    continue
                for key in states:
                    yield f"optimizer/{key}/{name}", states, key
        else:
            yield from _deeper(str(section), state, section)


def _deeper(path: str, container: Any, key: Any) -> Iterator[tuple[str, Any, Any]]:
    value = container[key]
    if isinstance(value, Mapping):
        for inner in value:
            yield from _deeper(f"{path}/{inner}", value, inner)
    else:
        yield path, container, key


def leaf_of(value: Any, path: str) -> Leaf | None:
    """The tensor that `value` is, None when it is none. Raises BadInput for one that cannot be saved."""
    if isinstance(value, np.ndarray):
        tensor = _described(value.dtype.name, value.shape, path)
        return Leaf(tensor, (_numpy_memory(whole(tensor.shape), value, tensor),))
    if isinstance(value, np.generic):
        tensor = _described(value.dtype.name, (), path)
        return Leaf(tensor, (_numpy_memory(whole(()), np.asarray(value), tensor),))
    if isinstance(value, Shards):
        tensor = _described(value.dtype, value.shape, path)
        parts = [(Box(offsets, array.shape), array) for offsets, array in value.parts if array.size]
        return Leaf(tensor, tuple(_numpy_memory(box, array, tensor) for box, array in parts))
    torch = sys.modules.get("torch")
    return None if torch is None or not isinstance(value, torch.Tensor) else torch_leaf(value, path)


def _described(dtype: str, shape: Sequence[int], path: str) -> Described:
    if dtype not in ITEM_BYTES:
        raise BadInput(f"{path!r} is of {dtype}, which cannot be stored; known are {', '.join(ITEM_BYTES)}")
    return Described(dtype, tuple(int(size) for size in shape))


def _numpy_memory(box: Box, array: np.ndarray[Any, Any], tensor: Described) -> Memory:
    bits = array.view(BITS[tensor.item_bytes])
    return Memory(box, lambda: bits, None)


def torch_leaf(value: Any, path: str, shape: Sequence[int] | None = None, box: Box | None = None) -> Leaf:
    """A tensor or DTensor; with shape and box: the part `box` of a tensor of that shape. Raises BadInput."""
    import torch

    if torch.nn.parameter.is_lazy(value):
        raise BadInput(
            f"{path!r} has no shape yet: run the model once (lazy modules get their weights then), and then save or restore"
        )
    if value.layout is not torch.strided or value.is_meta:
        raise BadInput(
            f"{path!r} is a tensor of {value.dtype}, {value.layout} on {value.device}, which cannot be stored"
        )
    tensor = _described(str(value.dtype).removeprefix("torch."), value.shape if shape is None else shape, path)
    local, boxes = value.detach(), [whole(tensor.shape) if box is None else box]
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(value, DTensor):
            local, boxes = _of_dtensor(value, path)
    return Leaf(tensor, tuple(_torch_memory(one, local, tensor) for one in boxes if one.elements))


def _of_dtensor(value: Any, path: str) -> tuple[Any, list[Box]]:
    """The local tensor and where it lies in the whole one; torch's own arithmetic (uneven shards, 2-D meshes)."""
    try:
        chunks = value.__create_chunk_list__()
    except RuntimeError as error:  # partial sums
        raise BadInput(f"{path!r} cannot be stored: {error}") from None
    if len(chunks) > 1:
        raise BadInput(f"{path!r} has {len(chunks)} local shards on one rank, which cannot be stored")
    return value.to_local().detach(), [Box(tuple(one.offsets), tuple(one.sizes)) for one in chunks]


def _torch_memory(box: Box, local: Any, tensor: Described) -> Memory:
    import torch

    as_int = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.item_bytes]
    unsigned = BITS[tensor.item_bytes]

    def bits_of(one: Any) -> Bits:
        return one.resolve_conj().resolve_neg().view(as_int).numpy().view(unsigned)

    if local.device.type == "cpu" and not local.is_conj() and not local.is_neg():
        return Memory(box, lambda: bits_of(local), None)

    def write(bits: Bits) -> None:
        host = torch.empty(box.sizes, dtype=local.dtype)
        bits_of(host)[...] = bits
        local.copy_(host)

    return Memory(box, lambda: bits_of(local.cpu()), write)
