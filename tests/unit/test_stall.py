"""Stall accounting: sums of all threads, waits in buckets, a report that names what is large."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from loaders.stall import STALL_S, LoaderStats, StageClock, timed


def test_stages_are_summed_over_threads_that_are_gone_too() -> None:
    clock = StageClock()
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            barrier = threading.Barrier(2)

            def work(barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                clock.add("decode", 2.0)
                clock.add("fetch", 0.5)

            for task in [pool.submit(work) for _ in range(2)]:
                task.result()
    clock.add("mine", 1.0)
    assert clock.seconds == {"fetch": 3.0, "decode": 12.0, "mine": 1.0}
    assert len(clock._threads) <= 3  # what the threads of passes that are over left is one sum


def test_a_stage_counts_when_it_fails() -> None:
    clock = StageClock()
    with pytest.raises(KeyError), clock.stage("transform"):
        raise KeyError
    assert clock.lap("pin", clock.lap("gather", 0.0)) > 0
    assert set(clock.seconds) == {"gather", "transform", "pin"}
    assert list(timed(iter("abc"), "order", clock)) == ["a", "b", "c"] and "order" in clock.seconds


def waited(stats: LoaderStats, seconds: float, step: int) -> None:
    stats["batches"] += 1
    stats["wait_s"] += seconds
    stats.waits[int(seconds * 1e6).bit_length()] += 1
    stats.worst = max(stats.worst, (seconds, 4, step))


def test_quantiles_are_within_a_factor_of_two() -> None:
    stats = LoaderStats()
    waits = [1e-6 * 1.5**power for power in range(25)]
    for step, seconds in enumerate(waits):
        waited(stats, seconds, step)
    for share in (0.1, 0.5, 0.9, 1.0):
        true = waits[max(round(share * len(waits)) - 1, 0)]
        assert true <= stats.wait_quantile_s(share) * 1.000_001 and stats.wait_quantile_s(share) <= 4 * true


def test_the_report_names_stalls_and_the_largest_stage() -> None:
    stats = LoaderStats()
    assert stats.report() == "no batch was handed out yet"
    for step in range(98):
        waited(stats, 20e-6, step)
    waited(stats, 5 * STALL_S, 98)
    stats.clock.add("decode", 8.0)
    stats.clock.add("gather", 2.0)
    told = stats.report()
    assert "99 batches" in told and "1 stall of 100 ms or more; the longest, 500 ms, at epoch 4, step 98" in told
    assert "work by stage: decode 8.00 s (80%), gather 2.00 s (20%)" in told
    assert stats.to_dict()["worst"] == {"wait_s": 0.5, "epoch": 4, "step": 98}
    assert sum(stats.to_dict()["waits_below_s"].values()) == 99


def test_stats_pickle_without_their_clock() -> None:
    stats = LoaderStats()
    waited(stats, 0.25, 1)
    twin = pickle.loads(pickle.dumps(stats))  # noqa: S301
    assert twin == stats and twin.waits == stats.waits and twin.worst == stats.worst
