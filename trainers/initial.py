"""Where weights come from before the first step (model.init), and which of them are not trained (model.freeze): fine-tuning.

Weights are matched by name and shape. What the earlier model does not have, or has in another shape (the head, for other classes), is
drawn anew as the seed says, and told; a frozen weight must have come from somewhere, or it would be noise for ever. Frozen weights are the
same bytes in every checkpoint, and the store keeps them once.

What is frozen does not move in other ways either: a part of the model all of whose weights are frozen stays in eval mode, so that the
statistics of its batch norms and its dropout rest too.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from leptonstore.dataset import FileTable, list_refs
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.config import ModelConfig
from trainers.reference import nearest

# The kinds of refs that hold weights, as prefixes of model.init.
CHECKPOINT, MODEL = "checkpoint", "model"
WEIGHTS = "model.safetensors"  # of a model
PREPROCESS = "preprocess."  # what is done to inputs is the new task's, not the earlier model's
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Initialised:
    """Where weights came from: source ("checkpoint/run@step-000000012" or "model/name"), its commit, names of what was taken and drawn."""

    source: str
    commit: str
    taken: tuple[str, ...]
    drawn: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what checkpoints record of it."""
        return {"source": self.source, "commit": self.commit, "taken": len(self.taken), "drawn": list(self.drawn)}

    def told(self) -> str:
        """One line for people."""
        anew = f"; drawn anew: {_some(self.drawn)}" if self.drawn else ""
        return f"{len(self.taken)} of {len(self.taken) + len(self.drawn)} tensors come from {self.source} {self.commit[:12]}{anew}"


def prepare_weights(model: nn.Module, config: ModelConfig, store: Store, fresh: bool = True) -> Initialised | None:
    """Give a new model the weights of `config.init`, then freeze `config.freeze`. On the CPU, before it is wrapped.

    fresh: False leaves weights alone, as those of a checkpoint follow.
    Raises RefMissing, BadInput (nothing fits, a pattern that names no weight, a frozen weight that came from nowhere), FormatDamaged.
    """
    frozen = frozen_names(model, config.freeze)
    found = initialise(model, store, config.init) if config.init is not None and fresh else None
    if found is not None:
        lost = [name for name in frozen if name in found.drawn]
        if lost:
            raise BadInput(
                f"model.freeze would freeze {_some(lost)}, which {found.source} does not have in this shape: the weights would stay "
                "as they were drawn; freeze less, or start from a model of the same architecture"
            )
    freeze(model, frozen)
    return found


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The weights that patterns name: by the beginning of the name ("network.stem"), or with * and ? ("*.bias").

    Raises BadInput, with the nearest name, for a pattern that names none.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if _matches(name, pattern)]
        if not matched:
            parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
            raise BadInput(f"model.freeze names no weight of this model: {pattern!r}{nearest(pattern, sorted(parts))}")
        found.update(matched)
    return [name for name in names if name in found]


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Train these weights no more; parts of the model without any other weight stay in eval mode."""
    weights = dict(model.named_parameters())
    for name in names:
        weights[name].requires_grad_(False)
    _rest(model)


def initialise(model: nn.Module, store: Store, source: str) -> Initialised:
    """Copy weights and buffers of `source` into a model, by name. See `prepare_weights`.

    source: RUN or RUN@step-N of a checkpoint, or NAME of a model; "checkpoint/..." or "model/..." where a name is both.
    """
    where, commit, names, read = _open(store, source)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(PREPROCESS)}
    taken: list[str] = []
    with torch.no_grad():
        for name, target in state.items():
            if name not in names:
                continue
            value = read(name)
            if value.shape == target.shape and value.dtype == target.dtype:
                target.copy_(value)
                taken.append(name)
    if not taken:
        raise BadInput(
            f"model.init is {source!r}, of which no tensor fits this model: it has {_some(sorted(names))} and "
            f"the model {_some(list(state))}"
        )
    return Initialised(where, commit, tuple(taken), tuple(name for name in state if name not in taken))


def _open(store: Store, source: str) -> tuple[str, str, set[str], Callable[[str], Tensor]]:
    """(what it is called, its commit, names of its tensors, how to read one)."""
    store.refresh()
    kind, slash, name = source.partition("/")
    if not slash or kind not in (CHECKPOINT, MODEL):
        kind, name = _kind_of(store, source), source
    if kind == MODEL:
        from trainers.bundle import parse_safetensors  # not for runs that begin with what the seed says

        files = FileTable.open(store, MODEL, name)
        if WEIGHTS not in files.paths():
            raise FormatDamaged(f"model {name} has no {WEIGHTS}")
        tensors = parse_safetensors(files.read(WEIGHTS), f"{WEIGHTS} of model {name}")
        return f"{MODEL}/{name}", str(files.commit), set(tensors), tensors.__getitem__
    try:
        run, step = checkpoints.run_and_step(name)
    except ValueError:
        raise BadInput(f"model.init is {source!r}; a checkpoint is RUN or RUN@step-N") from None
    saved = checkpoints.load(store, run, step)
    prefix = "model/"
    names = {path.removeprefix(prefix) for path in saved.manifest["tensors"] if path.startswith(prefix)}
    return f"{CHECKPOINT}/{run}@{saved.branch}", saved.commit, names, lambda name: saved.tensor(prefix + name)


def _kind_of(store: Store, source: str) -> str:
    name = source.partition("@")[0]
    kinds = [kind for kind in (CHECKPOINT, MODEL) if any(ref.name == name for ref in list_refs(store, kind))]
    if len(kinds) == 2:
        raise BadInput(f"{name!r} is a run and a model: write model.init as {CHECKPOINT}/{source} or {MODEL}/{source}")
    if not kinds:
        known = sorted({ref.name for kind in (CHECKPOINT, MODEL) for ref in list_refs(store, kind)})
        hint = nearest(name, known) or f"; there are {', '.join(known) or 'none'}"
        raise BadInput(f"model.init is {source!r}, and the store has no run or model of that name{hint}")
    return kinds[0]


def _rest(module: nn.Module) -> None:
    """Keep the largest parts all of whose weights are frozen in eval mode."""
    weights = list(module.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        module.eval()
        module.train = types.MethodType(_stays, module)  # type: ignore[method-assign]  # of this one module
        return
    for child in module.children():
        _rest(child)


def _stays(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (
        f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    )
