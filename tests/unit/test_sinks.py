"""Curves reach TensorBoard, MLflow and W&B, read back from what these wrote; a sink that fails or hangs costs one warning."""

from __future__ import annotations

import importlib.util
import struct
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from leptonstore.errors import BadInput, LeptonWarning, MissingExtra
from trainers.sinks import BackgroundSink, open_sink
from trainers.sinks.sink import flattened

FACTS = {
    "config": {"epochs": 3, "optimizer": {"lr": 0.1}, "model": {"params": {}}},
    "data": {"training": {"name": "birds"}},
}


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def write(spec: str, steps: range, resumed: int = 0, status: str = "finished") -> None:
    """A run, or what goes on of it, without a word said."""
    sink = BackgroundSink(open_sink(spec))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeptonWarning)
        sink.begin("run", FACTS, resumed)
        for step in steps:
            sink.scalars(step, {"train/loss": 1 / step, "val/accuracy": step / 10})
        sink.end(status)


@needs("tensorboard")
def test_tensorboard_has_the_curves_and_drops_what_a_resume_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(f"tensorboard:{tmp_path}", range(1, 6), status="stopped")
    write(f"tensorboard:{tmp_path}", range(4, 9), resumed=3)
    read = EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    loss = [(one.step, one.value) for one in read.Scalars("train/loss")]
    assert loss == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert len(read.Scalars("val/accuracy")) == 8
    text = read.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"epochs": 3' in text and "birds" in text


@needs("mlflow")
def test_mlflow_has_the_curves_in_one_run_that_a_resume_goes_on_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    import mlflow

    uri = f"file:{tmp_path}"
    write(f"mlflow:{uri}", range(1, 4), status="stopped")
    write(f"mlflow:{uri}", range(4, 6), resumed=3)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("birds")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((one.step, one.value) for one in history) == [(step, 1 / step) for step in range(1, 6)]
    assert run.data.params == {"epochs": "3", "optimizer.lr": "0.1", "model.params": "{}"}
    assert run.info.status == "FINISHED" and run.info.run_name == "run"


@needs("wandb")
def test_wandb_keeps_the_curves_of_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    import wandb

    wandb.teardown()  # what it had read of the environment
    write("wandb:team/project", range(1, 4))
    wandb.teardown()  # waits for the process that writes the file
    (file,) = tmp_path.glob("wandb/offline-run-*/run-run.wandb")
    records = offline_records(file)
    begun = next(record.run for record in records if record.HasField("run"))
    assert (begun.project, begun.entity, begun.display_name) == ("project", "team", "run")
    rows = [{"/".join([i.key, *i.nested_key]).strip("/"): i.value_json for i in r.history.item} for r in records]
    curve = [(int(row["_step"]), float(row["train/loss"])) for row in rows if "train/loss" in row]
    assert curve == [(step, 1 / step) for step in range(1, 4)]


def offline_records(file: Path) -> list[Any]:
    """What W&B's own file holds: LevelDB's log format behind 7 bytes; as small as here, all in the first block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found = file.read_bytes(), 7, []
    assert data[:4] == b":W&B" and len(data) < 32_768
    while at + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        assert kind == 1
        found.append(Record.FromString(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return found


@needs("wandb")
def test_wandb_without_a_key_is_said_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    import wandb

    wandb.teardown()
    with pytest.raises(BadInput, match="WANDB_MODE=offline"):
        open_sink("wandb:project")
    wandb.teardown()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("tensorbord:x", "did you mean 'tensorboard'"),
        ("x", "there are tensorboard, mlflow, wandb"),
        ("tensorboard:", "DIR"),
    ],
)
def test_a_place_that_is_none_is_refused(spec: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        open_sink(spec)


def test_a_package_that_is_missing_is_named_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.sinks.open.find_spec", lambda name: None)
    for spec, extra in (("tensorboard:x", "tensorboard"), ("mlflow:", "mlflow"), ("wandb:x", "wandb")):
        with pytest.raises(MissingExtra, match=rf"leptonstore\[{extra}\]"):
            open_sink(spec)


class Failing:
    """Takes `good` calls and then raises; counts all of them."""

    name = "failing:here"

    def __init__(self, good: int) -> None:
        self.good, self.calls = good, 0

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        self._call()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call()

    def end(self, status: str) -> None:
        self._call()

    def _call(self) -> None:
        self.calls += 1
        if self.calls > self.good:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("good", [0, 1, 5, 11])
def test_a_sink_that_fails_is_told_once_and_called_no_more(good: int) -> None:
    sink = Failing(good)
    background = BackgroundSink(sink)
    with pytest.warns(LeptonWarning, match="failing:here gets no more values: .*No space left") as told:
        background.begin("run", {}, 0)
        for step in range(10):
            background.scalars(step, {"a": 1.0})
        background.end("finished")
    assert len(told) == 1 and sink.calls == good + 1


def test_a_sink_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.sinks.background.QUEUE_MAX", 3)
    stuck = threading.Event()

    class Hanging(Failing):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            stuck.wait(60)

    background = BackgroundSink(Hanging(99), end_s=0.05)
    background.begin("run", {}, 0)
    for step in range(100):
        background.scalars(step, {"a": 1.0})
    with pytest.warns(LeptonWarning, match=r"did not take the last values within 0\.05 s"):
        background.end("finished")
    assert background.left_out >= 95
    stuck.set()


def test_trees_are_flat_for_sinks_that_know_none() -> None:
    assert flattened({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
