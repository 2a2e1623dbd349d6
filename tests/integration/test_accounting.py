"""What a run tells of itself: times that add up to its wall time, curves, a profile, usage and cost, progress."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sync_run
from click.testing import CliRunner
from ranks import run_ranks
from training_data import quick_config, quick_options

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, LeptonWarning, MissingExtra, Stopped
from leptonstore.store import Store
from leptonstore.store.prices import DEFAULT_TABLE, device_price_of, parse_device_prices, parse_prices
from trainers.clock import RUN_PHASES, StepTime
from trainers.commands import train as train_command
from trainers.commands_progress import training_progress
from trainers.loop import Trainer
from trainers.metrics import default_path, read_metrics
from trainers.profiling import Operation, advice
from trainers.result import EpochEvent, StepEvent
from trainers.usage import cost_of


def test_the_times_of_a_run_add_up_to_its_wall_time_and_its_log_says_the_same(
    store: Store, patterns: Dataset, tmp_path: Path
) -> None:
    for attempt in range(5):  # on a busy machine others run between two looks at the clock
        log = tmp_path / f"log{attempt}.jsonl"
        trainer = Trainer(quick_config(checkpoint__every_steps=2), store, patterns, run=f"run{attempt}", metrics=log)
        began = time.perf_counter()
        result = trainer.fit()
        wall = time.perf_counter() - began
        if result.time.wall == pytest.approx(wall, rel=0.02, abs=0.02):  # left out: joining ranks, closing files
            break
    else:
        pytest.fail(f"{result.time.wall} of {wall} s")
    assert result.time.evaluation > 0 and result.time.setup > 0 and result.time.checkpoint > 0
    events = read_metrics(log)
    for phase in RUN_PHASES:
        logged = sum(event.get(f"{phase}_s", 0.0) for event in [*events[:-1], events[-1]["rest"]])
        whole = getattr(result.time, phase)
        if phase != "setup":
            assert logged == pytest.approx(whole, abs=2e-3), phase  # each line is rounded
    for step in (event for event in events if event["event"] == "step"):
        assert step["wall_s"] == pytest.approx(sum(step[f"{name}_s"] for name in StepTime().__dict__), abs=1e-5)
    end = events[-1]
    assert (end["event"], end["status"], end["step"]) == ("end", "finished", 15)
    assert end["wall_s"] == pytest.approx(result.time.wall, abs=1e-6)


def test_a_run_without_a_place_for_its_log_has_one_all_the_same(store: Store, patterns: Dataset) -> None:
    result = Trainer(quick_config(), store, patterns, run="run").fit()
    assert result.log == str(default_path(store, "run"))
    assert sum(event["event"] == "step" for event in read_metrics(result.log)) == 15


def test_a_training_that_is_refused_leaves_the_log_of_the_other_one(store: Store, patterns: Dataset) -> None:
    first = Trainer(quick_config(), store, patterns, run="run").fit()
    before = Path(first.log).read_text()
    with pytest.raises(BadInput, match="another training"):
        Trainer(quick_config(seed=9), store, patterns, run="run").fit()
    assert Path(first.log).read_text() == before


class Recorder:
    """A sink that remembers; `fails` raises at the call with this number."""

    name = "recorder"

    def __init__(self, fails: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = fails

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        self._call("begin", run, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call("scalars", step, dict(values))

    def end(self, status: str) -> None:
        self._call("end", status)

    def _call(self, *told: Any) -> None:
        self.calls.append(told)
        if len(self.calls) - 1 == self.fails:
            raise RuntimeError("the server is away")


def curve(sink: Recorder, name: str) -> dict[int, float]:
    return {call[1]: call[2][name] for call in sink.calls if call[0] == "scalars" and name in call[2]}


def test_sinks_get_the_curves_of_a_run_and_where_a_resumed_one_goes_on(store: Store, patterns: Dataset) -> None:
    first, second = Recorder(), Recorder()
    stopped = Trainer(quick_config(), store, patterns, run="run", log=[first]).fit(max_steps=7)
    result = Trainer(quick_config(), store, patterns, run="run", log=[second]).fit(resume=True)
    assert first.calls[0] == ("begin", "run", 0) and second.calls[0] == ("begin", "run", 7)
    assert (first.calls[-1], second.calls[-1]) == (("end", "stopped"), ("end", "finished"))
    losses = {event["step"]: event["loss"] for event in read_metrics(result.log) if event["event"] == "step"}
    assert stopped.log == result.log and sorted(losses) == list(range(1, 16))
    assert curve(first, "train/loss") == {1: losses[1]}
    assert curve(second, "train/loss") == {step: losses[step] for step in (10, 15)}
    assert curve(second, "val/accuracy")[15] == result.val_accuracy
    assert curve(second, "train/rows_per_s")[15] > 0


def test_a_sink_that_fails_does_not_end_the_training(store: Store, patterns: Dataset) -> None:
    whole = Trainer(quick_config(), store, patterns, run="whole").fit()
    for at in (0, 1, 3):
        with pytest.warns(LeptonWarning, match="recorder gets no more values: the server is away"):
            result = Trainer(quick_config(), store, patterns, run=f"run-{at}", log=[Recorder(at)]).fit()
        assert result.history == whole.history


def test_what_a_sink_lacks_is_said_before_anything_is_done(
    store: Store, patterns: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.sinks.open.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="mlflow"):
        Trainer(quick_config(), store, patterns, run="run", log=["mlflow:"])
    assert not default_path(store, "run").exists()


# -- profile -------------------------------------------------------------------------------------------------------------


def test_a_profile_has_a_trace_of_some_steps_and_says_where_the_time_went(
    store: Store, patterns: Dataset, tmp_path: Path
) -> None:
    folder = tmp_path / "profile"
    plain = Trainer(quick_config(epochs=6), store, patterns, run="plain").fit()
    result = Trainer(quick_config(epochs=6), store, patterns, run="run", profile=folder).fit()
    assert result.history == plain.history, "a profile looks, and changes nothing"
    found = result.profile
    assert found is not None and plain.profile is None
    trace = json.loads((folder / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("convolution" in name for name in names) and any(name.startswith("ProfilerStep") for name in names)
    assert found["profiled"] == 10 and found["steps"] >= 10
    assert found["operations"][0]["calls"] > 0 and 0 < sum(one["share"] for one in found["operations"]) <= 1.001
    assert found["phases"]["compute"] > 0 and found["advice"]
    assert (folder / "profile.txt").read_text().strip() == found["text"].strip()
    assert json.loads((folder / "profile.json").read_text())["steps"] == found["steps"]


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_a_run_of_few_steps_can_be_profiled(store: Store, patterns: Dataset, tmp_path: Path, steps: int) -> None:
    config = quick_config(epochs=1, data__global_batch_size=-(-50 // steps))
    result = Trainer(config, store, patterns, run="run", profile=tmp_path / "profile").fit()
    assert result.finished and result.profile is not None and result.profile["advice"]


def test_a_run_that_is_stopped_leaves_the_profile_that_there_is(
    store: Store, patterns: Dataset, tmp_path: Path
) -> None:
    def stop(event: StepEvent) -> None:
        if event.step == 25:
            trainer.stop.request()

    trainer = Trainer(quick_config(epochs=9), store, patterns, run="run", profile=tmp_path / "profile", on_step=[stop])
    with pytest.raises(Stopped):
        trainer.fit()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert "compute" in (tmp_path / "profile" / "profile.txt").read_text()


PHASES = {"data_wait": 0.0, "h2d": 0.0, "compute": 1.0, "sync": 0.0, "checkpoint": 0.0, "other": 0.0}
CONVOLUTIONS = [Operation("aten::mkldnn_convolution", 0.9, 0.9, 1), Operation("Optimizer.step#Adam.step", 0.1, 0.1, 1)]


@pytest.mark.parametrize(
    ("changed", "facts", "first"),
    [
        ({}, {}, "nothing stands out: 100% of a step computes"),
        (
            {"data_wait": 1.0},
            {"dataset": "mnist", "rows": 64},
            r"50% .* mostly gather: `lepton doctor loader mnist --batch-size 64",
        ),
        ({"sync": 3.0}, {}, "75% waits for other ranks"),
        ({"h2d": 1.0}, {}, "copies batches to the device"),
        ({"checkpoint": 1.0}, {}, "checkpoint.asynchronous"),
        ({"checkpoint": 1.0}, {"asynchronous": True}, "save less often"),
        ({"other": 1.0}, {}, "callbacks"),
        ({}, {"precision": "float32"}, "precision=bf16"),
    ],
)
def test_advice_names_the_largest_share(changed: dict[str, float], facts: dict[str, Any], first: str) -> None:

    lines = advice({**PHASES, **changed}, CONVOLUTIONS, {"stages": {"gather": 2.0, "order": 1.0}}, facts)
    assert re.search(first, lines[0]), lines


def test_advice_follows_from_the_operations_of_a_step() -> None:
    between = [Operation("FSDP::all_gather", 0.5, 0.5, 1), *CONVOLUTIONS]
    assert "gathers and adds up between ranks" in advice(PHASES, between, {}, {})[0]
    small = [Operation("aten::add", 0.9, 0.9, 400), Operation("Optimizer.step#Adam.step", 0.1, 0.1, 1)]
    assert "400 small operations: --set compile=true" in advice(PHASES, small, {}, {"compile": False})[0]
    assert "nothing stands out" in advice(PHASES, small, {}, {"compile": True})[0]
    updates = [Operation("Optimizer.step#Adam.step", 0.6, 0.6, 1), Operation("aten::mm", 0.4, 0.4, 1)]
    assert "60% of compute updates weights" in advice(PHASES, updates, {}, {"compile": True})[0]


# -- usage and prices ----------------------------------------------------------------------------------------------------


def test_a_run_reports_what_it_used_and_what_that_costs(store: Store, patterns: Dataset) -> None:
    before = store.new_bytes
    result = Trainer(quick_config(), store, patterns, run="run").fit()
    usage = result.usage
    assert (usage.device, usage.devices, usage.h2d_bytes, usage.collective_bytes) == ("cpu", 1, 0, 0)
    assert usage.device_hours == pytest.approx(result.time.wall / 3600)
    assert usage.idle_fraction == pytest.approx(result.time.idle_fraction)
    assert usage.checkpoint_bytes == store.new_bytes - before > 0
    assert usage.data_bytes == 3 * 50 * (36 + 8)  # three epochs of 6 x 6 images and int64 labels
    assert (
        list(usage.read_bytes) == [store.url] and 2_500 < usage.read_bytes[store.url] < 200_000
    )  # images, and nodes of the tree
    prices, devices = parse_prices(DEFAULT_TABLE, "x"), parse_device_prices("[[device]]\nname='cpu'\nhour=3600", "x")
    cost = cost_of(usage, store.url, prices, devices)
    assert cost["devices"] == pytest.approx(result.time.wall)
    assert cost["idle"] == pytest.approx(result.time.wall * usage.idle_fraction)
    assert cost["checkpoints_month"] == pytest.approx(usage.checkpoint_bytes / 2**30 * 0.08)
    (far,) = parse_prices(f"[[price]]\nurl='{store.url}'\ngib_month=1\negress_gib=3", "x")
    assert cost_of(usage, store.url, [far], [])["read"] == pytest.approx(usage.read_bytes[store.url] / 2**30 * 3)
    unknown = cost_of(usage, store.url, [], [])
    assert (unknown["devices"], unknown["idle"], unknown["checkpoints_month"]) == (None, None, None)


def test_the_longest_name_of_whole_words_prices_a_device() -> None:
    table = "".join(
        f"[[device]]\nname='{name}'\nhour={at}\n" for at, name in enumerate(["A100", "A100-SXM4-80GB", "L4", "cpu"])
    )
    devices = parse_device_prices(table, "x")
    for device, hour in [
        ("NVIDIA A100-SXM4-80GB", 1),
        ("NVIDIA A100-SXM4-40GB", 0),
        ("nvidia a100 80gb pcie", 0),
        ("NVIDIA L40S", None),
        ("NVIDIA L4", 2),
        ("cpu", 3),
    ]:
        price = device_price_of(devices, device)
        assert (None if price is None else price.hour) == hour, device
    assert device_price_of(parse_device_prices(DEFAULT_TABLE, "x"), "NVIDIA H100 80GB HBM3") is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[device]]\nname='x'", "device 1 has no 'hour'"),
        ("[[device]]\nname='x'\nhour=-1", "hour is -1"),
        ("[[device]]\nname=3\nhour=1", "name is 3"),
        ("[[device]]\nname='x'\nhour=1\ngpu=2", "has 'gpu'"),
        ("device = 3", "malformed"),
    ],
)
def test_a_malformed_device_price_is_named(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_device_prices(text, "mine.toml")


# -- the command ---------------------------------------------------------------------------------------------------------


def test_the_command_tells_all_of_it(store: Store, patterns: Dataset, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[[price]]\nurl=''\ngib_month=1\n[[device]]\nname='cpu'\nhour=7.5\n")
    words = ["patterns", "--store", str(tmp_path / "store"), *quick_options(quick_config()), "--prices", str(prices)]
    words += ["--log", f"tensorboard:{tmp_path / 'curves'}", "--profile", str(tmp_path / "profile")]
    done = CliRunner().invoke(train_command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for part in ("setup", "device-hours", "7.5 an hour", "of checkpoints", ".jsonl", "what to change:", "trace.json"):
        assert part in done.output, part
    assert list((tmp_path / "curves").rglob("events.out.*"))
    told = json.loads(CliRunner().invoke(train_command, [*words, "--json"]).output.strip().split("\n")[-1])
    assert told["usage"]["cost"]["device_hour"] == 7.5
    assert told["wall_s"] == pytest.approx(sum(told[f"{phase}_s"] for phase in RUN_PHASES))
    assert Path(told["log"]).exists() and told["profile"]["trace"].endswith("trace.json")


def step_event(step: int) -> StepEvent:
    return StepEvent(step, 100, 1, 2, 0.5, 1e-3, 32, StepTime(data_wait=0.1, compute=0.3))


def test_a_long_run_without_a_terminal_says_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("train x", line_every_s=0.0) as (on_step, on_epoch):
        for step in (1, 2):
            on_step[0](step_event(step))
        on_epoch[0](EpochEvent(1, 2, 0.25, None))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert (
        "step 2/100  epoch 1/2  loss 0.5000  lr 0.001" in lines[1] and "data 25.0%" in lines[1] and "left" in lines[1]
    )
    assert lines[2] == "train x: epoch 1/2: train loss 0.2500"
    with training_progress("train x", line_every_s=60.0) as (on_step, on_epoch):
        on_step[0](step_event(1))
    assert capsys.readouterr().err == "", "a short run says nothing before its end"


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with training_progress("train x", line_every_s=0.0) as callbacks:
        assert callbacks == ((), ())


def test_a_terminal_gets_a_bar_and_a_line_for_each_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with training_progress("train x") as (on_step, on_epoch):
        on_step[0](step_event(99))
        on_step[0](step_event(100))
        on_epoch[0](EpochEvent(1, 2, 0.25, None))
    told = capsys.readouterr().err
    assert "100/100" in told and "loss 0.5000" in told and "rows/s" in told and "epoch 1/2: train loss 0.2500" in told


def test_what_ddp_waits_for_a_slow_rank_inside_backward_is_sync_and_not_compute(tmp_path: Path) -> None:
    fast, slow = run_ranks("sync_run.py", tmp_path, 2)

    def usual(rank: dict[str, Any], phase: str) -> float:
        """Of the steps in which the second rank was slow; the machine may be busy in some of them."""
        return statistics.median(step[phase] for step in rank["steps"][1::2])

    assert usual(fast, "sync") >= sync_run.SLOW_S * 0.6 and usual(slow, "compute") >= sync_run.SLOW_S * 0.8
    assert usual(fast, "sync") > usual(fast, "compute") and usual(slow, "compute") > usual(slow, "sync")
    assert fast["alone"] == fast["plain"] == 0.0, (
        "a pass that does not synchronise, and a module without DDP, wait for nobody"
    )
