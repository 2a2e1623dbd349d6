"""One batch in one piece of shared memory: what a worker process hands over instead of a descriptor for each tensor.

    Slab    shared memory without a name, which grows; of one worker and its parent, used for one step after another
    pack    a batch -> arrays with their places, and a small tree that says what stands where
    unpack  the mirror image: tensors over the slab (leased until the last of them is dropped) or over a copy of it

    slab     0 words        16 of 64 bits: what the worker is at (AT_*), written by it, read by its parent
             128 request    int64: the rows of the step, then pairs (place, why) of samples to leave out
             ... arrays     each at a multiple of 64, then the tree

A slab has no name in any file system (memfd), so nothing can collide and nothing is left behind, whoever is killed. Tensors, arrays, and
dicts, lists and tuples of them and of plain values are laid out here and never pickled, nor are lists of strings and bytes (which are what
is stored); objects of the user's classes, which only a transform or a collate_fn can make, are pickled, as torch's workers do.
"""

from __future__ import annotations

import ctypes
import io
import marshal
import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Bytes: TypeAlias = npt.NDArray[np.uint8]
Node: TypeAlias = tuple[Any, ...]

WORDS = 16
AT_PLACE, AT_COLUMN, AT_SINCE, CANCELLED = range(
    4
)  # words: sample of the step (-1: none), column, monotonic ns; not wanted any more
REQUEST_AT = 8 * WORDS
_ALIGN = 64
_GROWN = (
    1.25  # a slab grows to this much of what is asked, so that batches of varying size do not make it grow each time
)
_GRAIN = 1 << 16
_MARSHAL = 2  # version: without references, whose table costs more than it saves
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


class Slab:
    """Shared memory between two processes, which take turns. `size` bytes, all of them mapped at `memory`.

    leased: whether tensors of a batch still lie in it. Passes to a child process, forked or spawned.
    """

    def __init__(self, fd: int | None = None, size: int = 0) -> None:
        self.fd = _nameless() if fd is None else fd
        self.size = 0
        self.leased = False
        if fd is None:
            self.reserve(REQUEST_AT)
        else:
            self.remap(size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.fd), self.size)

    def reserve(self, size: int) -> None:
        """At least so many bytes. Raises OSError when there is no memory: here, and not as a SIGBUS later."""
        if size > self.size:
            grown = -(-int(size * _GROWN) // _GRAIN) * _GRAIN
            there = os.fstat(self.fd).st_size  # more than `size` when a worker has died that made it larger
            if there < grown and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, there, grown - there)
            elif there < grown:
                os.ftruncate(self.fd, grown)
            self.remap(grown)

    def remap(self, size: int) -> None:
        """The other side has made it `size` bytes. Leased tensors keep the mapping that they lie in."""
        if size != self.size:
            self.memory = mmap.mmap(self.fd, size)
            self.bytes: Bytes = np.frombuffer(self.memory, np.uint8)
            self.words = self.bytes[:REQUEST_AT].view(np.int64)
            self.size = size

    def close(self) -> None:
        """Tensors that lie in it keep their memory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            del self.words, self.bytes, self.memory


def _received(duplicate: Any, size: int) -> Slab:
    return Slab(duplicate.detach(), size)


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("lepton-slab", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # unlinked already
        return os.dup(file.fileno())


class _Lease:
    """Owner of the memory of a batch that lies in a slab: when the last array over it goes, the slab is free again."""

    def __init__(self, slab: Slab) -> None:
        self._slab, self._memory = slab, slab.memory
        address = ctypes.addressof(ctypes.c_char.from_buffer(slab.memory))
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": (slab.size,), "typestr": "|u1"}
        slab.leased = True

    def __del__(self) -> None:
        self._slab.leased = False


# -- writing ---------------------------------------------------------------------------------------------------------------


def pack(value: Any, slab: Slab, first: int) -> tuple[int, int]:
    """Write a value into a slab from byte `first` on, which grows it. (place, length) of the tree that says what stands where."""
    arrays: list[Bytes] = []
    places: list[int] = []
    end = first

    def put(array: Bytes) -> int:
        nonlocal end
        place = -(-end // _ALIGN) * _ALIGN
        end = place + array.nbytes
        arrays.append(array)
        places.append(place)
        return place

    tree = marshal.dumps(_node(value, put), _MARSHAL)
    at = put(np.frombuffer(tree, np.uint8))
    slab.reserve(end)
    for array, place in zip(arrays, places, strict=True):
        slab.bytes[place : place + array.nbytes] = array
    return at, len(tree)


def _node(value: Any, put: Callable[[Bytes], int]) -> Node:
    kind = type(value)
    if kind in _PLAIN:
        return "v", value
    if kind is torch.Tensor and _is_dense(value):
        flat = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else np.empty(0, np.uint8)
        return "t", str(value.dtype).removeprefix("torch."), tuple(value.shape), put(flat)
    if kind is np.ndarray and value.dtype.kind in "biufcSUmM":
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else np.empty(0, np.uint8)
        return "a", value.dtype.str, tuple(value.shape), put(flat)
    if kind is dict and all(type(key) in _PLAIN for key in value):
        return "d", [(key, _node(item, put)) for key, item in value.items()]
    if kind is list or kind is tuple:
        if _PLAIN.issuperset(map(type, value)):
            return "v", value
        return "l" if kind is list else "u", [_node(item, put) for item in value]
    return _pickled(value, put)


def _is_dense(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    )


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, put: Callable[[Bytes], int]) -> None:
        super().__init__(file, protocol=5)
        self.nodes: list[Node] = []
        self._put = put

    def persistent_id(self, value: Any) -> int | None:
        if (type(value) is torch.Tensor and _is_dense(value)) or (
            type(value) is np.ndarray and value.dtype.kind in "biufc"
        ):
            self.nodes.append(_node(value, self._put))
            return len(self.nodes) - 1
        return None


def _pickled(value: Any, put: Callable[[Bytes], int]) -> Node:
    file = io.BytesIO()
    pickler = _Pickler(file, put)
    pickler.dump(value)
    return "p", put(np.frombuffer(file.getvalue(), np.uint8)), file.tell(), pickler.nodes


# -- reading ---------------------------------------------------------------------------------------------------------------


def unpack(slab: Slab, first: int, at: int, length: int, lease: bool) -> Any:
    """What `pack` wrote. lease: arrays lie in the slab, which is `leased` until the last of them goes; else in a copy."""
    tree = marshal.loads(slab.bytes[at : at + length].tobytes())  # noqa: S302  # written by our own worker
    if lease:
        return _value(tree, np.asarray(_Lease(slab)), 0)
    return _value(tree, slab.bytes[first:at].copy(), first)


def _value(node: Node, memory: Bytes, base: int) -> Any:
    kind = node[0]
    if kind == "v":
        return node[1]
    if kind == "t":
        _, name, shape, place = node
        dtype = getattr(torch, name)
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return torch.empty(shape, dtype=dtype)
        part = memory[place - base : place - base + count * dtype.itemsize]
        return torch.from_numpy(part).view(dtype).view(shape)
    if kind == "a":
        _, name, shape, place = node
        dtype = np.dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        return memory[place - base : place - base + count * dtype.itemsize].view(dtype).reshape(shape)
    if kind == "d":
        return {key: _value(item, memory, base) for key, item in node[1]}
    if kind in "lu":
        items = [_value(item, memory, base) for item in node[1]]
        return items if kind == "l" else tuple(items)
    _, place, length, nodes = node
    unpickler = _Unpickler(io.BytesIO(memory[place - base : place - base + length].tobytes()), nodes, memory, base)
    return unpickler.load()


class _Unpickler(pickle.Unpickler):
    """Of what our own worker pickled a moment ago, in memory that only it and we can reach."""

    def __init__(self, file: io.BytesIO, nodes: list[Node], memory: Bytes, base: int) -> None:
        super().__init__(file)
        self._nodes, self._memory, self._base = nodes, memory, base

    def persistent_load(self, number: int) -> Any:
        return _value(self._nodes[number], self._memory, self._base)
