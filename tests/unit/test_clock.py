"""Step accounting: phases add up to what passed, of a step and of a run."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.clock import PHASES, RUN_PHASES, RunTime, StepClock, StepTime


@given(st.lists(st.sampled_from([*RUN_PHASES, "step", "between"]), max_size=60))
def test_whatever_happens_the_phases_add_up_to_the_wall_time(calls: list[str]) -> None:
    """Laps in any order, evaluation in mid-step too: nothing is lost, and the run is its steps and what is between them."""
    clock = StepClock()
    began = clock._last  # the clock's own first reading, so that the sum is exact
    ended: list[StepTime] = []
    for call in calls:
        if call == "step":
            ended.append(clock.step())
        elif call == "between":
            ended.append(clock.between())
        else:
            assert clock.lap(call) >= 0
    ended.append(clock.between())
    total = clock.total
    assert total.wall == pytest.approx(clock._last - began, abs=1e-9)
    assert total.wall == pytest.approx(sum(one.wall for one in ended) + total.setup + total.evaluation)
    assert clock.steps == calls.count("step")
    assert all(seconds >= 0 for seconds in total.seconds().values())


def test_a_clock_agrees_with_another_one() -> None:
    def apart_s() -> float:
        began = time.perf_counter()
        clock = StepClock()
        for phase in (*PHASES, "evaluation") * 5:
            sum(range(1_000))
            clock.lap(phase)
        clock.step()
        return abs(clock.total.wall - (time.perf_counter() - began))

    assert min(apart_s() for _ in range(20)) < 1e-3  # on a busy machine others run between two looks


@given(st.floats(-1, 3, allow_nan=False), st.floats(0, 2))
def test_what_was_measured_elsewhere_is_moved_and_never_more_than_there_is(seconds: float, booked: float) -> None:
    clock = StepClock()
    clock._step["compute"] = booked
    clock.move("compute", "sync", seconds)
    took = clock.step()
    assert took.compute + took.sync == pytest.approx(booked) and took.compute >= 0
    assert took.sync == pytest.approx(min(max(seconds, 0), booked))


def test_fractions_say_what_they_leave_out() -> None:
    assert StepTime(data_wait=1.0, compute=3.0, checkpoint=96.0).data_wait_fraction == 0.25
    assert StepTime().data_wait_fraction == StepTime().idle_fraction == 0.0
    run = RunTime(data_wait=1, sync=2, checkpoint=3, compute=4, setup=5, evaluation=5)
    assert run.wall == 20 and run.training == 7 and run.idle_fraction == 0.3


def test_seconds_stand_by_name() -> None:
    assert set(StepTime().seconds()) == {f"{phase}_s" for phase in PHASES} | {"wall_s"}
    assert set(RunTime().rounded()) == {f"{phase}_s" for phase in RUN_PHASES} | {"wall_s"}
    assert RunTime(setup=0.1234567).rounded()["setup_s"] == 0.123457
