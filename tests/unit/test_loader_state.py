"""The state of a loader: small, complete, and refused by name when it is another's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from leptonstore import limits
from leptonstore.errors import BadInput
from loaders.order import ORDER_ROWS_MAX, SEED_MAX
from loaders.skips import SKIPS_MAX
from loaders.state import LoaderState, LoaderStateError

STATE = LoaderState(
    dataset="mnist",
    commit="ab" * 32,
    fingerprint="ab" * 32 + "+" + "0" * 16,
    length=60_000,
    seed=7,
    epoch=3,
    consumed=2_560,
    global_batch=256,
    order={"name": "shuffle", "version": 1},
    drop_last=False,
    receipt={"head": "cd" * 32, "steps": 940},
    skips=[[4, 512, 1_024]],
)


def changed(**fields: Any) -> dict[str, Any]:
    return {**STATE.to_dict(), **fields}


def test_a_state_survives_json() -> None:
    assert LoaderState.from_dict(json.loads(json.dumps(STATE.to_dict()))) == STATE


def test_the_largest_state_fits_in_a_kibibyte() -> None:
    largest = LoaderState(
        "n" * limits.NAME_CHARS_MAX, "f" * 64, "f" * 81, ORDER_ROWS_MAX, SEED_MAX, SEED_MAX, ORDER_ROWS_MAX,
        ORDER_ROWS_MAX, {"name": "sequential", "version": 1}, False,
        {"head": "f" * 64, "steps": SEED_MAX}, [],
    )  # fmt: skip
    assert len(json.dumps(largest.to_dict())) <= 1024
    skips = [[SEED_MAX, 1, ORDER_ROWS_MAX]] * SKIPS_MAX
    assert len(json.dumps(replace(largest, skips=skips).to_dict())) <= 1024 + 60 * SKIPS_MAX
    assert LoaderState.from_dict(largest.to_dict()) == largest


@pytest.mark.parametrize("foreign", [{}, {"format": "torch"}, {"_index_sampler_state": None}, [], None, "state"])
def test_another_format_is_refused(foreign: Any) -> None:
    with pytest.raises(LoaderStateError, match="is no state of a LeptonStore loader"):
        LoaderState.from_dict(foreign)


def test_another_version_is_refused() -> None:
    with pytest.raises(LoaderStateError, match="has version 3 and this code reads version 2"):
        LoaderState.from_dict(changed(version=3))


@pytest.mark.parametrize("name", list(LoaderState.__dataclass_fields__))
def test_a_missing_field_is_named(name: str) -> None:
    state = STATE.to_dict()
    del state[name]
    with pytest.raises(LoaderStateError, match=f"damaged: its field '{name}' is missing"):
        LoaderState.from_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", "60000"), ("length", -1), ("seed", 1.0), ("seed", True), ("order", 1), ("epoch", -1), ("epoch", 2**64),
     ("consumed", 60_001), ("consumed", -1), ("global_batch", 0), ("commit", None), ("receipt", []), ("skips", {}),
     ("receipt", {"head": "cd" * 31, "steps": 1}), ("receipt", {"head": "cd" * 32, "steps": True}),
     ("skips", [[0, 1]]), ("skips", [[0, 2, 2]]), ("skips", [[0, -1, 2]]), ("skips", [[0, 1, 2]] * (SKIPS_MAX + 1))],
)  # fmt: skip
def test_a_damaged_field_is_named(name: str, value: Any) -> None:
    with pytest.raises(LoaderStateError, match=f"damaged: its field '{name}'"):
        LoaderState.from_dict(changed(**{name: value}))


def test_another_dataset_is_refused_by_name() -> None:
    other = LoaderState.from_dict(changed(dataset="digits", commit="cd" * 32, fingerprint="cd" * 32))
    with pytest.raises(
        LoaderStateError, match=r"of dataset 'mnist', commit abab.* reads dataset 'digits', commit cdcd"
    ):
        STATE.require_same_order(other)


def test_another_view_of_the_same_commit_is_refused() -> None:
    with pytest.raises(LoaderStateError, match="take the same rows of it"):
        STATE.require_same_order(LoaderState.from_dict(changed(fingerprint="ab" * 32)))


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 8), ("order", {"name": "sequential", "version": 1}), ("drop_last", True)]
)
def test_another_order_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(LoaderStateError, match=f"taken with {name}=.* make the loader with {name}="):
        STATE.require_same_order(LoaderState.from_dict(changed(**{name: value})))


def test_position_and_batch_size_are_no_condition() -> None:
    STATE.require_same_order(LoaderState.from_dict(changed(epoch=0, consumed=0, global_batch=100)))


def test_the_error_is_ours_and_pythons() -> None:
    assert issubclass(LoaderStateError, BadInput) and issubclass(LoaderStateError, ValueError)
