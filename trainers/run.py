"""What the commands do, as plain functions: names in, a JSON-able dict out. Nothing here prints.

`lepton train`, `python -m trainers train` and a demo all call these, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput
from leptonstore.store import Store
from leptonstore.store.prices import DevicePrice, Price
from trainers import checkpoint as checkpoints
from trainers import parallel
from trainers.config import DataConfig, TrainConfig, from_dict, require_trusted, with_values
from trainers.deploy import Bundle, deploy, load_bundle
from trainers.evaluate import evaluate
from trainers.evaluation import ClassEvaluation
from trainers.loop import Trainer
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
    not be given again. resume: "auto" starts when there is no checkpoint of the run yet.
    prices: what tiers and devices cost, for the result's usage. metrics, log, profile, on_step, on_epoch: as of `Trainer`.
    Raises what `Trainer.fit` raises.
    """
    ds = open_dataset(store, dataset, cache)
    goes_on = run is not None and checkpoints.exists(store, run) if resume == "auto" else resume
    config, train, validation = plan(store, ds, values or {}, run if goes_on else None)
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
        result = trainer.fit(resume=resume, max_steps=max_steps)
    told = result.to_dict()
    told["usage"]["cost"] = cost_of(result.usage, store.url, *prices)
    return {"dataset": f"{ds.name}@{ds.ref}", "commit": ds.commit, **told}


def plan(
    store: Store, ds: Dataset, values: Mapping[str, Any], resumed_run: str | None = None
) -> tuple[TrainConfig, Dataset, Dataset]:
    """(configuration, training rows, validation rows): the recipe for this dataset, or the resumed run's configuration,
    with `values` put in."""
    asked = with_values(TrainConfig(), values)  # refuses what is no configuration before anything is read
    if resumed_run is not None:
        stored = checkpoints.load(store, resumed_run).config
        require_trusted(stored, asked, f"run {resumed_run!r}")
        config = with_values(stored, values)
        return config, *split_dataset(ds, config.data)
    train, validation = split_dataset(ds, asked.data)
    suited = with_values(default_config(len(train)), task_of(train, asked.data).defaults)
    return with_values(suited, values), train, validation


def run_evaluate(
    store: Store, model: str, dataset: str, split: str | None = None, cache: Cache | None = None
) -> dict[str, Any]:
    """Evaluate the deployed `model` on rows of `dataset`.

    split: a name in the `split` column, or "all"; None takes the rows that training holds out.
    """
    bundle, ds = load_bundle(store, model), open_dataset(store, dataset, cache)
    data = _data_of(bundle)
    if split is None:
        _, rows = split_dataset(ds, data)
    else:
        rows = ds if split == ALL_ROWS else ds.split(split)
    result = evaluate(bundle, rows, data)
    if isinstance(result, ClassEvaluation) and result.classes != bundle.classes:
        raise BadInput(f"classes of {ds.name} are {_few(result.classes)}; model {model} has {_few(bundle.classes)}")
    return {"model": model, "model_commit": bundle.commit, "dataset": dataset, "commit": ds.commit, **result.to_dict()}


def run_predict_images(store: Store, model: str, paths: Sequence[str | Path]) -> dict[str, Any]:
    """Label image files with the deployed `model`."""
    bundle = load_bundle(store, model)
    predictions = [prediction.to_dict() for prediction in predict_images(bundle, paths)]
    return {"model": model, "model_commit": bundle.commit, "predictions": predictions}


def run_predict_dataset(store: Store, model: str, dataset: str, cache: Cache | None = None) -> dict[str, Any]:
    """Label every row of `dataset` with the deployed `model`, as a new version."""
    bundle, ds = load_bundle(store, model), open_dataset(store, dataset, cache)
    made = predict_dataset(store, bundle, ds)
    return {
        "model": model,
        "model_commit": bundle.commit,
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


def _data_of(bundle: Bundle) -> DataConfig:
    """The columns and splits that the model was trained with; the lineage holds the whole configuration."""
    return from_dict(bundle.lineage.get("config", {})).data


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
