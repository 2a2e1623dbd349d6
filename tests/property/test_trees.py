"""States as JSON come back as they were, pickles are read as pickle reads them, and neither does anything with what is damaged."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from leptonstore.errors import FormatDamaged
from trainers.pickle_data import parse
from trainers.trees import decode, encode

PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
KEYS = st.text(max_size=8) | st.integers()
VALUES: st.SearchStrategy[Any] = st.recursive(
    PLAIN | st.floats(allow_nan=False),
    lambda inside: st.lists(inside, max_size=4) | st.tuples(inside, inside) | st.dictionaries(KEYS, inside, max_size=4),
    max_leaves=20,
)


def with_tensors(value: Any, found: list[torch.Tensor]) -> Any:
    """Every negative integer becomes a tensor of it."""
    if isinstance(value, dict):
        return {key: with_tensors(one, found) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_tensors(one, found) for one in value)
    if type(value) is int and -1_000 < value < 0:
        found.append(torch.tensor([value]))
        return found[-1]
    return value


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_trees_come_back_as_they_were(value: Any) -> None:
    found: list[torch.Tensor] = []
    tree = with_tensors(value, found)
    tensors: dict[str, Any] = {}
    told = json.loads(json.dumps(encode(tree, "it", tensors), allow_nan=False))
    assert len(tensors) == len(found) and same(decode(told, tensors.__getitem__, "it"), tree)


def test_keys_that_are_told_alike_keep_their_tensors() -> None:
    tree = {1: torch.ones(1), "1": torch.zeros(1), "a/b": torch.ones(2), "a|b": torch.zeros(2)}
    tensors: dict[str, Any] = {}
    assert same(decode(encode(tree, "it", tensors), tensors.__getitem__, "it"), tree)


@given(VALUES, st.integers(min_value=0, max_value=pickle.HIGHEST_PROTOCOL))
@settings(max_examples=200, deadline=None)
def test_pickles_of_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert same(parse(pickle.dumps(value, protocol), "it"), value)


@given(st.binary(max_size=200), VALUES, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_pickles_are_refused_or_are_values(garbage: bytes, value: Any, data: st.DataObject) -> None:
    """Cut short, or with bytes changed: nothing but FormatDamaged comes out."""
    whole = bytearray(pickle.dumps(value))
    cut = data.draw(st.integers(0, len(whole)))
    changed = bytearray(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        changed[at] = data.draw(st.integers(0, 255))
    for one in (garbage, bytes(whole[:cut]), bytes(changed)):
        try:
            parse(one, "it")
        except FormatDamaged:
            continue


@given(
    st.recursive(
        PLAIN | st.floats(),
        lambda inside: st.lists(inside) | st.dictionaries(st.text(max_size=6), inside),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_trees_that_nobody_wrote_are_refused_or_are_values(told: Any) -> None:
    try:
        made = decode(told, lambda path: torch.zeros(1), "it")
    except FormatDamaged:
        return
    assert made is None or isinstance(made, bool | int | str | float | list | tuple | dict | torch.Tensor)
