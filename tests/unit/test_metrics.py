"""The log reads back exactly, also after a crash; and where it cannot be written, the training goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.errors import BadInput, FormatDamaged, LeptonWarning, SourceError
from leptonstore.store import Store
from trainers.clock import StepTime
from trainers.metrics import MetricLog, default_path, read_metrics
from trainers.result import StepEvent


def event(step: int, loss: float = 0.5, lr: float = 1e-3, time: StepTime | None = None) -> StepEvent:
    return StepEvent(step, 10, 1, 2, loss, lr, 32, time or StepTime())


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6))
def test_a_step_reads_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, loss: float, lr: float, s: float
) -> None:
    """Its line is written by hand: it must be JSON for whatever floats there are."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = MetricLog(path)
    log.step(event(3, loss, lr, StepTime(compute=s, data_wait=s / 3)))
    log.close()
    (read,) = read_metrics(path)
    assert (read["event"], read["step"], read["epoch"], read["rows"], read["lr"]) == ("step", 3, 1, 32, lr)
    finite = loss == loss and abs(loss) != float("inf")
    assert read["loss"] == (loss if finite else None)
    assert read["compute_s"] == pytest.approx(s, abs=1e-6) and read["wall_s"] == pytest.approx(s + s / 3, abs=2e-6)


def test_floats_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 2.0**-1074, 1e308, 0.1 + 0.2]
    log = MetricLog(tmp_path / "log.jsonl")
    for step, value in enumerate(values):
        log.write("evaluation", step=step, loss=value)
    log.close()
    assert [event["loss"] for event in read_metrics(tmp_path / "log.jsonl")] == values


def test_a_resume_replaces_the_steps_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = MetricLog(path)
    for step in (1, 2, 3, 4):
        log.step(event(step, float(step)))
    log.close()
    log = MetricLog(path, append=True)
    log.write("resume", step=2)
    for step in (3, 4, 5):
        log.step(event(step, -float(step)))
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


@pytest.mark.parametrize("whole", ['{"event": "step", "step": 1}\n', ""])
@pytest.mark.parametrize("torn", ['{"event": "st', "x" * 200_000, ""])
def test_a_resume_does_not_write_on_behind_a_line_that_a_crash_cut_off(tmp_path: Path, whole: str, torn: str) -> None:
    """It made one damaged line of the two, in the middle of the log."""
    path = tmp_path / "log.jsonl"
    path.write_text(whole + torn)
    log = MetricLog(path, append=True)
    log.write("resume", step=1)
    log.close()
    assert [found["event"] for found in read_metrics(path)] == (["step"] if whole else []) + ["resume"]
    assert path.read_text().startswith(whole)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="evaluation"):
        MetricLog(tmp_path / "log.jsonl").write("evaluation", loss=float("nan"))
    with pytest.raises(SourceError, match="no-such"):
        MetricLog(tmp_path / "no-such" / "log.jsonl")
    with pytest.raises(SourceError):
        read_metrics(tmp_path / "absent.jsonl")


def test_a_full_disk_ends_the_log_with_one_warning_and_not_the_training() -> None:
    """/dev/full takes a file's opening and refuses each write."""
    log = MetricLog("/dev/full")
    with pytest.warns(LeptonWarning, match="/dev/full: No space left") as told:
        for step in range(1, 2_000):
            log.step(event(step))
        log.flush()
        log.write("end", step=2_000)
        log.close()
    assert len(told) == 1


def test_steps_are_not_flushed_one_by_one(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log.jsonl")
    log.step(event(1))
    assert (tmp_path / "log.jsonl").read_text() == ""
    log.flush()
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1


def test_every_run_has_a_log_in_the_state_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log = MetricLog.at_default(store, "mnist-1a2b")
    log.step(event(1))
    log.close()
    assert log.path == tmp_path / "state" / "lepton" / store.config.store_id.hex() / "runs" / "mnist-1a2b.jsonl"
    assert len(read_metrics(log.path)) == 1
    outside = default_path(store, "../../../etc/x")
    assert outside.parent == log.path.parent


def test_where_the_default_place_cannot_be_written_there_is_no_log(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.warns(LeptonWarning, match="--metrics"):
        log = MetricLog.at_default(store, "run")
    log.step(event(1))
    log.close()
    assert log.path is None


def test_without_a_path_nothing_is_written() -> None:
    log = MetricLog(None)
    log.write("step", step=1)
    log.flush()
    log.close()
