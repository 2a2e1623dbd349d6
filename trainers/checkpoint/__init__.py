"""Checkpoints in the store: a commit each, without parents, under the ref `checkpoint/<run>/step-<9 digits>`.

    with Checkpointer(store, "my-run", world, Retention(keep_last=3), asynchronous=True) as checkpointer:
        checkpointer.save(step, {"model": {...}, "optimizer": {...}}, manifest={"note": "JSON"}, metrics={"loss": 0.1})
    saved = load(store, "my-run")              # the newest; saved.manifest, saved.paths, saved.tensor("model/weight")
    restore(saved, state)                      # fills tensors, DTensors and numpy arrays in place, at any number of ranks

A state is a nested dict of torch tensors, DTensors, numpy arrays, `Shards` of another framework, and JSON scalars (leaves.py). Ranks
are those of a `World`, or one process without torch.distributed; `dcp.py` is the same for torch.distributed.checkpoint.

cells         the grid of pieces           layout        what tensors there are, who holds what       plan      who saves which cell
leaves        a state <-> paths            staging       bytes that may not change any more           ranks     what ranks tell each other
put           cells into the store         checkpointer  Checkpointer: save, wait                     retention what is kept
manifest      format on disk               saved         load, Checkpoint                             read, restore  back into tensors
resume        what this project's own loop keeps in a manifest, and how it goes on
objects       what any other loop trains with: save_objects, restore_objects

State of the API: Checkpointer, Retention, load, Checkpoint, restore, exists, branch_of are meant to stay.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainers.checkpoint.checkpointer import Checkpointer
from trainers.checkpoint.leaves import Shards, State
from trainers.checkpoint.manifest import FORMAT, VERSION
from trainers.checkpoint.restore import restore
from trainers.checkpoint.retention import Retention, apply_retention
from trainers.checkpoint.saved import Checkpoint, branch_of, by_age, exists, load, open_checkpoint, run_and_step

if TYPE_CHECKING:
    from trainers.checkpoint.objects import ObjectCheckpointer as ObjectCheckpointer
    from trainers.checkpoint.objects import restore_objects as restore_objects
    from trainers.checkpoint.objects import save_objects as save_objects
    from trainers.checkpoint.resume import build_stored_model as build_stored_model
    from trainers.checkpoint.resume import checkpointer_of as checkpointer_of
    from trainers.checkpoint.resume import environment_warnings as environment_warnings
    from trainers.checkpoint.resume import require_same_run as require_same_run
    from trainers.checkpoint.resume import require_trusted as require_trusted
    from trainers.checkpoint.resume import restore_model as restore_model
    from trainers.checkpoint.resume import restore_optimizer as restore_optimizer
    from trainers.checkpoint.resume import restore_rng as restore_rng
    from trainers.checkpoint.resume import rng_state as rng_state
    from trainers.checkpoint.resume import state_of as state_of

# Resolved when they are first used: these need torch, which a training with JAX does not have.
_HOMES = {
    "ObjectCheckpointer": "objects",
    "build_stored_model": "resume",
    "checkpointer_of": "resume",
    "environment_warnings": "resume",
    "require_same_run": "resume",
    "require_trusted": "resume",
    "restore_model": "resume",
    "restore_objects": "objects",
    "restore_optimizer": "resume",
    "restore_rng": "resume",
    "rng_state": "resume",
    "save_objects": "objects",
    "state_of": "resume",
}

__all__ = [
    "FORMAT",
    "VERSION",
    "Checkpoint",
    "Checkpointer",
    "ObjectCheckpointer",
    "Retention",
    "Shards",
    "State",
    "apply_retention",
    "branch_of",
    "build_stored_model",
    "by_age",
    "checkpointer_of",
    "environment_warnings",
    "exists",
    "load",
    "open_checkpoint",
    "require_same_run",
    "require_trusted",
    "restore",
    "restore_model",
    "restore_objects",
    "restore_optimizer",
    "restore_rng",
    "rng_state",
    "run_and_step",
    "save_objects",
    "state_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trainers.checkpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(f"trainers.checkpoint.{_HOMES[name]}"), name)
