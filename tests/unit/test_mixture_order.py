"""The order of a mixture: every source goes through its own passes, whatever the weights do; its state is small and checked."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from loaders.mixing import SOURCES_MAX, whole_weights
from loaders.mixture_order import BoundMixture, Change, MixtureEpoch, MixtureOrder, derived, source_id
from loaders.mixture_source import PartRows
from loaders.order import ORDER_ROWS_MAX, SEED_MAX, FullOrder, Order
from loaders.state import LoaderState, LoaderStateError


def order_of(weights: dict[str, float], **options: Any) -> MixtureOrder:
    names = tuple(weights)
    orders = (FullOrder(shuffle=True),) * len(names)
    return MixtureOrder(
        names, tuple(source_id(name, name) for name in names), whole_weights(weights, names), orders, **options
    )


def bound(order: MixtureOrder, rows: list[int]) -> BoundMixture:
    return order.bind(PartRows(order.names, [SimpleNamespace(rows=count) for count in rows]))


def everything(epoch: MixtureEpoch) -> list[int]:
    return epoch.rows_at(0, epoch.length).tolist()


def part_rows(rows: list[int], offset: int, count: int) -> list[int]:
    """Rows of one source, in the order of its draws."""
    return [row - offset for row in rows if offset <= row < offset + count]


def test_each_source_goes_through_its_own_passes_over_the_ends_of_epochs() -> None:
    sizes = [50, 7, 400]
    mixture = bound(order_of({"a": 0.5, "b": 0.3, "c": 0.2}, samples_per_epoch=333), sizes)
    rows = [row for number in range(6) for row in everything(mixture.epoch(9, number))]
    offset = 0
    for name, count in zip("abc", sizes, strict=True):
        seed = derived(9, 0, False, name)
        found = part_rows(rows, offset, count)
        passes = [
            row for number in range(len(found) // count + 1) for row in Order(count, seed, number).rows_at(0, count)
        ]
        assert found == passes[: len(found)] and len(found) > 300
        offset += count
    assert everything(mixture.epoch(8, 0)) != rows[:333]


def test_a_source_beside_it_changes_nothing_in_a_sources_own_order() -> None:
    two = everything(bound(order_of({"a": 1, "b": 1}), [40, 40]).epoch(0, 0))
    three = everything(bound(order_of({"c": 1, "a": 1, "b": 2}), [40, 40, 40]).epoch(0, 0))
    length = min(len(part_rows(two, 0, 40)), len(part_rows(three, 40, 40)))
    assert part_rows(two, 0, 40)[:length] == part_rows(three, 40, 40)[:length] and length >= 30


def test_any_positions_in_any_order() -> None:
    order = order_of({"a": 3, "b": 1}, schedule=((700, (1 << 29, 1 << 29)),))
    epoch = bound(order, [3000, 2000]).epoch(5, 1)
    whole = epoch.rows_at(0, epoch.length)
    some = np.random.default_rng(1).integers(0, epoch.length, 999)
    np.testing.assert_array_equal(epoch.rows_of(some), whole[some])
    np.testing.assert_array_equal(np.concatenate([epoch.rows_at(at, at + 100) for at in range(0, 5000, 100)]), whole)
    for start, stop in ((-1, 2), (2, 1), (0, 5001)):
        with pytest.raises(ValueError, match="outside an epoch of 5000 samples"):
            epoch.rows_at(start, stop)
    with pytest.raises(ValueError, match="outside an epoch"):
        epoch.rows_of(np.array([5000]))


@pytest.mark.parametrize("stop", ["first", "all"])
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    weights=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    number=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_an_epoch_ends_exactly_with_the_row_that_exhausts(
    stop: str, sizes: list[int], weights: list[int], number: int
) -> None:
    names = [f"s{at}" for at in range(len(sizes))]
    order = order_of(dict(zip(names, map(float, weights), strict=False)), stop=stop)
    epoch = bound(order, sizes).epoch(3, number)
    before, counts = epoch.counts(epoch.length - 1), epoch.counts(epoch.length)
    through = any if stop == "first" else all
    assert through(counts >= sizes) and not through(before >= sizes)
    rows = everything(epoch)
    assert len(rows) == epoch.length == counts.sum()
    for at, size in enumerate(sizes):
        found = part_rows(rows, sum(sizes[:at]), size)
        assert len(found) == counts[at] and len(set(found[:size])) == min(size, len(found))


def test_with_stop_each_epoch_begins_every_source_anew() -> None:
    mixture = bound(order_of({"a": 1, "b": 1}, stop="first"), [100, 1000])
    for number in range(3):
        rows = everything(mixture.epoch(0, number))
        assert sorted(part_rows(rows, 0, 100)) == list(range(100))
    assert everything(mixture.epoch(0, 0))[:20] != everything(mixture.epoch(0, 1))[:20]
    total = sum(mixture.epoch(0, number).length for number in range(3))
    assert mixture.counts(0, 2, mixture.epoch(0, 2).length)["a"] == 300
    assert sum(mixture.counts(0, 2, mixture.epoch(0, 2).length).values()) == total


def test_with_stop_a_source_that_lost_its_weight_is_not_waited_for() -> None:
    order = order_of({"a": 1, "b": 1}, stop="all")
    assert bound(order, [100, 900]).epoch(0, 0).length > 1700
    changed = order.changed(0, 512, {"a": 1, "b": 0})
    epoch = bound(changed, [100, 900]).epoch(0, 0)
    assert epoch.length == 512 and epoch.counts(512).tolist() == [256, 256]
    with pytest.raises(ValueError, match="'b' is not exhausted"):
        bound(order_of({"a": 1 << 29, "b": 1}, stop="all"), [10, 1 << 45]).epoch(0, 0)


def test_schedules_count_from_the_start_of_the_run() -> None:
    half = (1 << 29, 1 << 29)
    order = order_of({"a": 1, "b": 0}, samples_per_epoch=512, schedule=((768, half), (1024, (0, 1 << 30))))
    mixture = bound(order, [100, 100])
    assert [mixture.counts(0, *at) for at in ((0, 512), (1, 256), (2, 0), (2, 512))] == [
        {"a": 512, "b": 0}, {"a": 768, "b": 0}, {"a": 896, "b": 128}, {"a": 896, "b": 640},
    ]  # fmt: skip
    assert mixture.weights(1, 256) == {"a": 0.5, "b": 0.5} and mixture.weights(1, 255) == {"a": 1.0, "b": 0.0}
    later = bound(order.changed(1, 300, {"a": 9, "b": 1}), [100, 100])  # holds until the schedule's next entry
    assert later.weights(1, 511)["a"] == pytest.approx(0.9) and later.weights(2, 0) == {"a": 0.0, "b": 1.0}


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_changes_leave_what_was_before_them_and_counts_are_exact(data: st.DataObject) -> None:
    sizes = [40, 300, 25]
    order = order_of({"a": 1, "b": 2, "c": 0.5}, samples_per_epoch=400)
    at = sorted(data.draw(st.sets(st.integers(0, 1199), max_size=4)))
    seed = data.draw(st.integers(0, SEED_MAX))
    run = [row for number in range(3) for row in everything(bound(order, sizes).epoch(seed, number))]
    for position in at:
        weights = data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any))
        order = order.changed(*divmod(position, 400), dict(zip("abc", map(float, weights), strict=True)))
        now = [row for number in range(3) for row in everything(bound(order, sizes).epoch(seed, number))]
        assert now[:position] == run[:position]
        run = now
    mixture = bound(order, sizes)
    for position in (*at, 0, 1199):
        found = mixture.counts(seed, *divmod(position, 400))
        replay = Counter("a" if row < 40 else "b" if row < 340 else "c" for row in run[:position])
        assert found == {name: replay[name] for name in "abc"}
    again = order_of({"a": 1, "b": 2, "c": 0.5}, samples_per_epoch=400).restored(json.loads(json.dumps(order.spec())))
    assert again == order
    twin = pickle.loads(pickle.dumps(mixture))  # noqa: S301
    assert everything(twin.epoch(seed, 2)) == run[800:]


def test_going_back_takes_back_the_changes_after_it() -> None:
    order = order_of({"a": 1, "b": 1}).changed(2, 64, {"a": 1, "b": 0}).changed(5, 0, {"a": 0, "b": 1})
    again = order.changed(3, 0, {"a": 1, "b": 2})
    assert [change[:2] for change in again.log] == [(2, 64), (3, 0)]
    assert [change[:2] for change in again.changed(3, 0, {"a": 1, "b": 3}).log] == [(2, 64), (3, 0)]


# -- what is refused -------------------------------------------------------------------------------------------------


def test_states_of_other_mixtures_are_refused_by_name() -> None:
    order = order_of({"web": 0.5, "code": 0.5}, samples_per_epoch=100)
    newer = replace(order, ids=(order.ids[0], source_id("code", "another version")))
    refused = [
        (order_of({"web": 0.5, "books": 0.5}, samples_per_epoch=100), "only the state has: books; only this.*: code"),
        (newer, r"only the state has: code; only this loader has: code \(another version"),
        (order_of({"code": 0.5, "web": 0.5}, samples_per_epoch=100), "stand in another order"),
        (
            order_of({"web": 0.7, "code": 0.3}, samples_per_epoch=100),
            "weights differ, web=0.7 code=0.3 there and web=0.5",
        ),
        (replace(order, samples_per_epoch=50), "samples_per_epoch differ, 50 there and 100 here"),
        (replace(order, samples_per_epoch=None, stop="all"), "samples_per_epoch differ"),
        (replace(order, schedule=((5, order.weights),)), "the schedule differ"),
        (replace(order, orders=(FullOrder(False), FullOrder(True))), "the sources' orders differ"),
    ]
    for other, message in refused:
        with pytest.raises(LoaderStateError, match=message):
            order.restored(other.spec())
    assert order.restored({"name": "shuffle", "version": 1}) is order  # the comparison of states refuses that


@given(st.one_of(st.text(max_size=40), st.binary(max_size=60).map(lambda data: data.hex()), st.none(), st.integers()))
@settings(max_examples=200, deadline=None)
def test_a_damaged_log_is_refused(log: Any) -> None:
    order = order_of({"a": 1, "b": 1})
    try:
        restored = order.restored({**order.spec(), "log": log})
    except LoaderStateError as error:
        assert "log of its mixture does not parse" in str(error)
    else:
        assert order.restored(restored.spec()) == restored  # by chance it was one


def test_a_log_that_does_not_ascend_is_refused() -> None:
    order = order_of({"a": 1, "b": 1})
    twisted = replace(order, log=(Change(1, 5, order.weights), Change(1, 5, order.weights)))
    with pytest.raises(LoaderStateError, match="does not parse"):
        order.restored(twisted.spec())


def test_sources_that_do_not_fit_are_named() -> None:
    order = order_of({"a": 1, "b": 0})
    assert bound(order, [5, 0]).epoch(0, 0).length == 5
    with pytest.raises(ValueError, match="source 'a' of the mixture has no rows"):
        bound(order, [0, 5])
    with pytest.raises(ValueError, match="source 'b' of the mixture has no rows"):
        bound(order.changed(0, 3, {"a": 1, "b": 1}), [5, 0])
    with pytest.raises(ValueError, match="a mixture of a, b needs that mixture"):
        order.bind(SimpleNamespace(rows=5))
    with pytest.raises(ValueError, match="seed of an order"):
        bound(order, [5, 5]).epoch(-1, 0)
    with pytest.raises(ValueError, match="begins at position"):
        bound(order, [5, 5]).epoch(0, SEED_MAX)


# -- size and speed --------------------------------------------------------------------------------------------------


def largest_state(order: MixtureOrder) -> dict[str, Any]:
    return LoaderState(
        "n" * limits.NAME_CHARS_MAX, "f" * 64, "f" * 64, ORDER_ROWS_MAX, SEED_MAX, SEED_MAX, ORDER_ROWS_MAX,
        ORDER_ROWS_MAX, order.spec(), False, {"head": "f" * 64, "steps": SEED_MAX}, [],
    ).to_dict()  # fmt: skip


@pytest.mark.parametrize("sources", [1, 2, 3, 5, 20, SOURCES_MAX])
@pytest.mark.parametrize("changes", [0, 1, 10, 1000])
def test_a_state_has_a_kibibyte_and_32_bytes_for_each_source_and_changed_weight(sources: int, changes: int) -> None:
    order = order_of(
        {"n" * 61 + f"{at:03}": 1 + at for at in range(sources)}, samples_per_epoch=ORDER_ROWS_MAX,
        schedule=tuple((at, (0,) * sources) for at in range(100)),
    )  # fmt: skip
    log = tuple(Change(10**6 + at, ORDER_ROWS_MAX - 1, order.weights) for at in range(changes))
    order = replace(order, log=log)
    size = len(json.dumps(largest_state(order)))
    assert size <= 1024 + 32 * sources + 32 * changes * max(1, sources - 1)
    if sources <= 4:
        assert size <= 1024 + 32 * (sources + changes)
    assert order_of(dict.fromkeys(order.names, 1.0)).ids == order.ids and len(set(order.ids)) == sources
    assert replace(order, log=()).restored(order.spec()) == order


def test_seeking_does_not_depend_on_rows_or_changes() -> None:
    order = order_of({"a": 3, "b": 2, "c": 1})
    for change in range(1000):
        order = order.changed(0, 1000 * change + 7, {"a": 1 + change % 3, "b": 1, "c": 1})
    seconds = []
    for attempt in range(5):
        mixture = bound(order, [10**9, 10**9, 10**9])
        began = perf_counter()
        mixture.epoch(1, 3).rows_at(10**9 + attempt, 10**9 + 256)
        seconds.append(perf_counter() - began)
    assert min(seconds) < 0.1  # 10 ms on an idle machine
