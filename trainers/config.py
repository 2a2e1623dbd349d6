"""TrainConfig: everything that decides a training run, as one frozen tree that Python, a TOML file and the command line all build.

    TrainConfig
    ├── model       ModelConfig       what is trained, and which part of it
    ├── loss        LossConfig        what is made smaller
    ├── optimizer   OptimizerConfig   by name, or a reference
    ├── schedule    ScheduleConfig    the learning rate over the run (trainers.schedule)
    ├── data        DataConfig        task, columns, splits, global batch size, transforms
    ├── checkpoint  CheckpointConfig  when to save, what to keep
    ├── parallel    ParallelConfig    how ranks share the work (trainers.parallel)
    ├── early_stop  EarlyStopConfig   when to stop before the last epoch; None: never
    └── precision, accumulate, clip_norm, compile, recompute, on_bad_loss, epochs, seed, …

A `reference` is "package.module:function" (trainers.reference). In Python it may be the function itself, which is written down by its name,
or any other object: then the run is not reproducible, and `not_reproducible` says by which key.

The tree is written as JSON into every checkpoint and model. `identity` is the part that a resumed run must share with the run it continues:
whatever changes the numbers that training computes. `LAST_BITS` may change their last bits only, which is a warning. The rest (where it
runs, when it saves) may differ. This module imports no torch, so that a command line can build and refuse a configuration at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leptonstore.errors import BadInput
from leptonstore.format.framed import canonical_json, parse_json
from trainers import config_tree
from trainers.config_tree import first_difference as first_difference
from trainers.reference import Reference, is_trusted, nearest, written
from trainers.reference import resolve as resolve

CUSTOM = "custom"  # the name of what a reference makes
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "one_cycle")
DEVICES = ("auto", "cpu", "cuda", "mps", "tpu")
PRECISIONS = ("float32", "bf16", "fp16")
PARALLEL_KINDS = ("auto", "ddp", "fsdp2")
TRANSFORMS_MODULE = "loaders.transforms"
# Sanity bounds: far above any run, low enough that arithmetic on them stays exact.
EPOCHS_MAX = 1_000_000
GLOBAL_BATCH_SIZE_MAX = 1 << 24
ACCUMULATE_MAX = 1 << 16
THREADS_MAX = 4_096
WORKERS_MAX = 4_096
SEQUENCE_LENGTH_MAX = 1 << 24
# Dotted keys that a resumed run may change: they change nothing that is computed.
NOT_IDENTITY = ("checkpoint", "device", "threads", "data.workers", "on_bad_loss")
# Dotted keys that a resumed run may change with a warning: the same sums in another order (of micro-batches, of ranks, of fused operators).
LAST_BITS = ("accumulate", "compile", "recompute", "parallel")
# Counts for evaluation only while nothing depends on when it is done.
EVALUATION_KEYS = ("evaluate_every_epochs", "evaluate_every_steps")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    reference: a factory `(sample_shape, classes, **params) -> torch.nn.Module` (trainers.models; other tasks ask for other
        arguments: trainers.tasks), or in Python a module.
    init: the run whose newest checkpoint gives the weights before the first step (RUN, or RUN@step-000000100 for that of a step),
        as far as they are there and fit; None: all are drawn from `seed`.
    freeze: weights that are not trained, by the beginning of their name or a pattern: ["network.conv", "*.bias"].
    """

    reference: Reference = "trainers.models:cnn"
    params: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _write(self, "model", "reference")
        _require_json(self, "model")


@dataclass(frozen=True)
class LossConfig:
    """`reference` names a function `(outputs, targets, **params) -> Tensor` of no dimensions: the sum over valid rows or tokens."""

    reference: Reference = "trainers.losses:cross_entropy"
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _write(self, "loss", "reference")
        _require_json(self, "loss")


@dataclass(frozen=True)
class OptimizerConfig:
    """`lr` is the peak of the schedule. `betas` is used by adam and adamw, `momentum` by sgd.

    reference: instead of a name, a class or function `(parameters, lr=…, weight_decay=…, **params) -> torch.optim.Optimizer`
        (weight_decay only if it is not 0): "torch.optim:RMSprop". In Python also an optimizer, over the weights of a module given as model.
    """

    name: str = "adam"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.0
    reference: Reference | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _name_or_reference(self, "optimizer", OPTIMIZERS, OptimizerConfig.name)
        _check("optimizer.lr", self.lr, 0 < self.lr < math.inf, "a positive number")
        for beta in self.betas:
            _check("optimizer.betas", beta, 0 <= beta < 1, "two numbers in [0, 1)")
        _check("optimizer.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        _check("optimizer.weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "zero or more")


@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` is the share of all steps in which the rate climbs: 0.3 for one_cycle and 0 for the others where it is None. The factors are
    shares of `optimizer.lr`.

    reference: instead of a name, a function `(step, steps, **params) -> float`: the share of the peak for `step` (0-based) of `steps`.
    """

    name: str = "one_cycle"
    warmup: float | None = None
    start_factor: float = 0.04
    end_factor: float = 0.001
    reference: Reference | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _name_or_reference(self, "schedule", SCHEDULES, ScheduleConfig.name)
        _check("schedule.warmup", self.warmup, self.warmup is None or 0 <= self.warmup < 1, "a share in [0, 1)")
        _check("schedule.start_factor", self.start_factor, 0 < self.start_factor <= 1, "a share in (0, 1]")
        _check("schedule.end_factor", self.end_factor, 0 <= self.end_factor <= 1, "a share in [0, 1]")


@dataclass(frozen=True)
class TransformConfig:
    """One transform of a column's values: a class, made with `params` ("loaders.transforms:RandomCrop"), or a function of a value, which is
    called with them (and with `rng`, when it takes one). In Python also a transform; those of `loaders.transforms` are written down."""

    reference: Reference
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made: Any = self.reference
        kind = type(made)
        if kind.__module__.startswith(TRANSFORMS_MODULE) and not self.params:  # they say what they were made with
            object.__setattr__(self, "params", made.parameters())
            object.__setattr__(self, "reference", kind)
        _write(self, "transforms", "reference")
        _require_json(self, "transforms")


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from which rows.

    task: what the rows ask of a model (trainers.tasks); "auto" finds it in the schema.
    validation_split: None takes the first of "val", "validation", "test" that the dataset has.
    validation_fraction: the share of rows that is held out when the dataset has no `split` column.
    global_batch_size: rows of one step over all ranks together.
    transforms: {column: [transform, …]} for training rows; validation_transforms: for all others.
    workers: threads that read and transform ahead, or "auto".
    sequence_length, stride: of windows over a stream of tokens, for tasks on text. packs: rows are packs of whole documents instead, which
        do not see each other.
    """

    task: str = "auto"
    inputs: str = "image"
    labels: str = "label"
    train_split: str = "train"
    validation_split: str | None = None
    validation_fraction: float = 0.2
    global_batch_size: int = 128
    transforms: dict[str, tuple[TransformConfig, ...]] = field(default_factory=dict)
    validation_transforms: dict[str, tuple[TransformConfig, ...]] = field(default_factory=dict)
    workers: int | Literal["auto"] = 0
    sequence_length: int | None = None
    stride: int | None = None
    packs: bool = False

    def __post_init__(self) -> None:
        fraction, size = self.validation_fraction, self.global_batch_size
        _check("data.validation_fraction", fraction, 0 < fraction < 1, "a share in (0, 1)")
        _check("data.global_batch_size", size, 1 <= size <= GLOBAL_BATCH_SIZE_MAX, f"1 to {GLOBAL_BATCH_SIZE_MAX}")
        workers = self.workers
        _check(
            "data.workers", workers, workers == "auto" or 0 <= workers <= WORKERS_MAX, f'0 to {WORKERS_MAX} or "auto"'
        )
        for key in ("sequence_length", "stride"):
            _check_optional(f"data.{key}", getattr(self, key), SEQUENCE_LENGTH_MAX)


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is written after every epoch, every `every_steps` steps if given, and whenever a run stops.

    Which ones of the run are kept; the others lose their name, and gc frees their space:
    keep_last: so many of the newest. keep_every: those of every so many steps. keep_best: so many of the best by `best_metric`, a metric of
    the evaluation ("val_accuracy", "val_loss", …).
    asynchronous: go on training while a checkpoint is written.
    """

    every_steps: int | None = None
    keep_last: int = 3
    keep_every: int | None = None
    keep_best: int = 0
    best_metric: str = "val_loss"
    asynchronous: bool = False

    def __post_init__(self) -> None:
        _check_optional("checkpoint.every_steps", self.every_steps)
        _check_optional("checkpoint.keep_every", self.keep_every)
        _check("checkpoint.keep_last", self.keep_last, self.keep_last >= 1, "at least 1")
        _check("checkpoint.keep_best", self.keep_best, self.keep_best >= 0, "0 or more")


@dataclass(frozen=True)
class EarlyStopConfig:
    """Stop when `metric` of the evaluations has not got better by more than `min_delta` for `patience` evaluations in a row.

    A loss, perplexity or error is better when it is lower; "+name" and "-name" say which way is better for any other.
    """

    metric: str = "val_loss"
    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check("early_stop.patience", self.patience, self.patience >= 1, "at least 1")
        _check("early_stop.min_delta", self.min_delta, 0 <= self.min_delta < math.inf, "zero or more")


@dataclass(frozen=True)
class ParallelConfig:
    """How several ranks share the work: kind "auto" is DDP. mesh: sizes of the dimensions of a DeviceMesh by name, in order."""

    kind: str = "auto"
    mesh: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("parallel.kind", self.kind, PARALLEL_KINDS)
        for name, size in self.mesh.items():
            _check(f"parallel.mesh.{name}", size, size >= 1, "at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """The whole run. Raises BadInput, naming the key, when a value is out of its range.

    precision: "bf16" and "fp16" compute the forward pass in 16 bits (torch.autocast); weights stay float32. fp16 needs CUDA.
    accumulate: micro-batches of one step, forward and backward one after another, to save memory.
    clip_norm: the largest norm of the gradient of all weights together; None does not clip.
    compile: through torch.compile.
    recompute: blocks of the model keep no activations, but compute them again in the backward pass (trainers.recompute).
    on_bad_loss: what a loss that is not finite does: "stop" the run, or "skip" the step on all ranks.
    evaluate_every_epochs, evaluate_every_steps: when held-out rows are evaluated; after the last step always.
    device: "auto" takes an accelerator when there is one. threads: of torch on the CPU; None leaves torch's choice.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    early_stop: EarlyStopConfig | None = None
    precision: str = "float32"
    accumulate: int = 1
    clip_norm: float | None = None
    compile: bool = False
    recompute: bool = False
    on_bad_loss: str = "stop"
    epochs: int = 5
    seed: int = 0
    evaluate_every_epochs: int = 1
    evaluate_every_steps: int | None = None
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, 1 <= self.epochs <= EPOCHS_MAX, f"1 to {EPOCHS_MAX}")
        _check("seed", self.seed, 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        _check("accumulate", self.accumulate, 1 <= self.accumulate <= ACCUMULATE_MAX, f"1 to {ACCUMULATE_MAX}")
        clip = self.clip_norm
        _check("clip_norm", clip, clip is None or 0 < clip < math.inf, "a positive number")
        _check("evaluate_every_epochs", self.evaluate_every_epochs, self.evaluate_every_epochs >= 1, "at least 1")
        _check_optional("evaluate_every_steps", self.evaluate_every_steps)
        _one_of("device", self.device, DEVICES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("on_bad_loss", self.on_bad_loss, ("stop", "skip"))
        _check_optional("threads", self.threads, THREADS_MAX)

    @property
    def not_reproducible(self) -> list[str]:
        """The keys whose value is an object that could not be written down; [] when this configuration makes the run again."""
        return config_tree.unwritten(config_tree.as_tree(self))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The tree as JSON-able dicts; tuples become lists, objects without a name what they are called (`not_reproducible`)."""
    tree: dict[str, Any] = parse_json(to_json(config).encode(), "train config")
    return tree


def from_dict(tree: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`; absent keys take their defaults. Raises BadInput with the nearest key for an unknown one."""
    return config_tree.build(TrainConfig, tree)


def to_json(config: TrainConfig) -> str:
    """Canonical JSON: equal configurations give equal text."""
    return canonical_json(config_tree.as_json(config_tree.as_tree(config))).decode()


def from_json(text: str) -> TrainConfig:
    """The inverse of `to_json`. Raises FormatDamaged when `text` is not JSON, BadInput when it is no configuration."""
    tree = parse_json(text.encode(), "train config")
    if not isinstance(tree, dict):
        raise BadInput(f"a train config is a JSON object, not {type(tree).__name__}")
    return from_dict(tree)


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """A copy with dotted keys replaced: `with_values(config, {"optimizer.lr": 0.01, "epochs": 3})`.

    A dict is put in key by key, as a TOML file's; `params` are replaced as a whole.
    """
    return from_dict(config_tree.with_dotted(config_tree.as_tree(config), values))


def identity(config: TrainConfig) -> dict[str, Any]:
    """The keys that must agree when a run is resumed."""
    evaluation = () if config.early_stop else EVALUATION_KEYS
    return _without(to_dict(config), (*NOT_IDENTITY, *LAST_BITS, *evaluation))


def last_bits_warnings(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """One line for each key whose change may change the last bits of what a resumed run computes."""
    old, new = to_dict(stored), to_dict(asked)
    return [
        f"{key} was {old[key]!r} in the checkpoint and is {new[key]!r} now: the last bits of the results may differ"
        for key in LAST_BITS
        if old[key] != new[key]
    ]


def require_trusted(stored: TrainConfig, asked: TrainConfig, whose: str) -> None:
    """Raises BadInput when a stored configuration names code outside of this project that the caller did not name too.

    asked: what the caller wrote, with defaults for the rest. whose: "run 'x'", for the message.
    """
    named = {reference for _, reference in config_tree.references(config_tree.as_tree(asked))}
    for key, reference in config_tree.references(config_tree.as_tree(stored)):
        if not is_trusted(reference) and reference not in named:
            option = "--model " if key == "model.reference" else f"--set {key}="
            raise BadInput(
                f"{whose} trained with {key} {reference!r}, code outside this project: confirm it with {option}{reference}"
            )


def _without(tree: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    for key in keys:
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        del node[last]
    return tree


def _write(config: Any, key: str, attribute: str) -> None:
    """Put a reference's name in its place, where it has one."""
    object.__setattr__(config, attribute, written(getattr(config, attribute), f"{key}.{attribute}"))


def _name_or_reference(config: Any, key: str, names: tuple[str, ...], default: str) -> None:
    _require_json(config, key)
    if config.reference is None:
        _one_of(f"{key}.name", config.name, names)
        _check(f"{key}.params", config.params, not config.params, f"empty without {key}.reference")
        return
    _check(f"{key}.name", config.name, config.name in (default, CUSTOM), f"left out beside {key}.reference")
    _write(config, key, "reference")
    object.__setattr__(config, "name", CUSTOM)


def _require_json(config: Any, key: str) -> None:
    """Put `params` in the form that JSON gives back: what is equal before it is written is equal after."""
    try:
        params = parse_json(canonical_json(config.params), key)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{key}.params must be JSON: {error}; give the object that they make as the reference") from None
    object.__setattr__(config, "params", params)


def _check(key: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadInput(f"{key} is {value!r}; it must be {wanted}")


def _check_optional(key: str, value: int | None, most: int | None = None) -> None:
    wanted = "at least 1" if most is None else f"1 to {most}"
    _check(key, value, value is None or (value >= 1 and (most is None or value <= most)), wanted)


def _one_of(key: str, value: str, names: Iterable[str]) -> None:
    names = list(names)
    if value not in names:
        raise BadInput(f"{key} is {value!r}; it must be one of {', '.join(names)}{nearest(value, names)}")
