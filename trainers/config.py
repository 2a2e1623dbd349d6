"""TrainConfig: everything that decides a training run, as one frozen tree that the command line and Python both build.

    TrainConfig
    ├── model       ModelConfig       what is trained, as "package.module:function" with parameters
    ├── optimizer   OptimizerConfig
    ├── schedule    ScheduleConfig    the learning rate over the run (trainers.schedule)
    ├── data        DataConfig        columns, splits, global batch size
    ├── checkpoint  CheckpointConfig  when to save, what to keep
    └── epochs, seed, evaluate_every_epochs, device, threads

The tree is written as JSON into every checkpoint and model. `identity` is the part that a resumed run must share with
the run it continues: whatever changes the numbers that training computes. The rest (where it runs, when it saves) may
differ. This module imports no torch, so that a command line can build and refuse a configuration at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from leptonstore.errors import BadInput
from leptonstore.format.framed import canonical_json, parse_json

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle")
DEVICES = ("auto", "cpu", "cuda")
# Sanity bounds: far above any run, low enough that arithmetic on them stays exact.
EPOCHS_MAX = 1_000_000
GLOBAL_BATCH_SIZE_MAX = 1 << 24
THREADS_MAX = 4_096
# What a resumed run may change without changing what is computed (threads may change bits: that is a warning).
NOT_IDENTITY = ("checkpoint", "evaluate_every_epochs", "device", "threads")

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """`reference` names a factory `(sample_shape, classes, **params) -> torch.nn.Module` (see trainers.models)."""

    reference: str = "trainers.models:cnn"
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _split_reference(self.reference)
        try:
            canonical_json(self.params)
        except (TypeError, ValueError) as error:
            raise BadInput(f"model.params must be JSON: {error}") from None


@dataclass(frozen=True)
class OptimizerConfig:
    """`lr` is the peak of the schedule. `betas` is used by adam and adamw, `momentum` by sgd."""

    name: str = "adam"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _check("optimizer.lr", self.lr, 0 < self.lr < math.inf, "a positive number")
        for beta in self.betas:
            _check("optimizer.betas", beta, 0 <= beta < 1, "two numbers in [0, 1)")
        _check("optimizer.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        _check("optimizer.weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "zero or more")


@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` is the share of all steps in which one_cycle climbs; the factors are shares of `optimizer.lr`."""

    name: str = "one_cycle"
    warmup: float = 0.3
    start_factor: float = 0.04
    end_factor: float = 0.001

    def __post_init__(self) -> None:
        _one_of("schedule.name", self.name, SCHEDULES)
        _check("schedule.warmup", self.warmup, 0 <= self.warmup < 1, "a share in [0, 1)")
        _check("schedule.start_factor", self.start_factor, 0 < self.start_factor <= 1, "a share in (0, 1]")
        _check("schedule.end_factor", self.end_factor, 0 <= self.end_factor <= 1, "a share in [0, 1]")


@dataclass(frozen=True)
class DataConfig:
    """Which columns and rows are learnt from.

    validation_split: None takes the first of "val", "validation", "test" that the dataset has.
    validation_fraction: the share of rows that is held out when the dataset has no `split` column.
    global_batch_size: rows of one step over all ranks together.
    """

    inputs: str = "image"
    labels: str = "label"
    train_split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = 0.2
    global_batch_size: int = 128

    def __post_init__(self) -> None:
        fraction, size = self.validation_fraction, self.global_batch_size
        _check("data.validation_fraction", fraction, 0 < fraction < 1, "a share in (0, 1)")
        _check("data.global_batch_size", size, 1 <= size <= GLOBAL_BATCH_SIZE_MAX, f"1 to {GLOBAL_BATCH_SIZE_MAX}")


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is written after every epoch, every `every_steps` steps if given, and whenever a run stops.

    keep_last: how many checkpoints of the run are kept; older ones lose their name, and gc frees their space.
    """

    every_steps: int | None = None
    keep_last: int = 3

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            _check("checkpoint.every_steps", self.every_steps, self.every_steps >= 1, "at least 1")
        _check("checkpoint.keep_last", self.keep_last, self.keep_last >= 1, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """The whole run. Raises BadInput, naming the key, when a value is out of its range.

    device: "auto" takes an accelerator when there is one. threads: of torch on the CPU; None leaves torch's choice.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    epochs: int = 5
    seed: int = 0
    evaluate_every_epochs: int = 1
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, 1 <= self.epochs <= EPOCHS_MAX, f"1 to {EPOCHS_MAX}")
        _check("seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        _check("evaluate_every_epochs", self.evaluate_every_epochs, self.evaluate_every_epochs >= 1, "at least 1")
        _one_of("device", self.device, DEVICES)
        if self.threads is not None:
            _check("threads", self.threads, 1 <= self.threads <= THREADS_MAX, f"1 to {THREADS_MAX}")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The tree as JSON-able dicts; tuples become lists."""
    tree: dict[str, Any] = parse_json(canonical_json(dataclasses.asdict(config)), "train config")
    return tree


def from_dict(tree: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`; absent keys take their defaults. Raises BadInput with the nearest key for an unknown one."""
    return _build(TrainConfig, tree, "")


def to_json(config: TrainConfig) -> str:
    """Canonical JSON: equal configurations give equal text."""
    return canonical_json(dataclasses.asdict(config)).decode()


def from_json(text: str) -> TrainConfig:
    """The inverse of `to_json`. Raises FormatDamaged when `text` is not JSON, BadInput when it is no configuration."""
    tree = parse_json(text.encode(), "train config")
    if not isinstance(tree, dict):
        raise BadInput(f"a train config is a JSON object, not {type(tree).__name__}")
    return from_dict(tree)


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """A copy with dotted keys replaced: `with_values(config, {"optimizer.lr": 0.01, "epochs": 3})`."""
    tree = to_dict(config)
    for key, value in values.items():
        *parents, last = key.split(".")
        node: Any = tree
        for at, parent in enumerate(parents):
            if not isinstance(node.get(parent), dict):
                raise _unknown(".".join(parents[: at + 1]), parent, [k for k, v in node.items() if isinstance(v, dict)])
            node = node[parent]
        if last not in node and "params" not in parents:
            raise _unknown(key, last, list(node))
        node[last] = value
    return from_dict(tree)


def identity(config: TrainConfig) -> dict[str, Any]:
    """The keys that must agree when a run is resumed."""
    return {key: value for key, value in to_dict(config).items() if key not in NOT_IDENTITY}


def first_difference(stored: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> str:
    """The first key whose values differ, told as "epochs is 5 in the checkpoint and 10 here"; "" when all agree."""
    for key in sorted({*stored, *asked}):
        left, right = stored.get(key), asked.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found = first_difference(left, right, f"{path}{key}.")
            if found:
                return found
        elif left != right:
            return f"{path}{key} is {left!r} in the checkpoint and {right!r} here"
    return ""


def resolve(reference: str) -> Callable[..., Any]:
    """The function that "package.module:function" names. Imports the module: only for references that the caller wrote.

    Raises BadInput that says which part is wrong, with the nearest name.
    """
    module_name, attribute = _split_reference(reference)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadInput(f"cannot import {module_name!r} of {reference!r}: {error}; is it on the Python path?") from None
    found = getattr(module, attribute, None)
    if found is None:
        names = [name for name in dir(module) if not name.startswith("_")]
        raise BadInput(f"{module_name!r} has no {attribute!r}{_nearest(attribute, names)}")
    if not callable(found):
        raise BadInput(f"{reference!r} is {type(found).__name__}, not a function")
    return typing.cast(Callable[..., Any], found)


def _split_reference(reference: str) -> tuple[str, str]:
    module, _, attribute = reference.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise BadInput(f"{reference!r} is not of the form package.module:function")
    return module, attribute


def _build(cls: type[T], tree: Any, path: str) -> T:
    """One dataclass of the tree from a dict, with every value held to its declared type."""
    if not isinstance(tree, Mapping):
        raise BadInput(f"{path or 'the train config'} must be an object with keys, not {tree!r}")
    hints = typing.get_type_hints(cls)
    for key in tree:
        if key not in hints:
            raise _unknown(f"{path}.{key}" if path else str(key), str(key), list(hints))
    values = {key: _value(hints[key], value, f"{path}.{key}" if path else key) for key, value in tree.items()}
    return cls(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type[Any], hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # only `X | None` is used
        return None if value is None else _value(arguments[0], value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise BadInput(f"{path} must be a list of {len(arguments)}, not {value!r}")
        return tuple(_value(one, item, path) for one, item in zip(arguments, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise BadInput(f"{path} must be an object with keys, not {value!r}")
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise BadInput(f"{path} must be of type {hint.__name__}, not {value!r}")
    return value


def _check(key: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadInput(f"{key} is {value!r}; it must be {wanted}")


def _one_of(key: str, value: str, names: Iterable[str]) -> None:
    names = list(names)
    if value not in names:
        raise BadInput(f"{key} is {value!r}; it must be one of {', '.join(names)}{_nearest(value, names)}")


def _unknown(path: str, key: str, names: list[str]) -> BadInput:
    nearest = _nearest(key, names) or f"; known keys are {', '.join(sorted(names))}"
    return BadInput(f"the train config has no key {path!r}{nearest}")


def _nearest(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
