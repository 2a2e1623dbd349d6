"""Step accounting adds up, and the log reads back exactly, also after a crash."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from leptonstore.errors import BadInput, FormatDamaged, SourceError
from trainers.metrics import PHASES, MetricLog, StepClock, StepTime, read_metrics


def test_phases_add_up_to_the_wall_time() -> None:
    began = time.perf_counter()
    clock = StepClock()
    steps = []
    for _ in range(5):
        for phase in PHASES:
            sum(range(1_000))
            clock.lap(phase)
        steps.append(clock.step())
    wall = time.perf_counter() - began
    assert all(seconds >= 0 for step in steps for seconds in step.seconds().values())
    assert clock.total.wall == pytest.approx(sum(step.wall for step in steps))
    assert clock.total.wall <= wall
    assert clock.total.wall == pytest.approx(wall, abs=1e-3)


def test_restart_leaves_out_what_belongs_to_no_step() -> None:
    clock = StepClock()
    sum(range(100_000))
    clock.restart()
    assert clock.step().wall < 1e-3


def test_data_wait_fraction_leaves_checkpoints_out() -> None:
    assert StepTime(data_wait=1.0, compute=3.0, checkpoint=96.0).data_wait_fraction == 0.25
    assert StepTime().data_wait_fraction == 0.0


def test_floats_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 2.0**-1074, 1e308, 0.1 + 0.2]
    log = MetricLog(tmp_path / "log.jsonl")
    for step, value in enumerate(values):
        log.write("step", step=step, loss=value)
    log.close()
    assert [event["loss"] for event in read_metrics(tmp_path / "log.jsonl")] == values


def test_a_resume_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = MetricLog(path)
    for step in (1, 2, 3, 4):
        log.write("step", step=step, loss=float(step))
    log.close()
    log = MetricLog(path, append=True)
    log.write("resume", step=2)
    for step in (3, 4, 5):
        log.write("step", step=step, loss=-float(step))
    log.close()
    steps = [(event["step"], event["loss"]) for event in read_metrics(path) if event["event"] == "step"]
    assert steps == [(1, 1.0), (2, 2.0), (3, -3.0), (4, -4.0), (5, -5.0)]


def test_a_line_cut_off_by_a_crash_is_dropped_and_damage_is_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st')
    assert len(read_metrics(path)) == 1
    path.write_text('{"event": "st\n{"event": "step", "step": 1}\n')
    with pytest.raises(FormatDamaged, match="line 1"):
        read_metrics(path)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="step"):
        MetricLog(tmp_path / "log.jsonl").write("step", loss=float("nan"))
    with pytest.raises(SourceError, match="no-such"):
        MetricLog(tmp_path / "no-such" / "log.jsonl")
    with pytest.raises(SourceError):
        read_metrics(tmp_path / "absent.jsonl")


def test_without_a_path_nothing_is_written() -> None:
    log = MetricLog(None)
    log.write("step", step=1)
    log.flush()
    log.close()
