"""Errors over the wire: every class of the tree arrives as what it was, nothing that is sent can make a client fail otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore import errors, limits
from leptonstore.errors import ChunkCorrupt, ChunkMissing, LeptonError, NotAuthenticated, RuleBroken, TooBusy
from leptonstore.store.quota import OverQuota
from leptonstore.store.wire import errors as wire

CLASSES = sorted(wire.CLASSES.values(), key=lambda kind: kind.__name__)


def made(kind: type[LeptonError], message: str = "something is wrong") -> LeptonError:
    return errors.restored(kind, (message,), wire.fields_of(kind))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_arrives_as_itself_with_its_message_and_fields(kind: type[LeptonError]) -> None:
    error = made(kind)
    found = wire.decode(wire.encode(error))
    assert type(found) is kind
    assert str(found) == str(error)
    assert vars(found) == vars(error)
    assert 400 <= wire.status_of(error) < 600


def test_errors_that_their_constructors_make_arrive_whole() -> None:
    for error in (
        ChunkMissing("ab" * 32, "birds@main row 7"),
        ChunkCorrupt("cd" * 32, "12" * 16, "it is short", "birds", "s3://bucket"),
        RuleBroken("a rule is broken", "x > 3", "x", [1, 5, 9]),
        TooBusy("later", 2.5),
        NotAuthenticated("who?"),
    ):
        found = wire.decode(wire.encode(error))
        assert type(found) is type(error)
        assert (str(found), vars(found)) == (str(error), vars(error))


def test_a_class_of_ours_that_is_not_in_the_tree_is_told_as_the_nearest_one_above_it() -> None:
    found = wire.decode(wire.encode(OverQuota("the quota is 1 GiB")))
    assert type(found) is errors.StoreFull
    assert str(found) == "the quota is 1 GiB"


def test_a_class_that_is_unknown_here_is_a_plain_error() -> None:
    body = {"error": "SomethingOfALaterVersion", "message": "news", "fields": {"digest": "x"}}
    found = wire.decode(json.dumps(body).encode())
    assert type(found) is LeptonError
    assert str(found) == "news"
    assert vars(found) == {}


@pytest.mark.parametrize("name", ["Exception", "KeyboardInterrupt", "LeptonWarning", "listed", "__name__", "restored"])
def test_no_other_name_of_the_module_becomes_an_error(name: str) -> None:
    assert type(wire.decode(json.dumps({"error": name, "message": "m", "fields": {}}).encode())) is LeptonError


@given(message=st.text(), rows=st.lists(st.integers(-(2**70), 2**70), max_size=2_000), rule=st.text())
def test_what_is_sent_is_bounded_whatever_the_message_is(message: str, rows: list[int], rule: str) -> None:
    data = wire.encode(RuleBroken(message, rule, "x", rows))
    assert len(data) <= limits.WIRE_ERROR_BYTES_MAX
    found = wire.decode(data)
    assert isinstance(found, RuleBroken)
    assert message.startswith(str(found))
    assert found.rows == rows[: limits.WIRE_ROWS_MAX] or found.rows == []


@given(st.binary(max_size=200))
def test_bytes_that_are_no_error_of_ours_are_none(data: bytes) -> None:
    assert wire.decode(data) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(
    kind=st.sampled_from(CLASSES),
    fields=st.dictionaries(
        st.sampled_from(["digest", "rows", "row", "tier", "missing", "retry_after_s", "args"]), json_values
    ),
)
def test_fields_of_another_type_are_left_out(kind: type[LeptonError], fields: dict[str, Any]) -> None:
    body = {"error": kind.__name__, "message": "m", "fields": fields}
    found = wire.decode(json.dumps(body).encode())
    usual = wire.fields_of(kind)
    assert found is not None
    assert vars(found).keys() == usual.keys()
    for name, value in vars(found).items():
        if value != usual[name]:
            assert value == fields[name]
            assert isinstance(
                value, int | float if usual[name] is None or isinstance(usual[name], float) else type(usual[name])
            )
    assert found.args == ("m",)


def test_lists_of_another_error_are_not_shared() -> None:
    one, other = (wire.decode(json.dumps({"error": "RuleBroken", "message": "m"}).encode()) for _ in range(2))
    assert isinstance(one, RuleBroken) and isinstance(other, RuleBroken)
    one.rows.append(1)
    assert other.rows == []
