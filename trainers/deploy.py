"""Deploying: a checkpoint becomes a model bundle (trainers.bundle). The same checkpoint twice gives the same commit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leptonstore.dataset import write_files
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, FormatDamaged, SourceError
from leptonstore.format.framed import canonical_json
from leptonstore.store import Store
from leptonstore.version import __version__
from trainers import checkpoint as checkpoints
from trainers.bundle import (
    BRANCH,
    FORMAT,
    Bundle,
    input_of,
    load_bundle,
    read_bundle,
    require_parity,
    safetensors_bytes,
)
from trainers.checkpoint import Checkpoint
from trainers.deploy_report import report_html
from trainers.program import Program, export
from trainers.provenance import source_of
from trainers.signature import TensorSpec
from trainers.tasks import ImageClassification, Task
from trainers.tasks.chains import trusted_chain
from trainers.weights import weights_digest

__all__ = ["Bundle", "bundle_files", "deploy", "load_bundle"]

PARITY_ROWS = 4


def deploy(
    store: Store,
    run: str,
    name: str | None = None,
    *,
    step: int | None = None,
    reference: str | None = None,
    pt2: str | Path | None = None,
) -> Bundle:
    """Make a bundle of the newest checkpoint of `run` (or that of `step`), and load it back.

    name: of the model; the run's name by default. reference: confirms a model outside trainers.models
    (`checkpoint.build_stored_model`). pt2: also write torch.export's standard archive to this file.
    Raises RefMissing (no such checkpoint), BadInput (a model that no program can hold: the operator is named), MissingExtra.
    """
    checkpoint = checkpoints.load(store, run, step)
    model, task = checkpoints.build_stored_model(checkpoint, reference).eval(), checkpoint.task
    archive = io.BytesIO() if pt2 is not None else None
    lineage = _lineage(checkpoint, weights_digest(model.state_dict()))
    files = [*bundle_files(model, task, archive), ("report.html", report_html(name or run, task, model, lineage))]
    if pt2 is not None and archive is not None:
        _write_file(pt2, archive.getvalue())
    written = write_files(
        store,
        "model",
        name or run,
        files,
        lineage=lineage,
        message=f"deploy {checkpoint.branch} of run {run}",
        branch=BRANCH,
        metrics=_metrics(checkpoint),
    )
    return read_bundle(written, name or run)


def bundle_files(model: nn.Module, task: Task, pt2: io.BytesIO | None = None) -> list[tuple[str, Buffer]]:
    """The files of a bundle without its report, deterministic. The model is on the CPU, in eval mode.

    Raises BadInput: torch.export cannot trace the model, the program would compute something else, or the task's transforms are not
    this project's, so that nobody could run them without trusting the bundle.
    """
    _require_own_transforms(task)
    # Made up, so that a bundle that is handed on shows nobody's data.
    inputs = task.example(PARITY_ROWS, torch.device("cpu"))
    with torch.no_grad():
        outputs = model(inputs).to(torch.float32).contiguous()
    if outputs.dim() < 2 or len(outputs) != len(inputs):
        found = f"{len(outputs)} row{'s' * (len(outputs) != 1)}" if outputs.dim() else "no rows"
        raise BadInput(f"this model gives {found} for {len(inputs)}; a bundle answers every row by itself")
    program, weights = export(model, inputs, pt2)
    require_parity(Program(program, weights)(inputs), outputs, "the exported program", BadInput)
    takes = input_of(task)
    gives = TensorSpec("logits" if task.kind != "regression" else "outputs", "float32", tuple(outputs.shape[1:]))
    about = {
        "format": FORMAT,
        "version": _version(task),
        "task": task.to_dict(),
        "input": takes.to_dict(),
        "output": gives.to_dict(),
    }
    return [
        ("bundle.json", canonical_json(about)),
        ("program.json", canonical_json(program)),
        ("model.safetensors", safetensors_bytes(weights)),
        ("preprocessing.json", canonical_json(_preprocessing(model, task, takes))),
        ("parity.safetensors", safetensors_bytes({takes.name: inputs.contiguous(), gives.name: outputs})),
    ]


def _version(task: Task) -> int:
    """The oldest that can hold it, so that older readers take what they can."""
    plain = isinstance(task, ImageClassification) and not task.transforms and task.dtype == "uint8"
    return 1 if plain else 2


def _preprocessing(model: nn.Module, task: Task, takes: TensorSpec) -> dict[str, Any]:
    describe = getattr(getattr(model, "preprocess", None), "describe", None)
    told: dict[str, Any] = describe() if callable(describe) else {"input": takes.to_dict()}
    if isinstance(task, ImageClassification) and task.transforms:
        told["transforms"] = [dict(step) for step in task.transforms]
    return told


def _require_own_transforms(task: Task) -> None:
    if isinstance(task, ImageClassification):
        try:
            trusted_chain(list(task.transforms), "this model")
        except FormatDamaged as error:
            raise BadInput(
                f"{error}: a bundle holds nobody's code; say what evaluation does with transforms of loaders.transforms "
                "(data.validation_transforms), and train again"
            ) from None


def _lineage(checkpoint: Checkpoint, weights: str) -> dict[str, Any]:
    body = checkpoint.manifest
    return {
        "operation": "deploy",
        "checkpoint": {"run": checkpoint.run, "branch": checkpoint.branch, "commit": checkpoint.commit},
        "data": body["data"],
        "config": body["config"],
        "metrics": _metrics(checkpoint),
        "environment": body["environment"],
        "code": {"leptonstore": __version__},
        "step": body["step"],
        "loader": body["loader"],
        "weights": weights,
        **source_of(body),
    }


def _metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of the last finished epoch; empty before the first."""
    return dict(checkpoint.manifest["history"][-1]) if checkpoint.manifest["history"] else {}


def _write_file(path: str | Path, data: bytes) -> None:
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror}", str(path)) from None
