"""What another program wrote into a layout, told as a rank, or stored as a value: parsed, or refused as damaged; never anything else."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.format.framed import canonical_json, parse_json
from trainers.checkpoint.layout import ITEM_BYTES, TENSOR_BYTES_MAX, held_from_json, parse_layout
from trainers.checkpoint.values import decode_value, encode_value

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
dtypes = st.sampled_from([*ITEM_BYTES, "object", "float128", ""])
shapes = st.lists(st.integers(-1, 1 << 45) | json_values, max_size=70)
layouts = st.dictionaries(
    st.text(max_size=12), st.fixed_dictionaries({"dtype": dtypes, "shape": shapes}) | json_values, max_size=4
)
held = st.dictionaries(
    st.text(max_size=6),
    st.tuples(dtypes, shapes, st.none() | st.lists(st.tuples(shapes, shapes), max_size=3)).map(list) | json_values,
    max_size=3,
)


@given(layouts | json_values)
def test_a_layout_is_parsed_within_bounds_or_refused(found: Any) -> None:
    try:
        tensors = parse_layout(found, "it")
    except (FormatDamaged, BadInput):
        return
    for tensor in tensors.values():
        assert 0 <= tensor.elements * tensor.item_bytes <= TENSOR_BYTES_MAX


@given(held | json_values)
def test_what_a_rank_tells_lies_inside_of_its_tensor_or_is_refused(found: Any) -> None:
    try:
        told = held_from_json(found, "rank 1")
    except FormatDamaged:
        return
    for tensor, boxes in told.values():
        for box in boxes:
            ends = [offset + size for offset, size in zip(box.offsets, box.sizes, strict=True)]
            assert all(0 <= end <= length for end, length in zip(ends, tensor.shape, strict=True))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8).filter(lambda key: key not in ("()", "float")), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(values)
def test_a_value_comes_back_as_it_was_through_json(value: Any) -> None:
    assert same(decode_value(parse_json(canonical_json(encode_value(value, "x")), "x"), "x"), value)


@given(json_values)
def test_any_json_is_some_value(found: Any) -> None:
    decode_value(found, "x")
