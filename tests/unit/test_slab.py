"""A batch in a slab: what is packed is unpacked, leased memory is not given out again, and nothing grows without end."""

from __future__ import annotations

import gc
import os
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from loaders.slab import REQUEST_AT, Slab, pack, unpack  # noqa: E402

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.binary(max_size=9)
)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
DTYPES = (torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.uint16)
TENSORS = st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), SHAPES, st.sampled_from(DTYPES))
ARRAYS = st.builds(np.ones, SHAPES, st.sampled_from(["u1", "<i8", "<f4", "bool", "<U3", "<M8[s]", "<c8"]).map(np.dtype))
BATCHES = st.recursive(
    PLAIN | TENSORS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


class Pair(NamedTuple):
    one: Any
    other: Any


class Boxed:
    """An object of the user's, with a tensor in it."""

    def __init__(self, value: Any) -> None:
        self.value = value


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and same(list(one.values()), list(other.values()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(BATCHES, st.booleans())
def test_what_is_packed_is_unpacked(batch: Any, lease: bool) -> None:
    slab = Slab()
    try:
        found = unpack(slab, REQUEST_AT, *pack(batch, slab, REQUEST_AT), lease)
        assert same(found, batch)
    finally:
        slab.close()
    assert same(found, batch)  # a batch owns its memory


def test_objects_of_the_user_keep_their_classes_and_their_tensors_stay_in_the_slab() -> None:
    slab = Slab()
    batch = [
        Boxed(torch.arange(100_000)),
        Pair(torch.ones(2), [None, "text"]),
        torch.ones(2, requires_grad=True),
        {1, 2},
    ]
    _, length = pack(batch, slab, REQUEST_AT)
    assert length < 2_000, "only the tree"
    boxed, pair, grown, numbers = unpack(slab, REQUEST_AT, *pack(batch, slab, REQUEST_AT), True)
    assert torch.equal(boxed.value, torch.arange(100_000)) and slab.leased
    assert isinstance(pair, Pair) and pair.other == [None, "text"] and grown.requires_grad and numbers == {1, 2}
    slab.close()


def test_a_slab_is_leased_until_the_last_view_of_it_goes() -> None:
    slab = Slab()
    batch = {"a": torch.arange(8), "b": [torch.zeros(3)], "text": ["x"]}
    found = unpack(slab, REQUEST_AT, *pack(batch, slab, REQUEST_AT), True)
    view = found["a"][2:4]
    del found
    gc.collect()
    assert slab.leased and view.tolist() == [2, 3]
    del view
    gc.collect()
    assert not slab.leased
    kept = unpack(slab, REQUEST_AT, *pack(batch, slab, REQUEST_AT), False)
    assert not slab.leased
    pack({"a": torch.zeros(8, dtype=torch.int64)}, slab, REQUEST_AT)  # the next batch
    assert kept["a"].tolist() == list(range(8))
    assert kept["a"].untyped_storage().nbytes() == 64  # saved alone
    only_text = unpack(slab, REQUEST_AT, *pack({"text": ["x"] * 20}, slab, REQUEST_AT), True)
    assert only_text["text"] == ["x"] * 20 and not slab.leased
    slab.close()


def test_leased_tensors_keep_their_memory_when_the_slab_grows_and_goes() -> None:
    slab = Slab()
    found = unpack(slab, REQUEST_AT, *pack(torch.arange(8), slab, REQUEST_AT), True)
    slab.reserve(10 * slab.size)
    assert found.tolist() == list(range(8))
    slab.close()
    assert found.tolist() == list(range(8))


def test_descriptors_stay_as_many() -> None:
    slab = Slab()
    pack(torch.zeros(1_000), slab, REQUEST_AT)
    before = len(os.listdir("/proc/self/fd"))
    for size in (10, 1_000, 50_000, 2_000_000, 10):
        unpack(slab, REQUEST_AT, *pack(torch.zeros(size), slab, REQUEST_AT), True)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    slab.close()
