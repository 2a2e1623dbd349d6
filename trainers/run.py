"""What the commands do, as plain functions: names in, a JSON-able dict out. Nothing here prints.

`lepton train`, `python -m trainers train` and a demo all call these, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from leptonstore.store.prices import DevicePrice, Price
from trainers import checkpoint as checkpoints
from trainers import parallel
from trainers.config import TrainConfig, require_trusted, with_values
from trainers.deploy import deploy
from trainers.evaluate import evaluate
from trainers.evaluation_report import Worst, write_evaluation
from trainers.loop import Trainer
from trainers.opened import open_model
from trainers.predict import BRANCH, predict_dataset, predict_images
from trainers.recipe import default_config
from trainers.result import EpochEvent, StepEvent
from trainers.sinks import Sink
from trainers.tasks import split_dataset, task_of
from trainers.usage import cost_of

ALL_ROWS = "all"


class Cache(NamedTuple):
    """A hot cache to read datasets through: its directory, and its budget (None: as it is)."""

    path: str | Path
    budget_bytes: int | None = None


def open_dataset(store: Store, dataset: str, cache: Cache | None) -> Dataset:
    """`dataset` (NAME or NAME@REF), read through `cache` when there is one. Raises as `Dataset.open` and `Dataset.cached`."""
    ds = Dataset.open(store, dataset)
    return ds if cache is None else ds.cached(cache.path, cache.budget_bytes)


def run_train(
    store: Store,
    dataset: str,
    values: Mapping[str, Any] | None = None,
    *,
    cache: Cache | None = None,
    run: str | None = None,
    resume: bool | Literal["auto"] = False,
    fallback: bool = False,
    replace: bool = False,
    max_steps: int | None = None,
    metrics: str | Path | None = None,
    log: Iterable[str | Sink] = (),
    profile: str | Path | None = None,
    prices: tuple[Sequence[Price], Sequence[DevicePrice]] = ((), ()),
    on_step: Iterable[Callable[[StepEvent], None]] = (),
    on_epoch: Iterable[Callable[[EpochEvent], None]] = (),
) -> dict[str, Any]:
    """Train on `dataset` (NAME or NAME@REF) and return the result (`TrainResult.to_dict`) with the data it came from.

    values: keys of the configuration that replace the recipe's, dotted ({"epochs": 3, "optimizer.lr": 1e-3}) or nested, as
    a TOML file has them; later ones win. With `resume` and a run name they replace those of the checkpoint, which then need
    not be given again. resume: "auto" starts when there is no checkpoint of the run yet. fallback: as of
    `Trainer.fit`. replace: start a run anew although its name was given and it has checkpoints, which is refused otherwise; a name that
    follows from data and configuration stands for one training, which may always be done again.
    prices: what tiers and devices cost, for the result's usage. metrics, log, profile, on_step, on_epoch: as of `Trainer`.
    Raises what `Trainer.fit` raises.
    """
    ds = open_dataset(store, dataset, cache)
    goes_on = run is not None and checkpoints.exists(store, run) if resume == "auto" else resume
    config, train, validation = plan(store, ds, values or {}, run if goes_on else None, fallback)
    with parallel.joined(config.device, config.parallel.mesh) as world:
        trainer = Trainer(
            config,
            store,
            train,
            validation,
            run=run,
            metrics=metrics,
            log=log,
            profile=profile,
            on_step=on_step,
            on_epoch=on_epoch,
            world=world,
        )
        result = trainer.fit(resume=resume, max_steps=max_steps, fallback=fallback, replace=replace or run is None)
    told = result.to_dict()
    told["usage"]["cost"] = cost_of(result.usage, store.url, *prices)
    return {"dataset": f"{ds.name}@{ds.ref}", "commit": ds.commit, "task": trainer.task.describe(), **told}


def plan(
    store: Store, ds: Dataset, values: Mapping[str, Any], resumed_run: str | None = None, fallback: bool = False
) -> tuple[TrainConfig, Dataset, Dataset]:
    """(configuration, training rows, validation rows): the recipe for this dataset, or the resumed run's configuration,
    with `values` put in."""
    asked = with_values(TrainConfig(), values)  # refuses what is no configuration before anything is read
    if resumed_run is not None:
        stored = checkpoints.load(store, resumed_run, fallback=fallback).config
        require_trusted(stored, asked, f"run {resumed_run!r}")
        config = with_values(stored, values)
        return config, *split_dataset(ds, config.data)
    train, validation = split_dataset(ds, asked.data)
    suited = with_values(default_config(len(train)), task_of(train, asked.data).defaults)
    return with_values(suited, values), train, validation


def run_evaluate(
    store: Store,
    model: str,
    dataset: str,
    split: str | None = None,
    cache: Cache | None = None,
    report: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate `model` (trainers.opened: a deployed one, or checkpoint/RUN) on rows of `dataset`.

    split: a name in the `split` column, or "all"; None takes the rows that training holds out.
    report: a page of HTML to write.
    """
    opened, ds = open_model(store, model), open_dataset(store, dataset, cache)
    found, task = opened.model, opened.model.task
    task.require_fits(ds)
    if split is None:
        _, rows = split_dataset(ds, opened.data)
    else:
        rows = ds if split == ALL_ROWS else ds.split(split)
    worst = Worst(task) if report is not None else None
    result = evaluate(found, rows, opened.data, task=task, watch=worst)
    told = {"model": model, "model_commit": found.commit, "dataset": dataset, "commit": ds.commit, "kind": task.kind}
    if worst is not None and report is not None:
        which = {None: "held out", ALL_ROWS: "all"}.get(split, f"split {split}")
        told["report"] = str(write_evaluation(report, found, rows, result, worst, which))
    return {**told, **result.to_dict()}


def run_predict_images(store: Store, model: str, paths: Sequence[str | Path]) -> dict[str, Any]:
    """Label image files with `model` (trainers.opened)."""
    opened = open_model(store, model).model
    predictions = [prediction.to_dict() for prediction in predict_images(opened, paths)]
    return {"model": model, "model_commit": opened.commit, "predictions": predictions}


def run_predict_dataset(store: Store, model: str, dataset: str, cache: Cache | None = None) -> dict[str, Any]:
    """Predict for every row of `dataset` with `model` (trainers.opened), as a new version."""
    opened, ds = open_model(store, model).model, open_dataset(store, dataset, cache)
    made = predict_dataset(store, opened, ds)
    return {
        "model": model,
        "model_commit": opened.commit,
        "dataset": f"{made.name}@{BRANCH}",
        "commit": made.commit,
        "parent": ds.commit,
        "rows": len(made),
    }


def run_deploy(
    store: Store,
    run: str,
    name: str | None = None,
    *,
    step: int | None = None,
    reference: str | None = None,
    pt2: str | Path | None = None,
) -> dict[str, Any]:
    """Make the newest checkpoint of `run` (or that of `step`) a model, ready for evaluate and predict."""
    bundle = deploy(store, run, name, step=step, reference=reference, pt2=pt2)
    return {
        "model": bundle.name,
        "commit": bundle.commit,
        "checkpoint": bundle.lineage["checkpoint"],
        "data": bundle.lineage["data"],
        "metrics": bundle.lineage["metrics"],
    }
