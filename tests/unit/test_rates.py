"""Buckets: how much a client may ask for, over any time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.daemon.rates import Buckets, Rate, RateLimits, Rates
from leptonstore.errors import BadInput, TooBusy


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


asked = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=40)


@given(st.integers(1, 20), st.integers(1, 50), asked)
def test_nobody_gets_more_than_the_burst_and_what_time_brings(
    per_s: int, burst: int, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    buckets, taken, began = Buckets(Rate(per_s, burst), clock), 0.0, clock.now
    for pause, units in steps:
        clock.now += pause
        wait = buckets.take("me", units)
        if not wait:
            taken += units
            assert taken <= burst + per_s * (clock.now - began) + max(0, units - burst) + 1e-6
        else:
            clock.now += wait + 1e-9
            assert buckets.take("me", units) == 0.0  # who waits as told is served
            taken += units


def test_bytes_put_a_client_into_debt_which_refuses_the_next_request() -> None:
    clock = Clock()
    rates = Rates(RateLimits(principal_bytes=Rate(100, 200)), clock)
    rates.charge("me", "10.0.0.1", "get")
    rates.spend("me", "10.0.0.1", 1_200)  # an answer is not cut off
    with pytest.raises(TooBusy) as refused:
        rates.charge("me", "10.0.0.1", "get")
    assert 10.0 <= refused.value.retry_after_s < 11.0
    rates.charge("another", "10.0.0.1", "get")
    clock.now += refused.value.retry_after_s
    rates.charge("me", "10.0.0.1", "get")


def test_an_address_is_limited_whatever_credentials_come_from_there() -> None:
    rates = Rates(RateLimits(address_requests=Rate(1, 3)), Clock())
    for number in range(3):
        rates.charge(f"p{number}", "10.0.0.1", "get")
    with pytest.raises(TooBusy):
        rates.charge("p4", "10.0.0.1", "get")
    rates.charge("p4", "10.0.0.2", "get")


def test_clients_that_were_seen_are_bounded() -> None:
    buckets = Buckets(Rate(1, 1), Clock(), keys_max=10)
    for number in range(1_000):
        buckets.take(str(number), 1)
    assert len(buckets) == 10


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (1, 0), (-1, 5), (float("nan"), 1), (float("inf"), 1)])
def test_a_rate_that_is_none_is_refused(per_s: float, burst: float) -> None:
    with pytest.raises(BadInput):
        Rate(per_s, burst)
