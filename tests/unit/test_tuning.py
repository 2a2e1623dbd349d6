"""The tuner against a model of a loader: near the best fixed choice, never beyond cores or budget, and no thread that nobody needs."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.tuning import STORE_MAX, Tuner

MB = 1e6


def run(
    tuner: Tuner, make_s: Callable[[int], float], step_s: float, batches: int, batch_bytes: float = MB, scales: int = 64
) -> tuple[float, list[tuple[int, int]]]:
    """Time a batch over the last half, and (threads, depth) at every batch, of a loader whose batches take `make_s(k)` of a thread.

    scales: threads beyond which more of them make nothing faster.
    """
    now, started, free, done = 0.0, 0, [0.0], {}
    chosen, half_at = [], 0.0
    last = 0.0
    for batch in range(batches):
        while len(free) < tuner.threads:
            heapq.heappush(free, now)
        while len(free) > max(tuner.threads, 1):
            free.remove(max(free))
            heapq.heapify(free)
        while started < batches and started - batch < tuner.depth:
            at = max(heapq.heappop(free), now if started >= batch + 1 or batch else 0.0)
            work = make_s(started) * max(1.0, tuner.threads / scales)
            done[started] = at + work
            heapq.heappush(free, done[started])
            started += 1
        ready = done.pop(batch)
        wait = max(ready - now, 0.0)
        now += wait
        chosen.append((tuner.threads, tuner.depth))
        tuner.observe(wait, make_s(batch) * max(1.0, tuner.threads / scales), now - last, batch_bytes)
        last = now
        now += step_s
        if batch == batches // 2:
            half_at = now
    return (now - half_at) / (batches - batches // 2 - 1), chosen


@pytest.mark.parametrize(("make_ms", "step_ms"), [(1, 10), (10, 10), (25, 10), (70, 10), (200, 10), (10, 1)])
def test_near_the_best_with_no_more_threads_than_that_takes(make_ms: float, step_ms: float) -> None:
    tuner = Tuner(cores=8, bytes_max=100 << 20)
    took, chosen = run(tuner, lambda batch: make_ms / 1e3, step_ms / 1e3, 3_000)
    best = max(step_ms, make_ms / 8) / 1e3
    assert took < 1.1 * best
    needed = int(np.ceil(make_ms / step_ms))
    assert chosen[-1][0] <= min(needed + 2, 8)


def test_times_that_vary_get_a_store_of_batches() -> None:
    rng = np.random.default_rng(0)
    times = rng.choice([0.002, 0.05], 6_000, p=[0.9, 0.1])
    tuner = Tuner(cores=2, bytes_max=100 << 20, fixed_threads=1)
    took, chosen = run(tuner, lambda batch: float(times[batch]), 0.01, 6_000)
    small = run(Tuner(2, fixed_threads=1, fixed_depth=2), lambda batch: float(times[batch]), 0.01, 6_000)[0]
    assert chosen[-1][1] > 3 and took < small


def test_threads_that_help_nothing_are_given_back() -> None:
    tuner = Tuner(cores=16, bytes_max=1 << 30)
    _, chosen = run(tuner, lambda batch: 0.03, 0.001, 4_000, scales=2)
    threads = np.array([threads for threads, _ in chosen[1_000:]])
    assert np.median(threads) <= 2 and threads.max() <= 3


def test_many_cores_are_found_within_some_hundred_batches() -> None:
    _, chosen = run(Tuner(cores=64), lambda batch: 0.4, 0.01, 600)
    assert chosen[-1][0] >= 40 and max(threads for threads, _ in chosen) <= 64


@given(
    st.integers(1, 8), st.integers(1, 40), st.floats(0.1, 8.0), st.floats(0.0001, 0.1), st.floats(0.0001, 0.1),
    st.integers(0, 9),
)  # fmt: skip
def test_never_beyond_cores_or_budget(
    cores: int, budget_mb: int, batch_mb: float, make_s: float, step_s: float, seed: int
) -> None:
    if batch_mb > budget_mb:
        with pytest.raises(ValueError, match="holds no batch: one has"):
            run(Tuner(cores, int(budget_mb * MB)), lambda batch: make_s, step_s, 10, batch_mb * MB)
        return
    noise = np.random.default_rng(seed).exponential(make_s, 400)
    _, chosen = run(Tuner(cores, int(budget_mb * MB)), lambda batch: float(noise[batch]), step_s, 400, batch_mb * MB)
    for threads, depth in chosen[1:]:
        assert 1 <= threads <= cores
        assert 1 <= depth <= max(cores + STORE_MAX, 1) and (depth == 1 or depth * batch_mb * MB <= budget_mb * MB)


def test_what_is_fixed_stays_fixed() -> None:
    tuner = Tuner(cores=8, fixed_threads=3, fixed_depth=5)
    _, chosen = run(tuner, lambda batch: 0.1, 0.001, 500)
    assert set(chosen[1:]) == {(3, 5)}
