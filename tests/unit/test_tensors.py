"""Raw tensor files: exact for every dtype and layout, and nothing is believed of what was stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leptonstore.errors import BadInput, FormatDamaged
from trainers.tensors import DTYPES, describe, from_buffer, to_buffer


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (2, 0, 4)])
def test_round_trip(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    back = from_buffer(bytes(to_buffer(tensor)), describe(tensor), "t")
    assert back.dtype == dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


def test_strides_do_not_matter() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    assert torch.equal(from_buffer(to_buffer(tensor), describe(tensor), "t"), tensor)
    assert bytes(to_buffer(tensor)) == bytes(to_buffer(tensor.contiguous()))


def test_the_tensor_owns_its_memory() -> None:
    data = bytearray(to_buffer(torch.ones(4)))
    back = from_buffer(data, {"dtype": "float32", "shape": [4]}, "t")
    data[:] = bytes(16)
    assert torch.equal(back, torch.ones(4))


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        {},
        {"dtype": "float32"},
        {"dtype": "object", "shape": [4]},
        {"dtype": "float32", "shape": 4},
        {"dtype": "float32", "shape": [5]},
        {"dtype": "float32", "shape": [-2, -2]},
        {"dtype": "float32", "shape": [4.0]},
        {"dtype": "float32", "shape": [True, 4]},
        {"dtype": "float32", "shape": [1 << 62, 1 << 62]},
        {"dtype": "float32", "shape": [0, 1 << 62]},
        {"dtype": "float32", "shape": [1] * 1_000},
    ],
)
def test_a_description_that_does_not_fit_is_refused(described: Any) -> None:
    with pytest.raises(FormatDamaged, match=r"weights/x"):
        from_buffer(bytes(16), described, "weights/x")


def test_bytes_that_are_no_booleans_are_refused() -> None:
    with pytest.raises(FormatDamaged):
        from_buffer(b"\x02", {"dtype": "bool", "shape": [1]}, "t")


def test_a_tensor_without_a_raw_form_is_refused() -> None:
    with pytest.raises(BadInput, match="complex64"):
        describe(torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(BadInput, match="sparse"):
        describe(torch.eye(2).to_sparse())
