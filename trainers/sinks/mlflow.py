"""Curves in MLflow: a run of the experiment that is named after the dataset (or by MLFLOW_EXPERIMENT_NAME)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from trainers.sinks.sink import flattened

RUN_TAG = "lepton.run"  # finds the run again when it is resumed
# Bounds of MLflow's API.
PARAMS_MAX, PARAM_CHARS_MAX = 100, 6_000
STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowSink:
    """Writes to the tracking server or database at `uri`; "" takes MLflow's own choice. A resumed run goes on in its MLflow run."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._id = ""

    @property
    def name(self) -> str:
        """What warnings call it."""
        return f"mlflow:{self._uri}"

    def begin(self, run: str, facts: Mapping[str, Any], step: int) -> None:
        """As Sink."""
        import mlflow

        self._client = client = mlflow.MlflowClient(tracking_uri=self._uri or None)
        experiment = self._experiment(facts)
        quoted = run.replace("'", "")  # names of runs have none
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{quoted}'", max_results=1) if step else []
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        self._id = client.create_run(experiment, run_name=run, tags={RUN_TAG: run}).info.run_id
        params = [
            mlflow.entities.Param(key, str(value)[:PARAM_CHARS_MAX])
            for key, value in flattened(facts.get("config", {})).items()
        ]
        for at in range(0, len(params), PARAMS_MAX):
            client.log_batch(self._id, params=params[at : at + PARAMS_MAX])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Sink."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now_ms, step) for name, value in values.items()])

    def end(self, status: str) -> None:
        """As Sink."""
        if self._id:
            self._client.set_terminated(self._id, STATUSES[status])

    def _experiment(self, facts: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or facts.get("data", {}).get("training", {}).get(
            "name", "lepton"
        )
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))


def open_place(place: str) -> MlflowSink:
    """`place` is a tracking URI: http://…, sqlite:///…, databricks."""
    return MlflowSink(place)
