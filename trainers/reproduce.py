"""Train a model again, from what its lineage says, and compare: weights, metrics, receipt.

    lineage -> configuration, version of the data, step, environment -> the same run under a scratch name -> what differs

Nothing but the commit's lineage is needed: the checkpoint may have been let go, the run's own log be gone. What decides the last bits is
set as it was (threads) or named where it cannot be (versions, instruction set, number of ranks).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonstore.dataset import Dataset, FileTable, delete_ref, list_refs
from leptonstore.dataset.lineage import find
from leptonstore.errors import BadInput, FormatDamaged, RefMissing
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers import config_tree, provenance
from trainers.checkpoint import Checkpoint
from trainers.config import TrainConfig, from_dict, with_values
from trainers.loop import Trainer
from trainers.parallel import World
from trainers.reference import is_trusted
from trainers.result import EpochEvent, StepEvent
from trainers.tasks import split_dataset
from trainers.weights import PREFIX, checkpoint_digest, weight_names

SCRATCH = "reproduce-"  # and the first digits of what is reproduced: the run that is made and removed again
TENSORS_TOLD = 20  # that differ; the number of all is told too


@dataclass(frozen=True)
class Record:
    """What is to be made again, as its commit says it.

    checkpoint: the one that the weights are of, None when it is not kept any more. weights: their digest, "" when nobody knows it.
    init: {source, commit} of the checkpoint or model that the first weights were of; empty when all were drawn.
    """

    kind: str
    name: str
    commit: str
    run: str
    step: int
    config: TrainConfig
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    code: Mapping[str, Any]
    stretches: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]
    receipt: Mapping[str, Any]
    not_reproducible: Sequence[str]
    weights: str
    init: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    @property
    def world_size(self) -> int:
        """Ranks of the last stretch."""
        size = self.environment.get("world_size", 1)
        return size if isinstance(size, int) else 1


@dataclass(frozen=True)
class Tensor:
    """A weight that came out otherwise: the largest and the mean difference of its values, as float64."""

    name: str
    max_difference: float
    mean_difference: float


@dataclass(frozen=True)
class Comparison:
    """What came out. `why`: what is different from when it was trained, each a sentence; empty when nothing is known to be."""

    record: Record
    weights: str
    metrics: Mapping[str, Any]
    receipt: Mapping[str, Any]
    tensors: Sequence[Tensor]
    changed: int
    why: Sequence[str]
    seconds: float
    run: str

    @property
    def equal_weights(self) -> bool:
        """Bit for bit."""
        return self.weights == self.record.weights

    @property
    def equal_metrics(self) -> bool:
        """Of the last finished epoch."""
        return dict(self.metrics) == dict(self.record.metrics)

    @property
    def equal_receipt(self) -> bool:
        """The same rows in the same order; true where the record has none."""
        return not self.record.receipt or dict(self.receipt) == dict(self.record.receipt)

    @property
    def equal(self) -> bool:
        """All of it."""
        return self.equal_weights and self.equal_metrics and self.equal_receipt

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        record = self.record

        def pair(recorded: Any, here: Any, equal: bool) -> dict[str, Any]:
            return {"recorded": recorded, "here": here, "equal": equal}

        return {
            "model": record.name,
            "kind": record.kind,
            "commit": record.commit,
            "run": record.run,
            "step": record.step,
            "equal": self.equal,
            "weights": pair(record.weights, self.weights, self.equal_weights),
            "metrics": pair(_finite(record.metrics), _finite(self.metrics), self.equal_metrics),
            "receipt": pair(dict(record.receipt), dict(self.receipt), self.equal_receipt),
            "tensors_changed": self.changed,
            "tensors": [_finite(vars(tensor)) for tensor in self.tensors],
            "why": list(self.why),
            "seconds": self.seconds,
            "scratch_run": self.run,
        }


def read_record(store: Store, spec: str, kind: str | None = None) -> Record:
    """What a model or checkpoint says of how it was made. Raises RefMissing; BadInput when it was not trained here."""
    found, name, commit = find(store, spec, kind)
    if found == "dataset":
        raise BadInput(f"{name} is a dataset; give a model, or a run (its newest checkpoint)")
    lineage = FileTable.open(store, found, f"{name.partition('@')[0]}@{commit}").lineage
    if "objects" in lineage:
        raise BadInput(f"{found} {name} was saved by a loop of its own: train it again with the program that made it")
    missing = [key for key in ("config", "data", "environment", "step") if key not in lineage]
    if missing:
        raise BadInput(
            f"{found} {name} does not say how it was trained (no {', '.join(missing)}): it was imported, or made before there was lineage"
        )
    try:
        told = lineage.get("provenance") or {}
        checkpoint = _kept_checkpoint(store, found, name, commit, lineage)
        return Record(
            kind=found,
            name=name,
            commit=commit,
            run=str(lineage["run"] if found == "checkpoint" else lineage["checkpoint"]["run"]),
            step=int(lineage["step"]),
            config=from_dict(lineage["config"]),
            data=dict(lineage["data"]),
            environment=dict(lineage["environment"]),
            code=dict(provenance.last_stretch(lineage)["code"]),
            stretches=list(told.get("stretches", ())),
            metrics=_metrics(lineage, checkpoint),
            receipt={key: value for key, value in (lineage.get("receipt") or {}).items() if key in ("head", "steps")},
            not_reproducible=list(told.get("not_reproducible", ())),
            weights=str(lineage.get("weights") or (checkpoint_digest(checkpoint) if checkpoint else "")),
            init=dict(lineage.get("init") or {}),
            checkpoint=checkpoint,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatDamaged(f"the lineage of {found} {name} is damaged: {error!r}") from None


def require_confirmed(record: Record, references: Sequence[str]) -> None:
    """Raises BadInput when training it would import code outside of this project that the caller did not name."""
    for key, stored in config_tree.references(config_tree.as_tree(record.config)):
        if stored not in references and not is_trusted(stored):
            raise BadInput(
                f"{record.kind} {record.name} was trained with {key} {stored!r}, code outside of this project: confirm it with "
                f"--model {stored}"
            )


def require_reproducible(record: Record, ranks: int) -> None:
    """Raises BadInput that names why training again cannot give the same bits, and what to do."""
    if record.not_reproducible:
        raise BadInput(
            f"{record.kind} {record.name} is not reproducible: {', '.join(record.not_reproducible)} was given as an object that no "
            "configuration can hold: train it again with the program that made it"
        )
    if not record.weights:
        raise BadInput(
            f"nobody knows the weights of {record.kind} {record.name}: its checkpoint is gone and it names no digest"
        )
    sizes = {one["environment"].get("world_size") for one in record.stretches} or {record.world_size}
    if len(sizes) > 1:
        raise BadInput(
            f"{record.kind} {record.name} was trained by {' and '.join(map(str, sorted(sizes)))} ranks one after another: the rows can "
            "be the same, the bits cannot; --force trains it by as many ranks as there are here, and compares"
        )
    if ranks != record.world_size:
        start = f"torchrun --nproc-per-node {record.world_size} --no-python " if record.world_size > 1 else ""
        raise BadInput(
            f"{record.kind} {record.name} was trained by {record.world_size} rank{'s' * (record.world_size > 1)}, and here are {ranks}: "
            f"start it with `{start}lepton reproduce {record.name}`; --force compares all the same"
        )


def reproduce(
    store: Store,
    record: Record,
    world: World,
    *,
    keep: str | None = None,
    on_step: Iterable[Callable[[StepEvent], None]] = (),
    on_epoch: Iterable[Callable[[EpochEvent], None]] = (),
) -> Comparison:
    """Train what `record` says, up to its step, and compare. Collective: all ranks of `world` call it; rank 0's answer is whole.

    keep: keep the run under this name; else it is removed from the store afterwards, and what it shares is all that is left.
    Raises RefMissing (the data is gone, or the checkpoint that it began with), BadInput (its rows cannot be found again; the name is
    taken), and what `Trainer.fit` raises.
    """
    began, run = time.monotonic(), keep or f"{SCRATCH}{record.commit[:12]}"
    train, validation = open_rows(store, record)
    if keep is not None and checkpoints.exists(store, keep):
        raise BadInput(f"run {keep!r} has checkpoints already: choose another name to keep this one by")
    trainer = Trainer(
        _config(store, record),
        store,
        train,
        validation,
        run=run,
        world=world,
        on_step=on_step,
        on_epoch=on_epoch,
    )
    with _scratch(store, run, keep is None and world.is_main):
        world.barrier()  # what an interrupted reproduction left is gone before anybody looks
        trainer.fit(max_steps=record.step)
        return _compare(record, checkpoints.load(store, run), time.monotonic() - began, run)


def open_rows(store: Store, record: Record) -> tuple[Dataset, Dataset]:
    """(training rows, validation rows), the very same ones. Raises RefMissing, BadInput."""
    both = [_rows_of(store, record, role, side) for side, role in enumerate(("training", "validation"))]
    return both[0], both[1]


def _rows_of(store: Store, record: Record, role: str, side: int) -> Dataset:
    told = record.data.get(role) or {}
    name, commit, fingerprint = told.get("name"), told.get("commit"), told.get("fingerprint")
    try:
        ds = Dataset.open(store, f"{name}@{commit}")
    except RefMissing as error:
        raise RefMissing(
            f"{record.kind} {record.name} was trained on {name} {str(commit)[:12]}, which is not here: {error}"
        ) from None
    candidates = [ds]
    with contextlib.suppress(BadInput):
        candidates.insert(0, split_dataset(ds, record.config.data)[side])
    for rows in candidates:
        if rows.fingerprint == fingerprint:
            return rows
    raise BadInput(
        f"the {role} rows of {record.kind} {record.name} ({told.get('rows')} of {name} {str(commit)[:12]}) were chosen by code that its "
        "lineage does not name: neither the whole version nor the split of its configuration has their fingerprint"
    )


def _config(store: Store, record: Record) -> TrainConfig:
    """With what decides the bits as it was; checkpoints only as far as they are needed here."""
    values: dict[str, Any] = {
        "checkpoint.keep_last": 1,
        "checkpoint.keep_every": None,
        "checkpoint.keep_best": 0,
        "checkpoint.every_steps": None,
        "checkpoint.asynchronous": False,
    }
    for key, kind in (("threads", int), ("device", str)):
        if isinstance(record.environment.get(key), kind):
            values[key] = record.environment[key]
    if record.init:
        source, wanted = str(record.init.get("source")), str(record.init.get("commit"))
        if find(store, source)[2] != wanted:
            raise BadInput(
                f"{record.kind} {record.name} began with commit {wanted[:12]}, which was {source}; that is another one by now"
            )
        values["model.init"] = source
    return with_values(record.config, values)


def _compare(record: Record, made: Checkpoint, seconds: float, run: str) -> Comparison:
    here, body = checkpoint_digest(made), made.manifest
    stretch = provenance.last_stretch(body)
    why = [
        *provenance.differences(record.environment, stretch["environment"]),
        *_code_differences(record.code, stretch["code"]),
        *(
            f"the run went on in another environment from step {one.get('step')}: {', '.join(told)}"
            for before, one in zip(record.stretches, record.stretches[1:], strict=False)
            if (told := provenance.differences(before["environment"], one["environment"]))
        ),
    ]
    tensors: list[Tensor] = []
    if here != record.weights and record.checkpoint is not None:
        tensors = tensor_differences(record.checkpoint, made)
    receipt = body.get("receipt") or {}
    return Comparison(
        record=record,
        weights=here,
        metrics=_last(body["history"]),
        receipt={key: receipt[key] for key in ("head", "steps") if key in receipt},
        tensors=tensors[:TENSORS_TOLD],
        changed=len(tensors),
        why=why,
        seconds=seconds,
        run=run,
    )


def tensor_differences(left: Checkpoint, right: Checkpoint) -> list[Tensor]:
    """The weights of two checkpoints of one model that differ in any bit, those with the largest difference first."""
    import torch

    found = []
    for name in weight_names(left):
        one, other = left.tensor(PREFIX + name), right.tensor(PREFIX + name)
        if one.shape != other.shape or one.dtype != other.dtype:
            found.append(Tensor(name, math.inf, math.inf))
        elif not torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)):
            apart = (one.to(torch.float64) - other.to(torch.float64)).abs()
            found.append(Tensor(name, float(apart.max()), float(apart.mean())))
    return sorted(found, key=lambda tensor: -tensor.max_difference)


def _code_differences(stored: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    left, right = dict(_flat(stored, "")), dict(_flat(here, ""))
    return [
        f"code: {key} was {left.get(key)!r} and is {right.get(key)!r}"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif tree is not None:
        yield path, tree


def _kept_checkpoint(store: Store, kind: str, name: str, commit: str, lineage: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of a record, when it is kept."""
    run, wanted = name.partition("@")[0], commit
    if kind == "model":
        run, wanted = str(lineage["checkpoint"]["run"]), str(lineage["checkpoint"]["commit"])
    try:
        return checkpoints.open_checkpoint(store, run, wanted)
    except RefMissing:
        return None


def _metrics(lineage: Mapping[str, Any], checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is not None:
        return _last(checkpoint.manifest["history"])
    return dict(lineage.get("metrics") or {})


def _last(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return dict(history[-1]) if history else {}


@contextlib.contextmanager
def _scratch(store: Store, run: str, removed: bool) -> Iterator[None]:
    """A run that is not there before, nor after."""
    if not removed:
        yield
        return
    _remove(store, run)
    try:
        yield
    finally:
        _remove(store, run)


def _remove(store: Store, run: str) -> None:
    store.refresh()
    for ref in list_refs(store, "checkpoint", run):
        delete_ref(store, "checkpoint", run, ref.branch)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
