"""Regression on columns of single numbers, as they come from a CSV: trained, evaluated, predicted, deployed; nulls and equal labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from task_data import write_numbers, write_table

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.process.operations.stack import Stack
from leptonstore.process.pipeline import Pipeline
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import DataConfig
from trainers.opened import open_model
from trainers.parallel import World
from trainers.run import run_deploy, run_evaluate, run_predict_dataset, run_train
from trainers.tasks import Regression

QUICK: dict[str, Any] = {"device": "cpu", "threads": 1, "epochs": 6, "data.inputs": "a", "data.labels": "y"}


def write_scalars(store: Store, name: str = "scalars", **columns: pa.Array) -> Dataset:
    """a, b (float64), y = 2 a - b + 1, as an import of a CSV makes them; columns: others in their place."""
    a, b = np.random.default_rng(0).normal(size=(2, 60))
    made = {"a": pa.array(a), "b": pa.array(b), "y": pa.array(2 * a - b + 1), **columns}
    schema = pa.schema([pa.field(key, value.type) for key, value in made.items()])
    return write_table(store, name, schema, list(made.values()), "b")


def test_a_column_of_single_numbers_goes_all_the_way(store: Store) -> None:
    ds = write_scalars(store)
    trained = run_train(store, "scalars", QUICK, run="scalars-run")
    losses = [record["val_loss"] for record in trained["history"]]
    assert losses[-1] < losses[0]
    task = checkpoints.load(store, "scalars-run").task
    assert isinstance(task, Regression) and (task.features, task.targets) == (1, 1)

    run_deploy(store, "scalars-run", "scalars-model")
    by_run = run_evaluate(store, "checkpoint/scalars-run", "scalars")
    by_model = run_evaluate(store, "scalars-model", "scalars")
    assert by_run["loss"] == pytest.approx(losses[-1]) and by_model["loss"] == pytest.approx(losses[-1])

    made = run_predict_dataset(store, "scalars-model", "scalars")
    rows = Dataset.open(store, made["dataset"]).to_arrow(["a", "predicted"])
    model = open_model(store, "scalars-model").model
    expected = model(torch.tensor(ds.to_arrow(["a"])["a"].to_numpy(), dtype=torch.float32)[:, None])
    assert np.allclose(rows["predicted"].to_numpy(), expected[:, 0].numpy(), atol=1e-6)


def test_several_columns_are_learnt_from_when_they_are_stacked(store: Store) -> None:
    write_scalars(store)
    Pipeline("scalars", [Stack(["a", "b"])], "scalars@stacked").run(store)
    settings = {**QUICK, "epochs": 40, "data.inputs": "features", "optimizer.lr": 0.05}
    one = run_train(store, "scalars", {**settings, "data.inputs": "a"})["val_loss"]
    both = run_train(store, "scalars@stacked", settings)["val_loss"]
    assert both < one / 4, "y is made of both"


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.bool_(), pa.float32()], ids=str)
def test_numbers_of_every_kind_are_a_feature(store: Store, kind: pa.DataType) -> None:
    write_scalars(store, a=pa.array(np.arange(60) % 2).cast(kind))
    assert run_train(store, "scalars", {**QUICK, "epochs": 1})["val_loss"] is not None


def test_inputs_of_several_dimensions_are_flat_for_the_model_too(store: Store) -> None:
    write_numbers(store)
    values = {**QUICK, "data.inputs": "features", "data.labels": "value", "epochs": 1}
    run_train(store, "numbers", values, run="numbers-run")
    assert checkpoints.load(store, "numbers-run").task.to_dict()["features"] == 5


@pytest.mark.parametrize("column", ["a", "y"])
def test_nulls_are_refused_with_the_fix_and_rows_without_them_are_not(store: Store, column: str) -> None:
    values = pa.array([None if row == 7 else float(row) for row in range(60)])
    ds = write_scalars(store, **{column: values})
    with pytest.raises(BadInput, match=rf"column '{column}' of scalars has nulls in 1 of .*lepton delete scalars@main"):
        run_train(store, "scalars", {**QUICK, "epochs": 1})
    config, whole = DataConfig(inputs="a", labels="y"), ds.filter(f"{column} is not null")
    loader = Regression.of(whole, config).loader(whole, config, 0, World(), train=False)
    assert len(loader.dataset) == 59


def test_labels_that_are_all_equal_train_and_have_no_r2(store: Store) -> None:
    """r² is no number there, which JSON, and so a checkpoint, cannot hold."""
    write_scalars(store, y=pa.array(np.ones(60)))
    trained = run_train(store, "scalars", {**QUICK, "epochs": 2, "evaluate_every_steps": 2}, run="run")
    assert [sorted(record) for record in trained["history"]] == [
        ["epoch", "train_loss", "val_loss", "val_mean_absolute_error"]
    ] * 2
    assert checkpoints.load(store, "run").manifest["history"] == trained["history"]
