"""Trades and quotes of a few instruments, made by a process whose structure is known, so that what can be predicted of it is known too.

    flow    an Ornstein-Uhlenbeck process f of variance 1 that forgets in FLOW_S seconds; nobody sees it
    trade   3 a second (Poisson); it is a buy with probability 1 / (1 + exp(-LEAN f)), of lognormal size
    quote   2 a second; bid and ask around a mid price with d(log mid) = DRIFT f dt + VOLATILITY dW

So the signs of the last trades say something of f, and f of the next return, but not all: who knew f itself would be right about as often
as asin(correlation) / pi above a half, and nobody can be right more often than that. `Day.flow` has f, to say how often that is.

Records arrive late and wrong. A row is known 0.2 to 5 ms after it happened, one trade of 25 not for 2 to 30 seconds. One trade of 12
is first told with the wrong side and corrected, one of 50 is withdrawn: 1 to 120 seconds later, and of these one of 5 during the
night. A correction is a row more, with the same id and the next revision. All is a function of (seed, day, instrument).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SECOND_NS, DAY_NS = 1_000_000_000, 86_400 * 1_000_000_000
FIRST_OPEN_NS = 1_772_443_800 * SECOND_NS  # 2026-03-02, 09:30 UTC
FLOW_S, LEAN, DRIFT, VOLATILITY = 5.0, 1.5, 6e-5, 1e-4
TRADES_PER_S, QUOTES_PER_S = 3.0, 2.0
TICK, HALF_SPREAD = 0.001, 0.01
LATE, WRONG, WITHDRAWN, OVERNIGHT = 1 / 25, 1 / 12, 1 / 50, 1 / 5  # shares

TRADES = pa.schema(
    [
        pa.field("instrument", pa.string(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("revision", pa.int8(), nullable=False),
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("known_ns", pa.int64(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),  # of a sale: negative
        pa.field("withdrawn", pa.bool_(), nullable=False),
    ]
)
QUOTES = pa.schema(
    [
        pa.field("instrument", pa.string(), nullable=False),
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("known_ns", pa.int64(), nullable=False),
        pa.field("bid", pa.float64(), nullable=False),
        pa.field("ask", pa.float64(), nullable=False),
    ]
)

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Day:
    """What happened on one day, and what of it, and of days before, became known until its close.

    flow: instrument -> (times in ns, f from then on): the truth, which is stored nowhere.
    """

    opens_ns: int
    closes_ns: int
    trades: pa.Table
    quotes: pa.Table
    flow: dict[str, tuple[Longs, Floats]]


def trading_days(instruments: Sequence[str], days: int, seconds: int, seed: int = 0) -> Iterator[Day]:
    """Days of `seconds` seconds each, 24 hours apart. Rows of a day are sorted by when they were known, as they would have come in."""
    waiting: list[pa.Table] = []  # corrections that come in at night
    for number in range(days):
        opens = FIRST_OPEN_NS + number * DAY_NS
        closes = opens + seconds * SECOND_NS
        made = [_instrument_day(name, at, opens, seconds, [seed, number, at]) for at, name in enumerate(instruments)]
        trades = pa.concat_tables([*waiting, *(one[0] for one in made)]).sort_by("known_ns")
        known = trades["known_ns"].to_numpy() <= closes
        waiting = [trades.filter(pa.array(~known))]
        quotes = pa.concat_tables([one[1] for one in made]).sort_by("known_ns")
        flow = {name: one[2] for name, one in zip(instruments, made, strict=True)}
        yield Day(opens, closes, trades.filter(pa.array(known)), quotes, flow)


def _instrument_day(
    name: str, number: int, opens: int, seconds: int, seed: list[int]
) -> tuple[pa.Table, pa.Table, tuple[Longs, Floats]]:
    rng = np.random.default_rng(seed)
    count = rng.poisson((TRADES_PER_S + QUOTES_PER_S) * seconds)
    times = np.unique(rng.integers(0, seconds * SECOND_NS, count))
    flow, log_mid = _walk(np.diff(times, prepend=0) / SECOND_NS, rng)
    times, mid = times + opens, (50 + 25 * number) * np.exp(log_mid)
    traded = rng.random(len(times)) < TRADES_PER_S / (TRADES_PER_S + QUOTES_PER_S)
    first_id = ((opens - FIRST_OPEN_NS) // DAY_NS * 1000 + number) * 1_000_000
    trades = _trades(name, first_id, times[traded], flow[traded], mid[traded], opens + DAY_NS, rng)
    return trades, _quotes(name, times[~traded], mid[~traded], rng), (times, flow)


def _walk(steps_s: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(f, log of the mid price) at the end of each step."""
    keep = np.exp(-steps_s / FLOW_S)
    push = np.sqrt(1 - keep**2) * rng.normal(size=len(steps_s))
    flow, f = np.empty(len(steps_s)), float(rng.normal())
    before = np.empty(len(steps_s))
    for at, (kept, pushed) in enumerate(zip(keep.tolist(), push.tolist(), strict=True)):
        before[at] = f
        f = kept * f + pushed
        flow[at] = f
    drift = DRIFT * (before + flow) / 2 * steps_s
    return flow, np.cumsum(drift + VOLATILITY * np.sqrt(steps_s) * rng.normal(size=len(steps_s)))


def _trades(
    name: str, first_id: int, times: Longs, flow: Floats, mid: Floats, night: int, rng: np.random.Generator
) -> pa.Table:
    count = len(times)
    side = np.where(rng.random(count) < 1 / (1 + np.exp(-LEAN * flow)), 1, -1)
    size = side * np.ceil(100 * rng.lognormal(0, 0.5, count)).astype(np.int64)
    late = rng.random(count) < LATE
    known = times + np.where(late, _between(2, 30, count, rng), _between(0.0002, 0.005, count, rng))
    fate = rng.random(count)
    wrong, withdrawn = fate < WRONG, (fate >= WRONG) & (fate < WRONG + WITHDRAWN)
    again = wrong | withdrawn
    ids = first_id + np.arange(count)
    first = _table(
        TRADES,
        instrument=[name] * count,
        id=ids,
        revision=np.zeros(count, np.int8),
        time_ns=times,
        known_ns=known,
        price=_on_tick(mid + side * HALF_SPREAD),
        size=np.where(wrong, -size, size),
        withdrawn=np.zeros(count, bool),
    )
    later = known[again] + np.exp(rng.uniform(0, math.log(120), int(again.sum()))) * SECOND_NS
    at_night = rng.random(len(later)) < OVERNIGHT
    later = np.where(at_night, night - _between(3600, 7200, len(later), rng), later).astype(np.int64)
    second = _table(
        TRADES,
        instrument=[name] * len(later),
        id=ids[again],
        revision=np.ones(len(later), np.int8),
        time_ns=times[again],
        known_ns=later,
        price=_on_tick((mid + side * HALF_SPREAD)[again]),
        size=size[again],
        withdrawn=withdrawn[again],
    )
    return pa.concat_tables([first, second])


def _quotes(name: str, times: Longs, mid: Floats, rng: np.random.Generator) -> pa.Table:
    return _table(
        QUOTES,
        instrument=[name] * len(times),
        time_ns=times,
        known_ns=times + _between(0.0002, 0.005, len(times), rng),
        bid=_on_tick(mid - HALF_SPREAD),
        ask=_on_tick(mid + HALF_SPREAD),
    )


def _table(schema: pa.Schema, **columns: object) -> pa.Table:
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _between(low_s: float, high_s: float, count: int, rng: np.random.Generator) -> Longs:
    return (rng.uniform(low_s, high_s, count) * SECOND_NS).astype(np.int64)


def _on_tick(price: Floats) -> Floats:
    return np.round(np.round(price / TICK) * TICK, 3)
